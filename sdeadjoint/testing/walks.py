"""Cases for solvers: some steps along a clock, with a drift that is given by its text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..solvers import Drift, Interval, Solver, State
from .contract import Case, literal, numbers

IMPORTS = "import math\nimport torch\nfrom sdeadjoint import Interval"


@dataclass(frozen=True)
class Formula:
    """A drift ``F(s, y)`` by the text of its expression, so that a counterexample can be printed and run."""

    text: str

    def __repr__(self) -> str:
        return f"Formula({self.text!r})"

    def __call__(self, s: float, y: Tensor) -> Tensor:
        return _compiled(self.text)(s, y)


@cache
def _compiled(text: str) -> Callable[[float, Tensor], Tensor]:
    function: Callable[[float, Tensor], Tensor] = eval(f"lambda s, y: {text}", {"torch": torch, "math": math})
    return function


NONE = Formula("torch.zeros_like(y)")
CONSTANT = Formula("torch.full_like(y, 0.75)")
TANGLED = Formula("torch.sin(y) + 0.5 * math.cos(s)")
"""Nonlinear and with its clock; its derivative in y is at most 1."""
COUPLED = Formula(
    "torch.stack((torch.sin(y[..., 1]) + math.cos(2 * s), math.cos(s) * y[..., 0] + 0.5 * torch.cos(y[..., 1])), -1)"
)
"""Two coordinates that depend on each other, nonlinear, with bounded derivatives, and with their clock."""


@dataclass(frozen=True)
class Walk(Case):
    """Steps along a clock from standard normal numbers.

    Args:
        clock: its nodes, strictly monotone.
        drift: the drift.
        noisy: with increments and space-time Levy areas, else as for an ODE.
        shape, dtype: of the state.
        strided: the state and the noise are not contiguous in memory.
    """

    clock: tuple[float, ...]
    drift: Formula = TANGLED
    noisy: bool = False
    shape: tuple[int, ...] = (1,)
    dtype: torch.dtype = torch.float64
    strided: bool = False

    def state(self, seed: int = 0) -> Tensor:
        """The state at the start, or other numbers like it."""
        drawn = numbers(*self.shape, seed=seed, dtype=self.dtype)
        return torch.stack([drawn] * 2, -1)[..., 0] if self.strided else drawn

    def intervals(self) -> list[Interval]:
        found = []
        for n, (s0, s1) in enumerate(pairwise(self.clock)):
            noise = (self.state(2 * n + 1), self.state(2 * n + 2) / 4) if self.noisy else ()
            found.append(Interval(s0, s1, *noise))
        return found

    def code(self, name: str) -> str:
        lines = [
            IMPORTS,
            f"drift = lambda s, y: {self.drift.text}",
            f"y, state = {literal(self.state())}, {name}.initial_state",
        ]
        for interval in self.intervals():
            noise = "".join(f", {literal(part)}" for part in (interval.dB, interval.H) if isinstance(part, Tensor))
            lines.append(f"y, state = {name}.step(drift, Interval({interval.s0}, {interval.s1}{noise}), y, state)")
        return "\n".join([*lines, "print(y, state)"])


def solve(
    solver: Solver, drift: Drift, intervals: Sequence[Interval], y: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """The solver along some intervals, from its initial state unless one is given."""
    state = solver.initial_state if state is None else state
    for interval in intervals:
        y, state = solver.step(drift, interval, y, state)
    return y, state


@st.composite
def clocks(draw: st.DrawFn, *, steps: tuple[int, int] = (1, 6)) -> tuple[float, ...]:
    """Clocks of steps from 0.05 to 0.5 between 0 and 7, rising (some from 0) or falling."""
    lengths = draw(st.lists(st.integers(1, 10), min_size=steps[0], max_size=steps[1]))
    falls = draw(st.booleans())
    nodes = [draw(st.sampled_from([20, 10, 1, 80] if falls else [20, 10, 0, 1, 80]))]  # in twentieths
    for length in lengths:
        nodes.append(nodes[-1] + length)
    return tuple(node / 20 for node in (reversed(nodes) if falls else nodes))


def even_clocks() -> st.SearchStrategy[tuple[float, ...]]:
    """Rising and falling clocks of equal steps, on which the weights of multistep methods are small."""
    rising = st.sampled_from([(0.5, 0.75, 1.0, 1.25, 1.5), (1.0, 1.125)])
    return st.builds(lambda nodes, falls: nodes[::-1] if falls else nodes, rising, st.booleans())


def walks(
    *drifts: Formula,
    steps: tuple[int, int] = (1, 6),
    noisy: bool | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
    shapes: Sequence[tuple[int, ...]] = ((1,), (3,)),
    strided: bool = False,
) -> st.SearchStrategy[Walk]:
    """Walks under one of the drifts; noisy or not unless it is said which."""
    return st.builds(
        Walk,
        clocks(steps=steps),
        st.sampled_from(drifts or (TANGLED,)),
        st.booleans() if noisy is None else st.just(noisy),
        st.sampled_from(list(shapes)),
        st.sampled_from(list(dtypes)),
        st.booleans() if strided else st.just(False),
    )
