"""Stages from snapshots: some are stored, the others recomputed from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ... import nests
from .binomial import positions, split
from .forward import Stage, evaluate
from .plan import Plan, Retrieval
from .surroundings import GeneratorStates, generators_untouched


@dataclass(frozen=True)
class Snapshots(Retrieval):
    """At most ``count`` stages at any time, the first included, placed by the binomial schedule."""

    count: int

    def stored(self, first: int, steps: int) -> frozenset[int]:
        return frozenset(first + n for n in positions(steps - first, self.count))

    def permanent(self, stages: list[tuple[int, Stage]]) -> list[tuple[int, Stage]]:
        """The first, from which all others can be had again."""
        return stages[:1]

    def backwards(self, plan: Plan, stack: list[tuple[int, Stage]], end: Tensor) -> Iterator[tuple[int, Stage, Tensor]]:
        """The forward sweep may hand over the stage before the last step on top of as many as are to be stored."""
        for n in reversed(range(plan.first, plan.recursion.steps)):
            at, stage = stack[-1]
            while at < n:
                free = self.count - len(stack)
                ahead = split(n + 1 - at, free + 1) if free else n - at
                stage = advance(plan, stage, at, at + ahead)
                at += ahead
                if free:
                    stack.append((at, stage))
            if stack[-1][0] == n:
                stack.pop()
            yield n, stage, end
            end = stage.carry.y


def advance(plan: Plan, stage: Stage, start: int, stop: int) -> Stage:
    """Recompute the stage before step ``stop``, as the forward sweep did."""
    carry, device = stage.carry, stage.carry.y.device
    with generators_untouched(device):
        stage.generators.restore()
        for n in range(start, stop):
            out = evaluate(plan.isolated, n, carry, plan.autocast, keep=plan.differentiates).out
            carry = nests.map_tensors(Tensor.detach, out)
        return Stage(carry, GeneratorStates.current(device, stage.generators))
