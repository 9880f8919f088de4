"""The backward sweep of ``Checkpoint``: stages are recomputed and pulled back, last step first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..discretization import Discretization
from ..noise import Increment
from .binomial import split
from .forward import Stage, Swept, evaluate
from .leaves import dependencies, leaf
from .surroundings import Autocast, GeneratorStates, generators_untouched


@dataclass(frozen=True)
class Plan:
    """One frozen solve, as both sweeps need it.

    Args:
        recursion: the discretized sampler.
        inputs: the tensors that get gradients, each once.
        watched: tensors without gradients whose change between the sweeps would change the function.
        snapshots: how many stages may be stored, the first included.
        keep: whether every state is an output.
        autocast: as it was in the forward sweep.
        borrows_graph: whether the network reads tensors computed outside of it, whose graph must outlive each step.
    """

    recursion: Discretization
    inputs: tuple[Tensor, ...]
    watched: tuple[Tensor, ...]
    snapshots: int
    keep: bool
    autocast: Autocast
    borrows_graph: bool


class Replay(torch.autograd.Function):
    """``apply(plan, swept, *plan.inputs)``: the forward sweep's outputs, ``(y_N,)`` or all of ``y_1, ..., y_N``."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, swept: Swept, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        # Saved rather than kept: autograd then frees them after backward, refuses a second backward, and refuses
        # tensors that were changed in place. Only snapshots that the backward sweep replaces by later ones are kept
        # by hand, so that it can let go of them; the first of them is x_T, from which all others can be had again.
        ctx.complete = len(swept.stages) == plan.recursion.steps
        ctx.stages = nests.emptied(swept.stages) if ctx.complete else swept.stages
        stored = nests.tensors(swept.stages) if ctx.complete else ()
        ctx.save_for_backward(*inputs, *plan.watched, swept.outputs[-1], *stored)
        return swept.outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Checkpoint() gives first derivatives only, but backward was called with create_graph=True; "
                "pass adjoint=Direct() for second derivatives"
            )
        plan: Plan = ctx.plan
        saved = iter(ctx.saved_tensors[len(plan.inputs) + len(plan.watched) :])
        reached = next(saved)
        stack = nests.refilled(ctx.stages, saved) if ctx.complete else ctx.stages
        if not ctx.complete:
            ctx.stages = stack[:1]
        totals = Totals(plan)
        cotangents: list[Tensor | None] = [grads[-1]]
        for n, stage in backwards(plan, stack):
            if any(cotangent is not None for cotangent in cotangents):
                cotangents = pull_back(plan, n, stage, reached, cotangents, totals)
            if plan.keep and n > 0 and (grad := grads[n - 1]) is not None:
                cotangents[0] = grad if cotangents[0] is None else cotangents[0] + grad
            reached = stage.carry.y
        return (None, None, *totals.grads)


class Totals:
    """Gradients of the inputs, summed over the steps."""

    def __init__(self, plan: Plan) -> None:
        self.grads: list[Tensor | None] = [None] * len(plan.inputs)
        self.noise = () if plan.recursion.noise is None else plan.recursion.noise.tensors
        self.slots = {id(tensor): k for k, tensor in enumerate(plan.inputs)}

    def add(self, grads: list[Tensor | None]) -> None:
        """Add one step's gradients of the inputs, but for what reaches the noise's tensors as noise."""
        for k, grad in enumerate(grads):
            if grad is not None:
                total = self.grads[k]
                # Autograd may hand out one tensor for two inputs, so it is copied before anything is added to it.
                self.grads[k] = grad.clone() if total is None else total.add_(grad)

    def add_noise(self, n: int, grads: list[Tensor | None]) -> None:
        """Add the gradients of step n's noise in their places."""
        for tensor, grad in zip(self.noise, grads, strict=False):
            k = self.slots.get(id(tensor))
            if k is not None and grad is not None:
                total = self.grads[k]
                if total is None:
                    total = self.grads[k] = torch.zeros_like(tensor)
                total[n] += grad


