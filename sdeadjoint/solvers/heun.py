"""Heun's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Claims
from .runge_kutta import RungeKutta, Tableau


@dataclass(frozen=True)
class Heun(RungeKutta):
    """``Y = y0 + ds F(s0, y0) + dB``, ``y1 = y0 + ds/2 (F(s0, y0) + F(s1, Y)) + dB``: EDM's sampler in the noise kind.

    Order 2; with additive noise strong order 1.0, weak order 2; two network calls per step, no state. It evaluates the
    network at the end of every step, which a last step to sigma = 0 replaces by the x_0 projection, as EDM does.
    Source: Karras et al. (2022), Algorithm 1.
    """

    claims: ClassVar[Claims] = Claims(ode=2, strong=1.0, evaluations=2, weak=2.0)
    tableau: ClassVar[Tableau] = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), noise=(0.0, 1.0))
