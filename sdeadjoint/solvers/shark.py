"""ShARK: the shifted additive-noise Runge-Kutta method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau


@dataclass(frozen=True)
class ShARK(RungeKutta):
    """Both stages are shifted by the space-time Levy area, the second sits at 5/6 of the step:

        Y1 = y0 + H,      Y2 = y0 + H + 5/6 (ds F(s0, Y1) + dB)
        y1 = y0 + ds (2/5 F(s0, Y1) + 3/5 F(s0 + 5/6 ds, Y2)) + dB

    Order 2 without noise, strong order 1.5 with additive noise, its Levy area taken on the noise clock (any frame with
    eta > 0); two network calls per step, no state; asks for the space-time Levy area.
    Source: Foster, dos Reis and Strange (2024), the shifted additive-noise Runge-Kutta method.
    """

    claims: ClassVar[Claims] = Claims(ode=2, strong=1.5, evaluations=2, levy="space-time", weak=2.0)
    tableau: ClassVar[Tableau] = Tableau(
        a=((), (5 / 6,)), b=(0.4, 0.6), c=(0.0, 5 / 6), noise=(0.0, 5 / 6), levy=(1.0, 1.0)
    )
