"""The adjoint equation: the drift and its vector-Jacobian products at one point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ... import nests
from ...conditioning import scheduled
from ...solvers import Interval, Solver
from ...solvers.facts import Weights, slot_weights
from ..replay.backward import BackwardSweep, Plan, Totals
from ..replay.graphs import dependencies
from ..replay.leaves import leaf
from ..replay.surroundings import GeneratorStates
from .course import Course
from .recorded import Recorded

RANDOM = (
    "network: it draws from torch's global generators (dropout in training mode?), and the adjoint equation of a "
    "random function has no meaning; call network.eval(), or pass adjoint=Checkpoint(), which replays the draws"
)


class Pulled(NamedTuple):
    """``F``, ``(dF/dy)^T a``, and ``(dF/dp)^T a`` for each tensor p that F depends on."""

    F: Tensor
    pulled: Tensor
    tensors: list[Tensor]
    grads: Sequence[Tensor | None]


@dataclass(frozen=True)
class AdjointEquation:
    """``dy = F(s, y) ds`` and ``da = -(dF/dy)^T a ds`` on a course, with ``dL/dp = int (dF/dp)^T a ds``.

    Args:
        sweep: of the solve that is differentiated; its totals collect the ``dL/dp``.
        course: coordinates and nodes.
        recorded: the sampler's states; None if y is part of the solution.
    """

    sweep: BackwardSweep
    course: Course
    recorded: Recorded | None

    @property
    def plan(self) -> Plan:
        return self.sweep.plan

    @property
    def totals(self) -> Totals:
        return self.sweep.totals

    @property
    def slotted(self) -> frozenset[int]:
        """Identities of the arguments that are conditioning of single steps."""
        isolated, given = self.plan.isolated, self.plan.recursion.equation.tensors
        inside = {id(copy) for found in scheduled(given) for copy in nests.tensors(found.values)}
        pairs = zip(isolated.originals, isolated.copies, strict=True)
        return frozenset(id(original) for original, copy in pairs if id(copy) in inside)

    def slope(self, m: int, s: float, y: Tensor | None, a: Tensor) -> Pulled:
        """One network call and one vector-Jacobian product, at clock value s of step m; ``y`` if it is not recorded."""
        plan = self.plan
        if y is None:
            assert self.recorded is not None
            t, weight = self.course.equation.at(m, s)
            y = self.recorded.at(t) / weight
        point = leaf(y)
        generators, registered = GeneratorStates.current(point.device), self.sweep.hooks.registered()
        with torch.enable_grad(), plan.autocast.replayed():
            F = self.course.equation.drift(m)(s, point)
        if not generators.equals(GeneratorStates.current(point.device)):
            raise RuntimeError(RANDOM)
        self.sweep.hooks.forget_others(registered)
        plan.isolated.drop_hooks()
        if not F.requires_grad:
            return Pulled(F, torch.zeros_like(a), [], [])
        copies = plan.isolated.copies
        found = dependencies([F]).leaves_but([point, *copies])
        if any(id(tensor) not in self.totals.slots for tensor in found):
            raise RuntimeError(
                f"network: at clock {s}, between t={self.course.times[m]} and t={self.course.times[m + 1]}, it used a "
                "tensor that requires a gradient and that the sampler's evaluations did not use: a cache kept between "
                "calls, or a tensor read at some times only; make it a function of (x, t, cond) with its weights as "
                "parameters of a module, or pass adjoint=Checkpoint()"
            )
        wanted = [point, *copies, *found]
        pulled, *grads = self.sweep.differentiate([F], wanted, [a], retain_graph=plan.swept.borrows_graph)
        return Pulled(
            F.detach(), torch.zeros_like(a) if pulled is None else pulled, [*plan.isolated.originals, *found], grads
        )


class March(ABC):
    """Solves an equation step by step, from data to noise."""

    @abstractmethod
    def advance(self, m: int, y: Tensor | None, a: Tensor) -> tuple[Tensor | None, Tensor]:
        """``y`` (None if recorded) and ``a`` at node m from those at node m + 1."""

    @abstractmethod
    def restart(self) -> None:
        """Forget what was remembered: a has jumped."""

    @property
    @abstractmethod
    def remembers(self) -> bool:
        """Whether the next step depends on more than ``y`` and ``a``."""


class SolverMarch(March):
    """The march of one of our solvers.

    It knows nothing of adjoints: its state is ``a``, or ``(y, a)`` stacked. Each vector-Jacobian product is at once
    added to the totals, with the weight that the solver gives it.
    """

    def __init__(self, equation: AdjointEquation, solver: Solver, weights: Weights) -> None:
        self._equation, self._solver, self._weights = equation, solver, weights
        self._slot_weights = slot_weights(weights, equation.course.clocks)
        self._slotted = equation.slotted
        self._state = solver.initial_state

    def restart(self) -> None:
        self._state = self._solver.initial_state

    @property
    def remembers(self) -> bool:
        return len(self._state) > 0

    def advance(self, m: int, y: Tensor | None, a: Tensor) -> tuple[Tensor | None, Tensor]:
        weights = zip(self._weights[m], self._slot_weights[m], strict=True)

        def slope(s: float, y: Tensor | None, a: Tensor) -> Pulled:
            found, (weight, slot_weight) = self._equation.slope(m, s, y, a), next(weights)
            scaled = [
                None if grad is None else -(slot_weight if id(tensor) in self._slotted else weight) * grad
                for tensor, grad in zip(found.tensors, found.grads, strict=True)
            ]
            self._equation.totals.add(found.tensors, scaled)
            return found

        if y is None:
            interval = self._equation.course.still(m).reversed
            a, self._state = self._solver.step(lambda s, a: -slope(s, None, a).pulled, interval, a, self._state)
            return None, a

        def both(s: float, pair: Tensor) -> Tensor:
            found = slope(s, *pair.unbind())
            return torch.stack([found.F, -found.pulled])

        pair, self._state = self._solver.step(both, self._driven(m, y), torch.stack([y, a]), self._state)
        return pair[0], pair[1]

    def _driven(self, m: int, y: Tensor) -> Interval:
        """Step m backwards, with the replayed noise on y and none on a."""
        course, recursion = self._equation.course, self._equation.plan.recursion
        if recursion.equation.noise_clock is None:
            return course.still(m).reversed
        forwards = course.noisy(recursion, m, y)
        dB, H = (
            torch.stack([part, torch.zeros_like(part)]) if isinstance(part, Tensor) else part
            for part in (forwards.dB, forwards.H)
        )
        return Interval(forwards.s0, forwards.s1, dB, H).reversed
