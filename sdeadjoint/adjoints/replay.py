"""The backward sweep of ``Checkpoint``: stages are recomputed and pulled back, last step first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..discretization import Discretization
from .binomial import split
from .forward import Stage, Swept, evaluate, training_modes
from .isolation import Isolated, isolate
from .leaves import dependencies, hooks_off
from .surroundings import Autocast, GeneratorStates, generators_untouched


@dataclass(frozen=True)
class Plan:
    """One frozen solve, as the backward sweep needs it.

    Args:
        recursion: the discretized sampler.
        x_T: where it starts.
        inputs: the tensors that get gradients, each once.
        watched: tensors without gradients whose change between the sweeps would change the function.
        snapshots: how many stages may be stored, the first included.
        keep: whether every state is an output.
        autocast: as it was in the forward sweep.
        borrows_graph, differentiates: see ``Swept``.
        modes: which of the network's modules were in training mode.
    """

    recursion: Discretization
    x_T: Tensor
    inputs: tuple[Tensor, ...]
    watched: tuple[Tensor, ...]
    snapshots: int
    keep: bool
    autocast: Autocast
    borrows_graph: bool
    differentiates: bool
    modes: tuple[bool, ...]

    def refuse_changes(self) -> None:
        """Raise if flags of tensors or modules are not those of the forward sweep."""
        flags = [*(tensor.requires_grad for tensor in self.inputs), *(not t.requires_grad for t in self.watched)]
        if not all(flags):
            raise RuntimeError(
                "requires_grad of a parameter, of x_T, of cond or of the noise was changed between the forward and the "
                "backward pass; change it before sample or after backward, or use adjoint=Direct()"
            )
        if training_modes(self.recursion) != self.modes:
            raise RuntimeError(
                "network: train() or eval() was called between the forward and the backward pass, so the recomputed "
                "function would be another; call it before sample or after backward, or use adjoint=Direct()"
            )


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
        plan.refuse_changes()
        saved = iter(ctx.saved_tensors[len(plan.inputs) + len(plan.watched) :])
        reached = next(saved)
        stack = nests.refilled(ctx.stages, saved) if ctx.complete else ctx.stages
        if not ctx.complete:
            ctx.stages = stack[:1]
        totals = Totals(plan)
        cotangents: list[Tensor | None] = [grads[-1]]
        isolated = isolate(plan.recursion, plan.x_T)
        with hooks_off(plan.inputs):
            for n, stage in backwards(plan, isolated, stack):
                if any(cotangent is not None for cotangent in cotangents):
                    cotangents = pull_back(plan, isolated, n, stage, reached, cotangents, totals)
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

    def add(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add one step's gradients of inputs."""
        for tensor, grad in zip(tensors, grads, strict=True):
            if grad is None:
                continue
            k = self.slots[id(tensor)]
            total = self.grads[k]
            if total is None:
                # Autograd may hand out one tensor for two inputs: a copy, before anything is added to it.
                self.grads[k] = grad.clone()
            elif total.is_sparse and not grad.is_sparse:
                self.grads[k] = grad + total
            else:
                total.add_(grad)

    def add_noise(self, n: int, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of step n's noise in their places."""
        for tensor, grad in zip(self.noise, grads, strict=False):
            k = self.slots.get(id(tensor))
            if k is not None and grad is not None:
                total = self.grads[k]
                if total is None:
                    total = self.grads[k] = torch.zeros_like(tensor)
                total[n] += grad


def backwards(plan: Plan, isolated: Isolated, stack: list[tuple[int, Stage]]) -> Iterator[tuple[int, Stage]]:
    """``(n, stage before step n)`` for n from the last step to 0. The stack of stored stages is used up.

    The forward sweep may hand over the stage before the last step on top of as many as are to be stored.
    """
    for n in reversed(range(plan.recursion.steps)):
        at, stage = stack[-1]
        while at < n:
            free = plan.snapshots - len(stack)
            ahead = split(n + 1 - at, free + 1) if free else n - at
            stage = advance(plan, isolated, stage, at, at + ahead)
            at += ahead
            if free:
                stack.append((at, stage))
        if stack[-1][0] == n:
            stack.pop()
        yield n, stage


def advance(plan: Plan, isolated: Isolated, stage: Stage, start: int, stop: int) -> Stage:
    """Recompute the stage before step ``stop``, as the forward sweep did."""
    carry, device = stage.carry, stage.carry.y.device
    with generators_untouched(device):
        stage.generators.restore()
        for n in range(start, stop):
            *_, out = evaluate(isolated, n, carry, plan.autocast, keep=plan.differentiates)
            carry = nests.map_tensors(Tensor.detach, out)
        return Stage(carry, GeneratorStates.current(device, stage.generators))


def pull_back(
    plan: Plan,
    isolated: Isolated,
    n: int,
    stage: Stage,
    reached: Tensor,
    cotangents: list[Tensor | None],
    totals: Totals,
) -> list[Tensor | None]:
    """Cotangents of ``carry_n`` from those of ``carry_{n+1}``; the inputs' gradients are added to the totals.

    ``carry_0`` is x_T, itself an input, so nothing is returned for n = 0.
    """
    entry = isolated.entry(n, stage.carry)
    increment, noise = isolated.increment(n)
    with torch.enable_grad(), generators_untouched(reached.device), plan.autocast.replayed():
        stage.generators.restore()
        out = isolated.recursion.step(n, entry, increment)
    _refuse_mismatch(plan, n, out.y.detach(), reached)
    pairs = [(o, a) for o, a in zip(nests.tensors(out), cotangents, strict=False) if a is not None and o.requires_grad]
    if not pairs:
        return [None]
    outputs, seeds = zip(*pairs, strict=True)
    own = [] if n == 0 else list(nests.tensors(entry))
    found = dependencies(outputs).leaves_but([*own, *noise, *isolated.copies])
    if any(id(leaf) not in totals.slots for leaf in found):
        raise RuntimeError(
            f"network: recomputing step {n} of {plan.recursion.steps} used a tensor that requires a gradient and that "
            "the forward pass did not use there; it keeps tensors of earlier evaluations: make it a function of "
            "(x, t, cond), or use adjoint=Direct()"
        )
    wanted = [*own, *noise, *isolated.copies, *found]
    grads = iter(
        torch.autograd.grad(outputs, wanted, seeds, allow_unused=True, retain_graph=plan.borrows_graph)
        if wanted
        else ()
    )
    back: list[Tensor | None] = [next(grads) for _ in own]
    totals.add_noise(n, [next(grads) for _ in noise])
    totals.add([*isolated.originals, *found], list(grads))
    return back


def _refuse_mismatch(plan: Plan, n: int, recomputed: Tensor, reached: Tensor) -> None:
    """A recomputation may differ by the round-off of nondeterministic kernels, and by nothing else.

    The bound is 64 ulps of the state's dtype, or of float32 if that is wider, in the Euclidean norm. Accelerators sum
    in changing order, which may flip last bits of narrow dtypes: there 2^-10, which other dropout masks still exceed.
    """
    narrow = reached.dtype == torch.bfloat16 or plan.autocast.enabled
    bound = (
        2**-10
        if narrow and reached.device.type != "cpu"
        else 64 * torch.finfo(torch.promote_types(reached.dtype, torch.float32)).eps
    )
    wide = torch.promote_types(reached.dtype, torch.float32)
    error = torch.linalg.vector_norm(recomputed.to(wide) - reached.to(wide))
    if not error <= bound * torch.linalg.vector_norm(reached.to(wide)):
        raise RuntimeError(
            f"network: recomputing step {n} of {plan.recursion.steps} gave another state than the forward pass "
            f"(difference {float(error):.3g}), so the gradient would be another function's: it keeps a cache or "
            "counter, draws from a generator of its own, or was changed in between; make it a function of "
            "(x, t, cond), or use adjoint=Direct()"
        )
