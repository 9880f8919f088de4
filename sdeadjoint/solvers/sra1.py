"""Roessler's SRA1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau


@dataclass(frozen=True)
class SRA1(RungeKutta):
    """Roessler's SRA1 for constant noise: one stage at 3/4 that sees ``3/2`` of the time average of the path.

        Y  = y0 + 3/4 ds F(s0, y0) + 3/2 (dB/2 + H),      y1 = y0 + ds (1/3 F(s0, y0) + 2/3 F(s0 + 3/4 ds, Y)) + dB

    with ``dB/2 + H = 1/h int (B_r - B_0) dr``, which is Roessler's ``I_(1,0)/h``.
    Order 2 without noise, strong order 1.5 with additive noise, its Levy area taken on the noise clock (any frame with
    eta > 0); two network calls per step, no state; asks for the space-time Levy area.
    Source: Roessler (2010), Table 6.3 (SRA1).
    """

    claims: ClassVar[Claims] = Claims(ode=2, strong=1.5, evaluations=2, levy="space-time", weak=2.0)
    tableau: ClassVar[Tableau] = Tableau(
        a=((), (0.75,)), b=(1 / 3, 2 / 3), c=(0.0, 0.75), noise=(0.0, 0.75), levy=(0.0, 1.5)
    )
