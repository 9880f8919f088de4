"""UniPC: a predictor and a corrector in the logarithm of the clock, for one call per step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Claims, Drift, Interval, Solver, State, refuse_without_log
from .interpolation import integrals

VARIANTS = ("bh2", "bh1")


@dataclass(frozen=True)
class UniPC(Solver):
    """A polynomial in ``u = log s`` through the last drifts predicts; the new one corrects:

        y_{n+1} = z_n + sum_j w_j F_{n-j} + dB_n                     predicted
        z_{n+1} = z_n + c F_{n+1} + sum_j c_j F_{n-j} + dB_n         corrected

    with ``F_n = F(s_n, y_n)`` at the predicted states, which are the method's result, and
    j = 0 .. k - 1, ``k = min(order, n + 1)``. The weights are exact integrals of the polynomials
    through k and k + 1 drifts (Adams-Bashforth's and Adams-Moulton's in log s), but for two
    that are published otherwise: with ``h_n = u_{n+1} - u_n``,

        y_{n+1} = z_n + ds F_n + B/2 (h_n / h_{n-1}) (F_n - F_{n-1}) + dB_n         k = 2
        z_{n+1} = z_n + ds F_n + B/2 (F_{n+1} - F_n) + dB_n                         k = 1

    A step corrects the last one, as the drift at its end is known only now, and then predicts.

    Args:
        order: 1, 2 or 3: of the predictor. That of the corrector is one more.
        variant: ``"bh2"`` has ``B = ds``, ``"bh1"`` has ``B = s_{n+1} h_n``: the ``solver_type`` of
            these names of diffusers' ``UniPCMultistepScheduler``.

    Order min(order + 1, 3), as the first step leaves ``O(h^3)``. Strong order 1.0 with additive
    noise, weak order 2; one network call per step, ``order`` past drifts as state. From s = 0 a step
    is Euler's; clocks below 0, and those that fall to 0, have no log. Not for very uneven grids,
    where the weights grow.

    The last state is a predicted one: to correct it would take one more call.

    Errors: ``ValueError`` for other orders and variants, and for steps that have no log.
    Source: Zhao et al. (2023), Algorithms 1 and 2; B1 and B2 of section 3.
    """

    order: int = 2
    variant: str = "bh2"

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order not in (1, 2, 3):
            raise ValueError(f"order: got {self.order!r}; pass 1, 2 or 3")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant: got {self.variant!r}; pass one of {VARIANTS}")

    @property
    def claims(self) -> Claims:
        return Claims(ode=min(self.order + 1, 3), strong=1.0, evaluations=1, weak=2.0)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        refuse_without_log(self, interval, state)
        F = drift(interval.s0, y)
        if state:
            y = y + self._correction(interval.s0, F, state)
        history = ((interval.s0, F), *state)[: self.order]
        nodes = [s for s, _ in history]
        for weight, (_, past) in zip(self._predictor(nodes, interval.s1), history, strict=False):
            y = y + weight * past
        return y + interval.dB, history

    def _correction(self, s: float, F: Tensor, past: State) -> Tensor:
        """What the corrector adds to the state that was predicted at s, from the drift there."""
        nodes = [node for node, _ in past]
        new, *weights = self._corrector(nodes, s)
        correction = new * F
        predicted = [*self._predictor(nodes, s), *[0.0] * len(nodes)]
        for weight, other, (_, G) in zip(weights, predicted, past, strict=False):
            correction = correction + (weight - other) * G
        return correction

    def _predictor(self, nodes: list[float], s1: float) -> list[float]:
        """Weights of the drifts at the nodes, newest first, for the step from the first to s1."""
        s0, ds = nodes[0], s1 - nodes[0]
        # A node at s = 0 lies infinitely far away in log s.
        u = [math.log(node) for node in nodes if node > 0]
        if len(u) < 2:
            return [ds]
        if len(u) == 2:
            slope = 0.5 * self._scale(s0, s1) * (math.log(s1) - u[0]) / (u[0] - u[1])
            return [ds + slope, -slope]
        return integrals(u, u[0], math.log(s1), logarithmic=True)

    def _corrector(self, nodes: list[float], s1: float) -> list[float]:
        """The weight of the drift at s1, and those of the drifts at the nodes."""
        s0, ds = nodes[0], s1 - nodes[0]
        u = [math.log(node) for node in nodes if node > 0]
        if len(u) < 2:
            half = 0.5 * self._scale(s0, s1)
            return [half, ds - half]
        return integrals([math.log(s1), *u], u[0], math.log(s1), logarithmic=True)

    def _scale(self, s0: float, s1: float) -> float:
        """B: the step's length, up to higher orders of it."""
        if self.variant == "bh2" or s0 <= 0:
            return s1 - s0
        return s1 * (math.log(s1) - math.log(s0))
