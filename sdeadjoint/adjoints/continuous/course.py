"""Where an adjoint equation is solved: its coordinates, its nodes, and how these lie among the sampler's."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from ...conditioning import at_step
from ...discretization import Discretization
from ...frames import Frame
from ...grids import validate_grid
from ...noise.refinable import Piece, combine
from ...solvers import Interval


@dataclass(frozen=True)
class Course:
    """Nodes ``m = 0 .. M`` from noise to data, in a frame of the sampler's eta. A step to sigma = 0 is not part of it.

    Args:
        frame: the coordinates.
        times, clocks, weights: of the nodes, float64; clocks and weights are the frame's.
        nodes: the sampler's node with bitwise the same time, None where it has none.
        slots: for each step, the sampler's step within which it lies; None where it covers more than one.
    """

    frame: Frame
    times: tuple[float, ...]
    clocks: tuple[float, ...]
    weights: tuple[float, ...]
    nodes: tuple[int | None, ...]
    slots: tuple[int | None, ...]

    @classmethod
    def create(cls, recursion: Discretization, kind: str | None, grid: Sequence[float] | Tensor | None) -> Course:
        """A course with the sampler's ends; singular coordinates and other ends are refused."""
        theirs = recursion.times[: recursion.steps + (not recursion.projects)]
        times = theirs if grid is None else _own_times(grid, recursion)
        frame = recursion.frame if kind is None else replace(recursion.frame, kind=kind)
        table = torch.tensor(times, dtype=torch.float64, device="cpu")
        clocks, weights = frame.clock(table), frame.weight(table)
        if len(times) > 1:
            if math.isinf(recursion.weights[0]):
                raise ValueError(
                    f"ContinuousAdjoint: at t={times[0]} alpha = 0 and eta > 0, so y_T = x_T / w is 0 and the solution "
                    "of the equation does not depend on x_T, although the sampler does; pass adjoint=Checkpoint()"
                )
            regular = torch.isfinite(clocks).all() and torch.isfinite(weights).all() and (weights > 0).all()
            if not regular or (clocks.diff() == 0).any():
                raise ValueError(
                    f"kind: {frame!r} has clock values from {clocks[0].item()} to {clocks[-1].item()} on this grid, "
                    "which float64 cannot tell apart or hold; pass another kind (None is the sampler's) or a "
                    "coarser grid"
                )
        index = {t: n for n, t in enumerate(theirs)}
        slots = []
        for t0, t1 in pairwise(times):
            n = bisect_right(theirs, -t0, key=lambda t: -t) - 1
            slots.append(n if theirs[n + 1] <= t1 else None)
        nodes = tuple(index.get(t) for t in times)
        return cls(frame, times, tuple(clocks.tolist()), tuple(weights.tolist()), nodes, tuple(slots))

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def refines(self) -> bool:
        """Whether every node of the sampler is a node here."""
        return None not in self.slots

    @property
    def coarsens(self) -> bool:
        """Whether every node here is one of the sampler's."""
        return None not in self.nodes

    def time(self, m: int, s: float) -> tuple[float, float]:
        """Time and weight at a clock value of step m, at its ends those of the tables."""
        for end in (m, m + 1):
            if s == self.clocks[end]:
                return self.times[end], self.weights[end]
        time = self.frame.time(s)
        return float(time), float(self.frame.weight(time))

    def view(self, recursion: Discretization, m: int) -> Discretization:
        """The sampler's equation on this course, with the conditioning that holds on step m."""
        denoiser, slot = recursion.denoiser, self.slots[m] or 0
        if denoiser.guidance is not None:
            denoiser = denoiser.guided_by(replace(denoiser.guidance, **at_step(denoiser.guidance.tensors, slot)))
        return replace(
            recursion,
            denoiser=denoiser,
            frame=self.frame,
            cond=at_step(recursion.cond, slot),
            noise=None,
            times=self.times,
            clocks=self.clocks,
            weights=self.weights,
            hook=None,
        )

    def still(self, m: int) -> Interval:
        """Step m, forwards, without noise."""
        return Interval(self.clocks[m], self.clocks[m + 1])

    def noisy(self, recursion: Discretization, m: int, like: Tensor) -> Interval:
        """Step m, forwards, with the sampler's increments over it joined together; for a course that coarsens."""
        first, last = self.nodes[m], self.nodes[m + 1]
        assert first is not None
        assert last is not None
        times = torch.tensor(recursion.times[first : last + 1], dtype=torch.float64, device="cpu")
        lengths = recursion.frame.noise_clock(times).diff().tolist()
        pieces, areas = [], False
        for n, length in zip(range(first, last), lengths, strict=True):
            increment = recursion.increment(n)
            assert increment is not None
            dB, areas = increment.dB.to(like), increment.H is not None
            H = torch.zeros_like(dB) if increment.H is None else increment.H.to(like)
            pieces.append(Piece(length, dB, H))
        whole = reduce(combine, pieces)
        return Interval(self.clocks[m], self.clocks[m + 1], whole.W, whole.H if areas else 0.0)


def _own_times(grid: Sequence[float] | Tensor, recursion: Discretization) -> tuple[float, ...]:
    times = tuple(validate_grid(grid, recursion.frame.schedule).tolist())
    ends = recursion.times[-2:] if recursion.projects else recursion.times[-1:]
    if times[0] != recursion.times[0] or times[-len(ends) :] != ends:
        last = "ends, also where the last step to sigma = 0 begins" if recursion.projects else "ends"
        raise ValueError(
            f"grid: the adjoint's runs from {times[0]!r} to {times[-len(ends) :]}, the sampler's from "
            f"{recursion.times[0]!r} to {ends}; give both bitwise the same {last}"
        )
    return times[:-1] if recursion.projects else times
