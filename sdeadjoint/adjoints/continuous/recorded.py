"""The sampler's states as a function of time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from ...equation import Equation


class Recorded:
    """``x(t)``: the states themselves at the sampler's nodes, interpolated in between.

    The variable is the equation's abscissa: lambda for a diffusion. For an ODE the interpolant is the cubic through the
    four nearest nodes (as many as there are), of error O(h^4); SDE paths have no derivative, and the line through two
    is as good as any: of error O(h^(1/2)) at a point.
    """

    def __init__(self, equation: Equation, states: Sequence[Tensor]) -> None:
        """``states``: y at nodes 0, 1, ... of the sampler's equation."""
        self._equation, self._states = equation, states
        times = equation.times[: len(states)]
        self._index = {t: n for n, t in enumerate(times)}
        self._nodes = equation.abscissa(times)
        self._points = 4 if equation.noise_clock is None else 2

    def at(self, t: float) -> Tensor:
        if t in self._index:
            return self._node(self._index[t])
        u = self._equation.abscissa([t])[0]
        points = min(self._points, len(self._nodes))
        first = bisect_right(self._nodes, u) - points // 2
        near = range(start := max(0, min(first, len(self._nodes) - points)), start + points)
        parts = [
            math.prod((u - self._nodes[k]) / (self._nodes[j] - self._nodes[k]) for k in near if k != j) * self._node(j)
            for j in near
        ]
        return torch.stack(parts).sum(0)

    def _node(self, n: int) -> Tensor:
        return self._equation.scaled(n, self._states[n])
