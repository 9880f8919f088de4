"""Where an adjoint equation is solved: its nodes, and how these lie among the sampler's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from ...equation import Equation
from ...noise.refinable import Piece, combine
from ...recursion import Recursion
from ...solvers import Interval


@dataclass(frozen=True)
class Course:
    """Nodes ``m = 0 .. M`` from the start to the end of a solve. A final map is not part of it.

    Args:
        equation: the one that is solved, on these nodes and in the adjoint's coordinates.
        times: of the nodes.
        nodes: the sampler's node with bitwise the same time, None where it has none.
        slots: for each step, the sampler's step within which it lies; None where it covers more than one.
        kind: of the adjoint's coordinates; None for the sampler's own.
    """

    equation: Equation
    times: tuple[float, ...]
    nodes: tuple[int | None, ...]
    slots: tuple[int | None, ...]
    kind: str | None

    @classmethod
    def create(cls, equation: Equation, kind: str | None, grid: Sequence[float] | None) -> Course:
        """A course with the sampler's ends; singular coordinates and other ends are refused."""
        theirs = equation.times[: equation.steps + (not equation.projects)]
        times = theirs if grid is None else _own_times(grid, equation)
        if len(times) > 1 and equation.weights[0] == float("inf"):
            raise ValueError(
                f"ContinuousAdjoint: at t={times[0]} alpha = 0 and eta > 0, so y_T = x_T / w is 0 and the solution "
                "of the equation does not depend on x_T, although the sampler does; pass adjoint=Checkpoint()"
            )
        index = {t: n for n, t in enumerate(theirs)}
        sign = 1.0 if theirs[-1] >= theirs[0] else -1.0
        slots = []
        for t0, t1 in pairwise(times):
            n = bisect_right(theirs, sign * t0, key=lambda t: sign * t) - 1
            slots.append(n if sign * theirs[n + 1] >= sign * t1 else None)
        nodes = tuple(index.get(t) for t in times)
        course = cls(equation, times, nodes, tuple(slots), kind)
        return course.of(equation)

    def of(self, equation: Equation) -> Course:
        """The same course for the sampler's equation on other tensors."""
        if self.steps == 0:
            return self
        own = equation.recast(self.kind, self.times, [slot or 0 for slot in self.slots])
        return Course(own, self.times, self.nodes, self.slots, self.kind)

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def clocks(self) -> tuple[float, ...]:
        return self.equation.clocks[: self.steps + 1]

    @property
    def weights(self) -> tuple[float, ...]:
        return self.equation.weights[: self.steps + 1]

    @property
    def refines(self) -> bool:
        """Whether every node of the sampler is a node here."""
        return None not in self.slots

    @property
    def coarsens(self) -> bool:
        """Whether every node here is one of the sampler's."""
        return None not in self.nodes

    def still(self, m: int) -> Interval:
        """Step m, forwards, without noise."""
        return Interval(self.clocks[m], self.clocks[m + 1])

    def noisy(self, recursion: Recursion, m: int, like: Tensor) -> Interval:
        """Step m, forwards, with the sampler's increments over it joined together; for a course that coarsens."""
        first, last, clock = self.nodes[m], self.nodes[m + 1], recursion.equation.noise_clock
        assert first is not None
        assert last is not None
        assert clock is not None
        pieces, areas = [], False
        for n in range(first, last):
            increment = recursion.increment(n)
            assert increment is not None
            dB, areas = increment.dB.to(like), increment.H is not None
            H = torch.zeros_like(dB) if increment.H is None else increment.H.to(like)
            pieces.append(Piece(clock[n + 1] - clock[n], dB, H))
        whole = reduce(combine, pieces)
        return Interval(self.clocks[m], self.clocks[m + 1], whole.W, whole.H if areas else 0.0)


def _own_times(grid: Sequence[float], equation: Equation) -> tuple[float, ...]:
    times = tuple(grid)
    falls = equation.times[-1] < equation.times[0]
    if any((b >= a) if falls else (b <= a) for a, b in pairwise(times)):
        raise ValueError(f"grid: must strictly {'decrease' if falls else 'increase'}, like the times of the solve")
    ends = equation.times[-2:] if equation.projects else equation.times[-1:]
    if not times or times[0] != equation.times[0] or times[-len(ends) :] != ends:
        last = "ends, also where the last step to sigma = 0 begins" if equation.projects else "ends"
        raise ValueError(
            f"grid: the adjoint's runs from {times[0] if times else 'nowhere'} to {times[-len(ends) :]}, "
            f"the sampler's from {equation.times[0]!r} to {ends}; give both bitwise the same {last}"
        )
    return times[:-1] if equation.projects else times
