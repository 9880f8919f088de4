"""DPM-Solver's singlestep methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..solvers import Claims, Drift, Interval, Solver, State


@dataclass(frozen=True)
class Singlestep(Solver):
    """A singlestep method whose stages are steps of the grid: ``order`` of them make one step of the method.

    From the start s of such a group, with drifts ``F_0, F_1, ...`` at its nodes, ``u = log s`` and h its length in u:

        1 node:   y1 = y_s + (s1 - s) F_0
        2 nodes:  y1 = y_s + (s1 - s) (F_0 + h / 2 slope), or the exact integral of the line (heun)
        3 nodes:  y1 = y_s + the exact integral of the line through first and last node, or of the parabola (heun)

    Args:
        order: 1 to 3, the steps in a group.
        heun: the second choice of each.

    Order of the method: that of whole groups of nodes at its own fractions; on a scheduler's grid, where the fractions
    are what they are, 2 for ``order`` 2 and 3. Each stage has the path's increment since the group's start. One network
    call per step of the grid; the memory is the group.
    Source: Lu et al. (2022a), Algorithms 1 and 2; Lu et al. (2022b), Algorithm 1.
    """

    order: int
    heun: bool = False
    claims: ClassVar[Claims] = Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        nodes = (*state, (interval.s0, drift(interval.s0, y), y, interval.dB))
        if len(nodes) > self.order:
            nodes = nodes[-1:]
        out = nodes[0][2]
        for weight, (_, F, _, dB) in zip(self._weights([s for s, *_ in nodes], interval.s1), nodes, strict=True):
            out = out + weight * F + dB
        return out, nodes

    def _weights(self, nodes: list[float], s1: float) -> list[float]:
        """What each drift of a group counts on the way from its start to ``s1``."""
        s = nodes[0]
        whole = s1 - s
        if len(nodes) == 1:
            return [whole]
        u, h = [math.log(node / s) for node in nodes], math.log(s1 / s)
        first = s1 * h - whole  # the integral of u ds
        if len(nodes) == 3 and self.heun:
            second = s1 * h * h - 2 * first
            a = (second - u[2] * first) / (u[1] * (u[1] - u[2]))
            b = (second - u[1] * first) / (u[2] * (u[2] - u[1]))
            return [whole - a - b, a, b]
        slope = whole * h / 2 if len(nodes) == 2 and not self.heun else first
        last = slope / u[-1]
        return [whole - last, *[0.0] * (len(nodes) - 2), last]
