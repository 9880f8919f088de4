"""The backward sweep of the exact adjoints: stages are found again, recomputed and pulled back, last step first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import nests
from ...equation import Equation
from ...recursion import Recursion
from .leaves import Evaluation, Isolated, Stage, dependencies, hooks_off, modules
from .surroundings import Autocast, generators_untouched


class Retrieval(ABC):
    """How the backward sweep gets the stages that the forward sweep did not store."""

    @abstractmethod
    def stored(self, first: int, steps: int) -> frozenset[int]:
        """The steps from ``first`` on whose stages the forward sweep stores, besides the last."""

    @abstractmethod
    def backwards(self, plan: Plan, stack: list[tuple[int, Stage]], end: Tensor) -> Iterator[tuple[int, Stage, Tensor]]:
        """``(n, stage before step n, y_{n+1})`` for n from the last step to ``plan.first``.

        ``stack``: the stored stages, which are used up; ``end``: ``y_N``.
        """

    def permanent(self, stages: list[tuple[int, Stage]]) -> list[tuple[int, Stage]]:
        """Those of the stored stages that a second backward pass over a retained graph starts from."""
        return stages

    def tolerance(self, state: Tensor) -> float:
        """How far, relatively, a recomputed step may end from the state that was found in another way."""
        return 0.0


@dataclass(frozen=True)
class Plan:
    """One frozen solve.

    Args:
        isolated: the recursion on copies of its arguments.
        start: the initial state y_0.
        inputs: the tensors that get gradients, each once.
        watched: tensors without gradients whose change between the sweeps would change the function.
        retrieval: where stages come from.
        keep: whether every state is an output.
        autocast: as it was in the forward sweep.
        borrows_graph, differentiates: see ``Swept``.
        modes: which of the network's modules were in training mode.
        first: the first step that is differentiated.
    """

    isolated: Isolated
    start: Tensor
    inputs: tuple[Tensor, ...]
    watched: tuple[Tensor, ...]
    retrieval: Retrieval
    keep: bool
    autocast: Autocast
    borrows_graph: bool
    differentiates: bool
    modes: tuple[bool, ...]
    first: int

    @property
    def recursion(self) -> Recursion:
        return self.isolated.recursion

    def check(self) -> None:
        """The door of the backward pass: no second derivatives, and flags are those of the forward sweep."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this adjoint gives first derivatives only, but backward was called with create_graph=True; "
                "pass adjoint=Direct() for second derivatives"
            )
        flags = [*(tensor.requires_grad for tensor in self.inputs), *(not t.requires_grad for t in self.watched)]
        if not all(flags):
            raise RuntimeError(
                "requires_grad of a parameter, of x_T, of cond or of the noise was changed between the forward and the "
                "backward pass; change it before sample or after backward, or use adjoint=Direct()"
            )
        if training_modes(self.recursion.equation) != self.modes:
            raise RuntimeError(
                "network: train() or eval() was called between the forward and the backward pass, so the recomputed "
                "function would be another; call it before sample or after backward, or use adjoint=Direct()"
            )


def training_modes(equation: Equation) -> tuple[bool, ...]:
    """Whether each module of the network is in training mode."""
    return tuple(module.training for module in modules(equation))


class Swept(NamedTuple):
    """What a forward sweep found.

    ``stages``: ``(n, stage before step n)`` for the steps to be stored and the last; ``kept``: evaluations whose graphs
    are still whole, by step; ``outputs``: ``(y_N,)`` or all of ``y_1, ..., y_N``; ``leaves``: the leaves that the
    network read, declared or not, besides the copies of its arguments; ``borrows_graph``: whether it read tensors
    computed outside of it, whose graph must outlive each step's; ``differentiates``: whether it calls autograd itself;
    ``random``: whether it drew from a global generator.
    """

    stages: list[tuple[int, Stage]]
    kept: dict[int, Evaluation]
    outputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    borrows_graph: bool
    differentiates: bool
    random: bool


class Replay(torch.autograd.Function):
    """``apply(plan, swept, *plan.inputs)``: the forward sweep's outputs, ``(y_N,)`` or all of ``y_1, ..., y_N``."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, swept: Swept, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.kept = swept.kept
        ctx.set_materialize_grads(False)
        # Saved rather than kept: autograd then frees them after backward, refuses a second backward, and refuses
        # tensors that were changed in place. Only snapshots that the backward sweep replaces by later ones are kept
        # by hand, so that it can let go of them; from the first of them all others can be had again.
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
        if plan.isolated.starts and plan.first == 0:
            totals.add([plan.start], cotangents[:1])
        return (None, None, *totals.finished())


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
    """Cotangents of ``carry_n`` from those of ``carry_{n+1}``; the inputs' gradients are added to the totals."""
    pairs = [
        (o, a) for o, a in zip(nests.tensors(done.out), cotangents, strict=False) if a is not None and o.requires_grad
    ]
    if not pairs:
        return [None]
    outputs, seeds = zip(*pairs, strict=True)
    own = [tensor for tensor in nests.tensors(done.entry) if tensor.requires_grad]
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


class Totals:
    """Gradients of the inputs of a solve, summed over its steps."""

    def __init__(self, inputs: Sequence[Tensor], recursion: Recursion) -> None:
        self.slots = {id(tensor): k for k, tensor in enumerate(inputs)}
        self._grads: list[Tensor | None] = [None] * len(inputs)
        self._bound = recursion.noise
        self._noise: list[Tensor | None] = [None] * (0 if recursion.noise is None else len(recursion.noise.tensors))

    def add(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add one step's gradients of inputs; tensors that are no inputs get none."""
        for tensor, grad in zip(tensors, grads, strict=True):
            if grad is None or id(tensor) not in self.slots:
                continue
            k = self.slots[id(tensor)]
            total = self._grads[k]
            if total is None:
                # Autograd may hand out one tensor for two inputs: a copy, before anything is added to it.
                self._grads[k] = grad.clone()
            elif total.is_sparse and not grad.is_sparse:
                self._grads[k] = grad + total
            else:
                total.add_(grad)

    def add_noise(self, n: int, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of step n's noise, given those of its increment and its Levy area."""
        if self._bound is not None:
            self._bound.pull_back(n, grads, self._noise)

    def finished(self) -> list[Tensor | None]:
        """The gradients of all inputs. To be called once."""
        if self._bound is not None:
            self.add(self._bound.tensors, self._noise)
        return self._grads
