"""The pair of Bogacki and Shampine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau

_NODES = (0.0, 1 / 2, 3 / 4)


@dataclass(frozen=True)
class BogackiShampine(RungeKutta):
    """The third-order method of Bogacki and Shampine, with one of order 2 beside it:

        Y2 = y0 + ds/2 F1 + dB/2
        Y3 = y0 + 3/4 (ds F2 + dB)
        y1 = y0 + ds (2/9 F1 + 1/3 F2 + 4/9 F3) + dB

    with ``F1 = F(s0, y0)``, ``F2 = F(s0 + ds/2, Y2)`` and ``F3 = F(s0 + 3/4 ds, Y3)``. The second
    row of weights is ``7/24, 1/4, 1/3``, and ``1/8`` for ``F(s1, y1)``; its distance from the first
    estimates the error of a step: ``step_with_error``.

    Order 3, embedded order 2. Strong order 1.0 with additive noise: stages see the proportional
    part ``c_i dB`` of the increment. Three network calls per step, no state. A step with an error
    estimate makes a fourth call, at the step's end, which is the first of the next step.

    For loose tolerances, 1e-2 to 1e-4. Not below that, where ``Dopri5`` takes fewer calls; not for
    SDE paths, where it gains nothing over ``Heun``.
    Source: Bogacki and Shampine (1989).
    """

    claims: ClassVar[Claims] = Claims(ode=3, strong=1.0, evaluations=3)
    tableau: ClassVar[Tableau] = Tableau(
        a=((), (1 / 2,), (0.0, 3 / 4)),
        b=(2 / 9, 1 / 3, 4 / 9),
        c=_NODES,
        noise=_NODES,
        embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    )
