"""The classical Runge-Kutta method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order Runge-Kutta method, stages driven by the proportional part of the increment.

    Order 4, strong order 1.0 with additive noise (the noise, not the drift, limits it), four network calls per
    step, no state. For reference solutions of the ODE on fine grids; no gain over ``Heun`` on SDE paths, and on
    steps of more than about a unit of lambda its order does not show.
    Source: Hairer, Norsett and Wanner (1993), section II.1.
    """

    claims: ClassVar[Claims] = Claims(ode=4, strong=1.0, evaluations=4)
    tableau: ClassVar[Tableau] = Tableau(
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 0.5, 0.5, 1.0),
        noise=(0.0, 0.5, 0.5, 1.0),
    )
