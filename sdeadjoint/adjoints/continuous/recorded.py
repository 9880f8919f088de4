"""The sampler's states as a function of time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from ...discretization import Discretization


class Recorded:
    """``x(t)``: the states themselves at the sampler's nodes, interpolated in between.

    The variable is lambda, or t where a lambda is infinite. For the ODE the interpolant is the cubic through the four
    nearest nodes (as many as there are), of error O(h^4); SDE paths have no derivative, and the line through two is
    as good as any: of error O(h^(1/2)) at a point.
    """

    def __init__(self, recursion: Discretization, states: Sequence[Tensor]) -> None:
        """``states``: the carries' y for nodes 0, 1, ..., the first being x_T."""
        self._recursion, self._states = recursion, states
        self._times = recursion.times[: len(states)]
        self._index = {t: n for n, t in enumerate(self._times)}
        lam = recursion.frame.schedule.lam(torch.tensor(self._times, dtype=torch.float64, device="cpu")).tolist()
        self._uses_time = any(math.isinf(value) for value in lam)
        # Rising, as bisection wants it.
        self._nodes = [-t for t in self._times] if self._uses_time else lam
        self._points = 4 if recursion.frame.eta == 0 else 2

    def at(self, t: float) -> Tensor:
        if t in self._index:
            return self._node(self._index[t])
        u = -t if self._uses_time else float(self._recursion.frame.schedule.lam(t))
        points = min(self._points, len(self._nodes))
        first = bisect_right(self._nodes, u) - points // 2
        near = range(start := max(0, min(first, len(self._nodes) - points)), start + points)
        parts = [
            math.prod((u - self._nodes[k]) / (self._nodes[j] - self._nodes[k]) for k in near if k != j) * self._node(j)
            for j in near
        ]
        return torch.stack(parts).sum(0)

    def _node(self, n: int) -> Tensor:
        return self._recursion.state(n, self._states[n])