def backwards(plan: Plan, stack: list[tuple[int, Stage]]) -> Iterator[tuple[int, Stage]]:
    """``(n, stage before step n)`` for n from the last step to 0. The stack of stored stages is used up.

    The forward sweep may hand over the stage before the last step on top of as many as are to be stored.
    """
    for n in reversed(range(plan.recursion.steps)):
        at, stage = stack[-1]
        while at < n:
            free = plan.snapshots - len(stack)
            ahead = split(n + 1 - at, free + 1) if free else n - at
            stage = advance(plan, stage, at, at + ahead)
            at += ahead
            if free:
                stack.append((at, stage))
        if stack[-1][0] == n:
            stack.pop()
        yield n, stage


def advance(plan: Plan, stage: Stage, start: int, stop: int) -> Stage:
    """Recompute the stage before step ``stop``, as the forward sweep did."""
    carry, device = stage.carry, stage.carry.y.device
    with generators_untouched(device):
        stage.generators.restore()
        for n in range(start, stop):
            _, out = evaluate(plan.recursion, n, carry, plan.autocast)
            carry = nests.map_tensors(Tensor.detach, out)
        return Stage(carry, GeneratorStates.current(device, stage.generators))


def pull_back(
    plan: Plan, n: int, stage: Stage, reached: Tensor, cotangents: list[Tensor | None], totals: Totals
) -> list[Tensor | None]:
    """Cotangents of ``carry_n`` from those of ``carry_{n+1}``; the inputs' gradients are added to the totals.

    ``carry_0`` is x_T, itself an input, so nothing is returned for n = 0.
    """
    with torch.enable_grad():
        carry = stage.carry if n == 0 else nests.map_tensors(leaf, stage.carry)
        increment, noise = _differentiable(plan, n)
        with generators_untouched(reached.device), plan.autocast.replayed():
            stage.generators.restore()
            out = plan.recursion.step(n, carry, increment)
    _refuse_mismatch(plan, n, out.y.detach(), reached)
    reached_by = [
        (o, a) for o, a in zip(nests.tensors(out), cotangents, strict=False) if a is not None and o.requires_grad
    ]
    if not reached_by:
        return [None]
    outputs, seeds = zip(*reached_by, strict=True)
    own = [] if n == 0 else list(nests.tensors(carry))
    known = [*own, *noise, *plan.inputs]
    if dependencies(outputs, known).leaves:
        raise RuntimeError(
            f"network: recomputing step {n} of {plan.recursion.steps} used a tensor that requires a gradient and that "
            "the forward pass did not use there; it keeps tensors of earlier evaluations: make it a function of "
            "(x, t, cond), or use adjoint=Direct()"
        )
    grads: list[Tensor | None] = [
        *torch.autograd.grad(outputs, known, seeds, allow_unused=True, retain_graph=plan.borrows_graph)
    ]
    totals.add_noise(n, grads[len(own) : len(own) + len(noise)])
    totals.add(grads[len(own) + len(noise) :])
    return grads[: len(own)] if n else []


def _differentiable(plan: Plan, n: int) -> tuple[Increment | None, list[Tensor]]:
    """Step n's noise, cut from the graph of the noise's own tensors, and the leaves to differentiate instead."""
    noise = plan.recursion.noise
    increment = plan.recursion.increment(n)
    if noise is None or increment is None or not any(tensor.requires_grad for tensor in noise.tensors):
        return increment, []
    increment = nests.map_tensors(leaf, increment)
    return increment, list(nests.tensors(increment))


def _refuse_mismatch(plan: Plan, n: int, recomputed: Tensor, reached: Tensor) -> None:
    """A recomputation may differ by the round-off of nondeterministic kernels, and by nothing else.

    The bound is 64 ulps of the state in the Euclidean norm, at most 3 %: far above what summation order
    can change, far below what another dropout mask, a cache or a changed weight does.
    """
    dtypes = [reached.dtype, *(dtype for _, enabled, dtype in plan.autocast.modes if enabled)]
    bound = min(64 * max(torch.finfo(dtype).eps for dtype in dtypes), 0.03)
    wide = torch.promote_types(reached.dtype, torch.float32)
    error = torch.linalg.vector_norm(recomputed.to(wide) - reached.to(wide))
    if not error <= bound * torch.linalg.vector_norm(reached.to(wide)):
        raise RuntimeError(
            f"network: recomputing step {n} of {plan.recursion.steps} gave another state than the forward pass "
            f"(difference {float(error):.3g}), so the gradient would be another function's: it keeps a cache or "
            "counter, draws from a generator of its own, or was changed in between; make it a function of "
            "(x, t, cond), or use adjoint=Direct()"
        )
