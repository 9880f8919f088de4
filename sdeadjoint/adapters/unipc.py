"""UniPC as diffusers steps it: the corrector of a step runs when the next one has called the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..solvers import Claims, Drift, Interval, Solver, State


@dataclass(frozen=True)
class UniPCSteps(Solver):
    """UniPC-p: Adams-Bashforth of order p predicts, Adams-Moulton of order p + 1 corrects with the same network call.

    With ``u = log s``, ``g = u0 - u1``, ``D_k = (F_{n-k} - F_n) / r_k`` and ``r_k = (u_{n-k} - u_0) / (u_1 - u_0)``,

        y1 = y0 + (s1 - s0) F_n - s1 B(g) sum_k rho_k D_k

    where rho integrates polynomials up to order p exactly. The corrector adds ``F_{n+1}``, with r = 1, to the sum, and
    replaces y1 by it when the next step begins; the last step is not corrected.

    Args:
        order: p.
        variant: ``"bh2"``, ``B(g) = e^g - 1``, or ``"bh1"``, ``B(g) = g``. It matters to the rho that the method fixes
            at 1/2 (of the predictor of order 2 and of the corrector of order 1) and to no other.
        uncorrected: numbers of the steps, from 0, that are not corrected.
        kept: pairs (clock, number): a step from this clock uses no more than so many past drifts.

    For p up to 3 it is ``UniPC(p, variant)``, with its order ``min(p + 1, 3)`` (theory/orders.md, O7); for p above 3
    the first step still leaves ``O(h^3)``. A step that is not corrected, or that is lowered to Euler's, leaves
    ``O(h^2)``, which makes the order 2. Noise enters at a step's end: strong order 1.0. One network call per step; p
    past drifts, the last start and the last increment as state. Source: Zhao et al. (2023), UniPC, Algorithms 1 and 2.
    """

    order: int
    variant: str = "bh2"
    uncorrected: tuple[int, ...] = ()
    kept: tuple[tuple[float, int], ...] = ()

    @property
    def claims(self) -> Claims:
        most = 2 if self.uncorrected or self.kept else 3
        return Claims(ode=min(self.order + 1, most), strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        s0, s1 = interval.s0, interval.s1
        F = drift(s0, y)
        number, last, order, history, dB = state if state else (0, y, 0, (), 0.0)
        if state and number - 1 not in self.uncorrected:
            y = self._advance(last, history, order, s0, (s0, F)) + dB
        history = ((s0, F), *history)[: max(self.order, 1)]
        order = min(self.order, len(history), 1 + self._limit(s0))
        out = self._advance(y, history, order, s1, None) + interval.dB
        return out, (number + 1, y, order, history, interval.dB)

    def _limit(self, s0: float) -> int:
        """How many past drifts a step may use."""
        return next((k for clock, k in self.kept if abs(s0 - clock) <= 1e-12 * abs(clock)), self.order)

    def _advance(self, y: Tensor, history: State, order: int, s1: float, end: tuple[float, Tensor] | None) -> Tensor:
        """The state at ``s1`` from the step's start and drifts there and before; with that at the end, corrected."""
        s0, F0 = history[0]
        g = math.log(s0) - math.log(s1)
        past = list(history[1:order])
        out = y + (s1 - s0) * F0
        ratios = [(math.log(s) - math.log(s0)) / -g for s, _ in past]
        slopes = [(F - F0) / r for r, (_, F) in zip(ratios, past, strict=True)]
        if end is not None:
            ratios, slopes = [*ratios, 1.0], [*slopes, end[1] - F0]
        B = g if self.variant == "bh1" else math.expm1(g)
        for rho, slope in zip(self._rho(ratios, g, B), slopes, strict=True):
            out = out - s1 * B * rho * slope
        return out

    def _rho(self, ratios: list[float], g: float, B: float) -> list[float]:
        """The weights of the slopes; one alone is 1/2."""
        if len(ratios) <= 1:
            return [0.5] * len(ratios)
        powers = np.array([[r**k for r in ratios] for k in range(len(ratios))])
        phi, factorial, moments = math.expm1(g) / g - 1, 1, []
        for k in range(1, len(ratios) + 1):
            moments.append(phi * factorial / B)
            factorial *= k + 1
            phi = phi / g - 1 / factorial
        return [float(rho) for rho in np.linalg.solve(powers, np.array(moments))]
