"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau


@dataclass(frozen=True)
class Euler(RungeKutta):
    """``y1 = y0 + ds F(s0, y0) + dB``: DDIM, DPM-Solver(++)-1 and SDE-DPM-Solver(++)-1 in a frame.

    Order 1, strong order 1.0 with additive noise (where Euler-Maruyama is Milstein), one network call per step, no
    state. The cheapest step; above some twenty calls in all ``DPMSolverPP2M`` and ``Heun`` are more accurate per call.
    Source: Song et al. (2021a), eq. 12; Lu et al. (2022b), section 5; Kloeden and Platen (1992), section 10.2.
    """

    claims: ClassVar[Claims] = Claims(ode=1, strong=1.0, evaluations=1)
    tableau: ClassVar[Tableau] = Tableau(a=((),), b=(1.0,), c=(0.0,), noise=(0.0,))
