"""Stages from snapshots: some are stored, placed by the binomial schedule, and the others recomputed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ... import nests
from ...recursion import Carry
from .backward import Held, Plan, Retrieval, pull_back_all, refuse_second
from .leaves import Stage, evaluate, evaluate_without_graph
from .second import gradient
from .surroundings import GeneratorStates, generators_untouched


class HasCarry(Protocol):
    """A stage, or a stage with more."""

    @property
    def carry(self) -> Carry: ...


T = TypeVar("T", bound=HasCarry)


@dataclass(frozen=True)
class Snapshots(Retrieval):
    """At most ``count`` stages at any time, the first included, placed by the binomial schedule.

    ``on_host``: they are stored on the CPU, and moved over when they are needed.
    """

    count: int
    on_host: bool = False

    def stored(self, first: int, steps: int) -> frozenset[int]:
        return frozenset(first + n for n in positions(steps - first, self.count))

    def put(self, stage: Stage) -> Stage:
        return stage.on(torch.device("cpu")) if self.on_host else stage

    def permanent(self, stages: list[tuple[int, Stage]]) -> list[tuple[int, Stage]]:
        """The first, from which all others can be had again."""
        return stages[:1]

    def gradients(
        self, held: Held, inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        if not torch.is_grad_enabled():
            return pull_back_all(held, grads)
        if held.plan.first > 0:
            refuse_second()
        return gradient(held, self.doubled, inputs, grads)

    @property
    def doubled(self) -> Snapshots:
        """Those of states with their tangents, in three tensors for each snapshot of a gradient.

        To advance a tangent costs four steps or more. Half as many snapshots again leave it two thirds as often to do.
        """
        return Snapshots(max(1, 3 * self.count // 2), self.on_host)

    def backwards(self, plan: Plan, stack: list[tuple[int, Stage]], end: Tensor) -> Iterator[tuple[int, Stage, Tensor]]:
        if not self.on_host:
            return self.in_reverse(plan, stack, end, partial(advance, plan))
        return self._from_the_host(plan, stack, end)

    def _from_the_host(
        self, plan: Plan, stack: list[tuple[int, Stage]], end: Tensor
    ) -> Iterator[tuple[int, Stage, Tensor]]:
        device = end.device

        def advanced(stage: Stage, start: int, stop: int) -> Stage:
            return self.put(advance(plan, stage.on(device), start, stop))

        for n, stage, _ in self.in_reverse(plan, stack, end, advanced):
            near = stage.on(device)
            yield n, near, end
            end = near.carry.y

    def in_reverse(
        self, plan: Plan, stack: list[tuple[int, T]], end: Tensor, advance: Callable[[T, int, int], T]
    ) -> Iterator[tuple[int, T, Tensor]]:
        """The forward sweep may hand over the stage before the last step on top of as many as are to be stored.

        ``advance(stage, start, stop)``: the stage before step ``stop`` from the one before step ``start``.
        """
        for n in reversed(range(plan.first, plan.recursion.steps)):
            at, stage = stack[-1]
            while at < n:
                free = self.count - len(stack)
                ahead = split(n + 1 - at, free + 1) if free else n - at
                stage = advance(stage, at, at + ahead)
                at += ahead
                if free:
                    stack.append((at, stage))
            if stack[-1][0] == n:
                stack.pop()
            yield n, stage, end
            end = stage.carry.y


def advance(plan: Plan, stage: Stage, start: int, stop: int) -> Stage:
    """Recompute the stage before step ``stop``, as the forward sweep did."""
    carry, device, swept = stage.carry, stage.carry.y.device, plan.swept
    with ExitStack() as stack:
        stack.enter_context(swept.state.swapped(stage.held))
        draws = any(trace.draws for trace in swept.traces[start:stop])
        if draws:
            stack.enter_context(generators_untouched(device))
            stage.generators.restore()
        for n in range(start, stop):
            if swept.traces[n].is_unexamined:
                carry = evaluate_without_graph(plan.isolated, n, carry, plan.autocast)
            else:
                done = evaluate(plan.isolated, n, carry, swept.traces[n].wanted, plan.autocast, swept.saving)
                carry = nests.map_tensors(Tensor.detach, done.out)
            following = swept.traces[n + 1]
            swept.state.put(following.held)
            if draws and following.generators is not None:
                following.generators.restore()
        plan.isolated.drop_hooks()
        generators = GeneratorStates.current(device, stage.generators) if draws else stage.generators
        return Stage(carry, generators, swept.state.values())


def repeats(length: int, snapshots: int) -> int:
    """The smallest r with ``length <= beta(snapshots, r) = C(snapshots + r, snapshots)``: a step's most advances."""
    r = 0
    while comb(snapshots + r, snapshots) < length:
        r += 1
    return r


def advances(length: int, snapshots: int) -> int:
    """The least number of forward steps that reverses ``length`` steps with ``snapshots`` states, the first included.

    ``r length - beta(snapshots + 1, r - 1)``, ``r = repeats(length, snapshots)``; the differentiated evaluation of each
    step is not counted. Source: Griewank and Walther (2000), Proposition 1.
    """
    r = repeats(length, snapshots)
    return r * length - comb(snapshots + r, snapshots + 1) if r else 0


def split(length: int, snapshots: int) -> int:
    """How far to advance from a stored state before storing the next, with ``snapshots >= 2``, that one included.

    Any m with ``beta(c, r-2) <= m <= beta(c, r-1)`` and ``beta(c-1, r-1) <= length - m <= beta(c-1, r)`` is optimal
    (Griewank and Walther (2000), section 3); the largest is taken, so that the most states lie behind it.
    """
    c, r = snapshots, repeats(length, snapshots)
    return min(comb(c + r - 1, c), length - comb(c + r - 2, c - 1))


def positions(length: int, snapshots: int) -> list[int]:
    """The steps whose starting states the first forward sweep stores; the first is 0."""
    stored, at = [0], 0
    for left in range(snapshots, 1, -1):
        if length - at <= 1:
            break
        at += split(length - at, left)
        stored.append(at)
    return stored
