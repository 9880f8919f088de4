"""The backward sweep of the exact adjoints: stages are found again, recomputed and pulled back, last step first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import nests
from ...discretization import Discretization
from ...integrate import Observer
from ..direct import Direct
from .forward import Evaluation, Stage, Sweep, Swept, sweep, training_modes
from .isolation import arguments, isolate
from .leaves import dependencies, distinct, hooks_off
from .plan import Plan, Retrieval
from .surroundings import Autocast, generators_untouched
from .totals import Totals


@dataclass(frozen=True)
class Replayed:
    """Runs a recursion without its activations, for a backward sweep that has its stages from ``retrieval``.

    Args:
        retrieval: where stages come from.
        graphs: bytes for whole graphs of the latest steps.
        last: how many steps are differentiated, counted from the end; None for all.
        refuse_random: the sentence for networks that draw from torch's global generators; empty if they may.
    """

    retrieval: Retrieval
    graphs: int = 0
    last: int | None = None
    refuse_random: str = ""

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return Direct().solve(recursion, x_T, keep=keep, observe=observe)
        first = 0 if self.last is None else max(0, recursion.steps - self.last)
        swept, plan = sweep_and_plan(
            recursion, x_T, self.retrieval, keep=keep, observe=observe, graphs=self.graphs, first=first
        )
        if swept.random and self.refuse_random:
            raise RuntimeError(self.refuse_random)
        if plan is None:
            return swept.outputs
        outputs: tuple[Tensor, ...] = Replay.apply(plan, swept, *plan.inputs)
        return outputs


def sweep_and_plan(
    recursion: Discretization,
    x_T: Tensor,
    retrieval: Retrieval,
    *,
    keep: bool,
    observe: Observer,
    states: bool = False,
    graphs: int = 0,
    first: int = 0,
) -> tuple[Swept, Plan | None]:
    """The forward sweep, and the plan of the backward pass unless nothing requires a gradient.

    ``states``: the sweep returns all states, although only the last (``keep=False``) is an output. ``graphs``,
    ``first``: see ``Sweep``.
    """
    noise = () if recursion.noise is None else recursion.noise.tensors
    parameters = [*recursion.denoiser.parameters(), *recursion.denoiser.buffers()]
    declared = distinct([*arguments(recursion, x_T), *parameters, *noise])
    autocast, isolated = Autocast.current(x_T.device), isolate(recursion, x_T)
    stored = retrieval.stored(first, recursion.steps)
    swept = sweep(
        isolated, recursion.start(x_T), Sweep(stored, keep or states, autocast, observe, graphs=graphs, first=first)
    )
    inputs = distinct([*(tensor for tensor in declared if tensor.requires_grad), *swept.leaves])
    if not inputs:
        return swept, None
    return swept, Plan(
        isolated,
        tuple(inputs),
        # Inference tensors have no version to watch, and can be changed in inference mode alone.
        watched=tuple(tensor for tensor in declared if not (tensor.requires_grad or tensor.is_inference())),
        retrieval=retrieval,
        keep=keep,
        autocast=autocast,
        borrows_graph=swept.borrows_graph,
        differentiates=swept.differentiates,
        modes=training_modes(recursion),
        first=first,
    )


class Replay(torch.autograd.Function):
    """``apply(plan, swept, *plan.inputs)``: the forward sweep's outputs, ``(y_N,)`` or all of ``y_1, ..., y_N``."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, swept: Swept, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.kept = swept.kept
        ctx.set_materialize_grads(False)
        # Saved rather than kept: autograd then frees them after backward, refuses a second backward, and refuses
        # tensors that were changed in place. Only snapshots that the backward sweep replaces by later ones are kept
        # by hand, so that it can let go of them; the first of them is x_T, from which all others can be had again.
        ctx.complete = len(swept.stages) == plan.recursion.steps - plan.first
        ctx.stages = nests.emptied(swept.stages) if ctx.complete else swept.stages
        stored = nests.tensors(swept.stages) if ctx.complete else ()
        ctx.save_for_backward(*inputs, *plan.watched, swept.outputs[-1], *stored)
        return swept.outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        plan.check()
        saved = iter(ctx.saved_tensors[len(plan.inputs) + len(plan.watched) :])
        end = next(saved)
        stack = nests.refilled(ctx.stages, saved) if ctx.complete else list(ctx.stages)
        if not ctx.complete:
            ctx.stages = plan.retrieval.permanent(ctx.stages)
        totals = Totals(plan.inputs, plan.recursion)
        cotangents: list[Tensor | None] = [grads[-1]]
        with hooks_off(plan.inputs):
            for n, stage, reached in plan.retrieval.backwards(plan, stack, end):
                done = ctx.kept.pop(n, None)
                if any(cotangent is not None for cotangent in cotangents):
                    done = done or recompute(plan, n, stage, reached)
                    cotangents = pull_back(plan, n, done, cotangents, totals)
                del done
                if plan.keep and n > 0 and (grad := grads[n - 1]) is not None:
                    cotangents[0] = grad if cotangents[0] is None else cotangents[0] + grad
        return (None, None, *totals.grads)


