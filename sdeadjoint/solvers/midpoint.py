"""The explicit midpoint method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """``Y = y0 + ds/2 F(s0, y0) + dB/2``, ``y1 = y0 + ds F(s0 + ds/2, Y) + dB``.

    Order 2, strong order 1.0 with additive noise, two network calls per step, no state. The midpoint is that of
    the clock, not of lambda (DPM-Solver-2 takes the latter), so on steps of several units of lambda it lies close
    to the larger end: ``Heun`` is the better choice there. Source: Hairer, Norsett and Wanner (1993), eq. II.1.4.
    """

    claims: ClassVar[Claims] = Claims(ode=2, strong=1.0, evaluations=2)
    tableau: ClassVar[Tableau] = Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), noise=(0.0, 0.5))
