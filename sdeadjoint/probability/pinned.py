"""The steps of a sampler from states that are given: what a trajectory's probability is made of.

Given the trajectory, steps depend on each other through no state. Yet a multistep solver extrapolates from earlier
drifts, and the network's graph must not be kept for all steps at once. So the steps are a ``Recursion`` of their own,
each of which starts from the trajectory's state and not from where the last one ended: whatever differentiates a
sampler in the memory of one step differentiates this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..diffusion.equation import Diffusion
from ..equation import Equation
from ..solvers import Claims, Drift, Interval, Solver, State
from .joined import predictions


@dataclass(frozen=True)
class Group:
    """Hold some consecutive steps of a pinned equation, whose network calls are made together. It is their drift."""

    equation: Equation
    steps: tuple[int, ...]
    called: tuple[int, ...]
    path: tuple[Tensor, ...]

    def start(self, n: int) -> Tensor:
        """Return ``y_n`` in float64: the Gaussian's arithmetic is not the network's."""
        return self.equation.enter(self.path[n].double(), n)

    def drifts(self) -> dict[int, Tensor]:
        """Return ``F(s_n, y_n)`` in float64 at the nodes of which anything depends on them."""
        equation, nodes = self.equation, self.called
        if not nodes:
            return {}
        if isinstance(equation, Diffusion):
            found = predictions(equation, nodes, [self.path[n] for n in nodes])
        else:
            found = [equation.drift(n)(equation.clocks[n], equation.enter(self.path[n], n)) for n in nodes]
        return {n: F.double() for n, F in zip(nodes, found, strict=True)}

    def __call__(self, s: float, y: Tensor) -> Tensor:
        raise NotImplementedError("the steps of a group have a drift each")


@dataclass(frozen=True)
class Pinned(Equation):
    """The equation whose step g makes the means of group g, from the states of a path.

    Args:
        inner: the equation that the path was solved with.
        path: the user's states ``x_0 .. x_{N-1}``.
        spans: ``(first step, last step + 1)`` of each group.
        called: the nodes at which the network is evaluated.
    """

    inner: Equation
    path: tuple[Tensor, ...]
    spans: tuple[tuple[int, int], ...]
    called: frozenset[int]

    noise_clock = None
    start = None

    @property
    def clocks(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(float(g) for g in range(len(self.spans) + 1))

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0,) * (len(self.spans) + 1)

    @property
    def times(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(self.inner.times[n] for n in (*(a for a, _ in self.spans), self.spans[-1][1]))

    @property
    def tensors(self) -> dict[str, Any]:
        return {"inner": self.inner.tensors, "path": self.path}

    @property
    def module(self) -> Callable[..., Any] | None:
        return self.inner.module

    def on(self, tensors: Mapping[str, Any]) -> Pinned:
        return replace(self, inner=self.inner.on(tensors["inner"]), path=tuple(tensors["path"]))

    def starting_at(self, x: Any) -> Pinned:
        return self

    def drift(self, n: int) -> Drift:
        steps = tuple(range(*self.spans[n]))
        return Group(self.inner, steps, tuple(k for k in steps if k in self.called), self.path)


@dataclass(frozen=True)
class Pinning(Solver):
    """Take the steps of a group with another solver: its state is handed on, its solution is not.

    Args:
        base: the solver.
        clocks: of the equation's nodes.
        wanted: the steps whose means are returned.
    """

    base: Solver
    clocks: tuple[float, ...]
    wanted: frozenset[int]

    @property
    def claims(self) -> Claims:
        return self.base.claims

    @property
    def initial_state(self) -> State:
        return self.base.initial_state

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the means of the group's wanted steps, (steps, batch, ...), and the solver's state after them."""
        if not isinstance(drift, Group):
            return self.base.step(drift, interval, y, state)
        drifts, means = drift.drifts(), []
        for n in drift.steps:
            start = drift.start(n)
            at = Interval(self.clocks[n], self.clocks[n + 1])
            # Where the network was not called, nothing that is wanted depends on the drift.
            mean, state = self.base.step(_known(drifts.get(n, torch.zeros_like(start))), at, start, state)
            if n in self.wanted:
                means.append(mean)
        return torch.stack(means) if means else start.new_zeros(0, *start.shape), state


def _known(F: Tensor) -> Drift:
    return lambda s, y: F


def grouped(last: int, called: frozenset[int], together: int) -> tuple[tuple[int, int], ...]:
    """Cut the steps 0 .. last into groups of consecutive ones with at most so many network calls each."""
    cuts, calls = [0], 0
    for n in range(last + 1):
        calls += n in called
        if calls > together:
            cuts.append(n)
            calls = 1
    return tuple(pairwise([*cuts, last + 1]))


def called_nodes(solver: Solver, clocks: Sequence[float], wanted: Sequence[int]) -> frozenset[int]:
    """Return the nodes whose drift the means of the wanted steps depend on.

    Found by running the solver on numbers. It refuses a solver whose step is not ``N(mean, dnu)`` given the states so
    far: one that calls the drift anywhere but at the step's start, or remembers anything of the step's noise.
    """
    found: set[int] = set()
    leaves: list[Tensor] = []
    state = solver.initial_state
    with torch.enable_grad():
        for n in range(max(wanted) + 1):
            # Each state is given: what a solver remembers of earlier ones is their drifts.
            y = torch.full((1,), 1.0 + n, dtype=torch.float64, device="cpu", requires_grad=True)
            dB = torch.full((1,), 0.7, dtype=torch.float64, device="cpu", requires_grad=True)
            probe = _Probe(clocks[n], y)
            end, state = solver.step(probe, Interval(clocks[n], clocks[n + 1], dB), y, state)
            if solver.claims.levy != "none" or not (probe.once and _adds(end, state, dB)):
                raise ValueError(
                    f"solver: a step of {solver!r} sees its noise before its last network call, so it is not Gaussian "
                    "and has no density in closed form; pass Euler(), DPMSolverPP2M() or AdamsBashforth(order)"
                )
            leaves.append(probe.leaf)
            if n in wanted and end.requires_grad:
                grads = torch.autograd.grad(end, leaves, retain_graph=True, allow_unused=True)
                found.update(m for m, grad in enumerate(grads) if grad is not None)
    return frozenset(found)


class _Probe:
    """A drift that is one leaf, and notes whether it was called once and where it should."""

    def __init__(self, s: float, y: Tensor) -> None:
        self.leaf = torch.zeros(1, dtype=torch.float64, device="cpu", requires_grad=True)
        self.once = False
        self._calls, self._s, self._y = 0, s, y

    def __call__(self, s: float, y: Tensor) -> Tensor:
        self._calls += 1
        self.once = self._calls == 1 and s == self._s and torch.equal(y, self._y)
        return self.leaf


def _adds(end: Tensor, state: State, dB: Tensor) -> bool:
    """Whether a step adds the increment to its solution, once, and keeps nothing of it."""

    def slope(value: Tensor) -> float:
        if not value.requires_grad:
            return 0.0
        (grad,) = torch.autograd.grad(value.sum(), dB, retain_graph=True, allow_unused=True)
        return 0.0 if grad is None else float(grad)

    return slope(end) == 1.0 and all(slope(value) == 0.0 for value in _tensors(state))


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in _tensors(part)] if isinstance(state, tuple | list) else []