def recompute(plan: Plan, n: int, stage: Stage, reached: Tensor) -> Evaluation:
    """Step n with its graph, as it was in the forward sweep; ``reached`` is where it must lead."""
    entry = plan.isolated.entry(n, stage.carry)
    increment, noise = plan.isolated.increment(n)
    with torch.enable_grad(), generators_untouched(reached.device), plan.autocast.replayed():
        stage.generators.restore()
        out = plan.recursion.step(n, entry, increment)
    _refuse_mismatch(plan, n, out.y.detach(), reached)
    return Evaluation(entry, noise, out)


def pull_back(
    plan: Plan, n: int, done: Evaluation, cotangents: list[Tensor | None], totals: Totals
) -> list[Tensor | None]:
    """Cotangents of ``carry_n`` from those of ``carry_{n+1}``; the inputs' gradients are added to the totals.

    ``carry_0`` is x_T, itself an input, so nothing is returned for n = 0.
    """
    pairs = [
        (o, a) for o, a in zip(nests.tensors(done.out), cotangents, strict=False) if a is not None and o.requires_grad
    ]
    if not pairs:
        return [None]
    outputs, seeds = zip(*pairs, strict=True)
    own = [] if n == 0 else list(nests.tensors(done.entry))
    found = dependencies(outputs).leaves_but([*own, *done.noise, *plan.isolated.copies])
    if any(id(leaf) not in totals.slots for leaf in found):
        raise RuntimeError(
            f"network: recomputing step {n} of {plan.recursion.steps} used a tensor that requires a gradient and that "
            "the forward pass did not use there; it keeps tensors of earlier evaluations: make it a function of "
            "(x, t, cond), or use adjoint=Direct()"
        )
    wanted = [*own, *done.noise, *plan.isolated.copies, *found]
    grads = iter(
        torch.autograd.grad(outputs, wanted, seeds, allow_unused=True, retain_graph=plan.borrows_graph)
        if wanted
        else ()
    )
    back: list[Tensor | None] = [next(grads) for _ in own]
    totals.add_noise(n, [next(grads) for _ in done.noise])
    totals.add([*plan.isolated.originals, *found], list(grads))
    return back


def _refuse_mismatch(plan: Plan, n: int, recomputed: Tensor, reached: Tensor) -> None:
    """A recomputation may differ by the round-off of nondeterministic kernels, and by nothing else.

    The bound is in the Euclidean norm: the round-off of a recomputation, or the retrieval's.
    """
    narrow = reached.dtype == torch.bfloat16 or plan.autocast.enabled
    bound = max(round_off(reached.dtype, reached.device.type, narrow), plan.retrieval.tolerance(reached))
    wide = torch.promote_types(reached.dtype, torch.float32)
    error = torch.linalg.vector_norm(recomputed.to(wide) - reached.to(wide))
    if not error <= bound * torch.linalg.vector_norm(reached.to(wide)):
        raise RuntimeError(
            f"network: recomputing step {n} of {plan.recursion.steps} gave another state than the forward pass "
            f"(difference {float(error):.3g}), so the gradient would be another function's: it keeps a cache or "
            "counter, draws from a generator of its own, or was changed in between; make it a function of "
            "(x, t, cond), or use adjoint=Direct()"
        )


def round_off(dtype: torch.dtype, device: str, narrow: bool) -> float:
    """How far a recomputation of a state may be off, relative to it.

    64 ulps of its dtype, or of float32 if that is wider. Accelerators sum in changing order, which may flip last bits
    where numbers are narrow: there 2^-10, which other dropout masks still exceed.
    """
    if narrow and device != "cpu":
        return 2.0**-10
    return 64 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
