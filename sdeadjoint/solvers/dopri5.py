"""The pair of Dormand and Prince."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau

_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """The fifth-order method of Dormand and Prince, with one of order 4 beside it.

    The second one uses the same stages, and its distance from the first estimates the error of a
    step: ``step_with_error``.

    Order 5, embedded order 4. Strong order 1.0 with additive noise: stages see the proportional
    part ``c_i dB`` of the increment, and the noise, not the drift, limits the order. Six network
    calls per step, no state. A step with an error estimate makes a seventh call, at the step's end,
    which is the first of the next step.

    For accurate solutions of smooth ODEs. Not for SDE paths, where it gains nothing over ``Heun``;
    not for steps of more than about a unit of lambda, where its order does not show; not for
    tolerances above 1e-3, where ``BogackiShampine`` is cheaper.
    Source: Dormand and Prince (1980), RK5(4)7M; Hairer, Norsett and Wanner (1993), Table II.5.2.
    """

    claims: ClassVar[Claims] = Claims(ode=5, strong=1.0, evaluations=6)
    tableau: ClassVar[Tableau] = Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        c=_NODES,
        noise=_NODES,
        embedded=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    )
