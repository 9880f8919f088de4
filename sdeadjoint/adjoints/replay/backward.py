"""The backward sweep of the exact adjoints: stages are found again, recomputed and pulled back, last step first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import Parameter

from ... import nests
from ...compiling import eagerly
from ...ledger import read_at_the_end, require
from ...recursion import Carry, Recursion
from .graphs import Dependencies, Fingerprint, kinds_of, missing_number, numbers_of, places_of
from .hooks import MutedHooks
from .leaves import Evaluation, Isolated, Saving, Stage, Trace, evaluate
from .module_state import ModuleState
from .parallel import Parallel
from .places import Watch
from .sources import Sources
from .surroundings import Autocast, generators_untouched

LARGE = 2**16
"""Bytes of a leaf whose parts are added one by one, inside of autograd's pass: a second copy of it is worth a call."""

Cotangents = list[Tensor | None]
"""``dL/d`` of each tensor of a carry, y first; None for zero."""


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

    def put(self, stage: Stage) -> Stage:
        """A stage as it is stored."""
        return stage

    def permanent(self, stages: list[tuple[int, Stage]]) -> list[tuple[int, Stage]]:
        """Those of the stored stages that a second backward pass over a retained graph starts from."""
        return stages

    def gradients(
        self, held: Held, inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """The gradients of the inputs; with ``create_graph=True`` as functions of them, or refused."""
        return pull_back_all(held, grads)

    def tolerance(self, plan: Plan) -> float:
        """How far a recomputed step may end from a state that was found in another way, relative to its terms."""
        return 0.0


@dataclass(frozen=True)
class Plan:
    """One frozen solve.

    Args:
        isolated: the recursion on copies of its arguments.
        start: the initial state y_0.
        inputs: the tensors that get gradients, each once.
        wanting: tensors that were handed over and require gradients, whether they get one or not.
        watched: tensors without gradients whose change between the sweeps would change the function.
        retrieval: where stages come from.
        keep: whether every state is an output.
        autocast: as it was in the forward sweep.
        swept: what the forward sweep found, but for what must be let go of in time.
        sources: what the drift can be seen to read.
        modes: which of its modules were in training mode.
        watch: plain values among the sources.
        parallel: data-parallel wrappers among the modules.
        first: the first step that is differentiated.
    """

    isolated: Isolated
    start: Tensor
    inputs: tuple[Tensor, ...]
    wanting: tuple[Tensor, ...]
    watched: tuple[Tensor, ...]
    retrieval: Retrieval
    keep: bool
    autocast: Autocast
    swept: Swept
    sources: Sources
    modes: tuple[bool, ...]
    watch: Watch
    parallel: Parallel
    first: int

    @property
    def recursion(self) -> Recursion:
        return self.isolated.recursion

    @cached_property
    def is_narrow(self) -> bool:
        """Whether the drift is known to be computed in a narrower dtype than the state's."""
        own = torch.finfo(self.start.dtype).eps
        return self.autocast.enabled or any(torch.finfo(dtype).eps > own for dtype in self.sources.dtypes)

    def check(self) -> None:
        """The door of the backward pass: no second derivatives, and what can be seen is as in the forward sweep."""
        if torch.is_grad_enabled():
            refuse_second()
        flags = [*(t.requires_grad for t in self.wanting), *(not t.requires_grad for t in self.watched)]
        if not all(flags):
            raise RuntimeError(
                "requires_grad of a parameter, of x_T, of cond or of the noise was changed between the forward and the "
                "backward pass; change it before sample or after backward, or use adjoint=Direct()"
            )
        if training_modes(self.sources) != self.modes:
            raise RuntimeError(
                "network: train() or eval() was called between the forward and the backward pass, so the recomputed "
                "function would be another; call it before sample or after backward, or use adjoint=Direct()"
            )
        if (name := self.watch.changed()) is not None:
            raise RuntimeError(
                f"network: {name!r}, which it reads, was changed between the forward and the backward pass, so the "
                "recomputed function would be another; change it before sample or after backward, or use "
                "adjoint=Direct()"
            )


def refuse_second() -> NoReturn:
    """Raise for adjoints whose gradients have no derivatives."""
    raise RuntimeError(
        "this adjoint gives first derivatives only, but backward was called with create_graph=True; "
        "pass adjoint=Checkpoint(), or adjoint=Direct(), for second derivatives"
    )


def training_modes(sources: Sources) -> tuple[bool, ...]:
    """Whether each module is in training mode."""
    return tuple(module.training for module in sources.modules)


class Swept(NamedTuple):
    """What a forward sweep found.

    ``stages``: ``(n, stage before step n)`` for the steps to be stored and the last; ``kept``: evaluations whose graphs
    are still whole, by step; ``outputs``: ``(y_N,)`` or all of ``y_1, ..., y_N``; ``reached``: what they depend on;
    ``traces``: of every step; ``borrows_graph``: whether the drift read tensors computed outside of it, whose graph
    must outlive each step's; ``saving``: what becomes of activations; ``state``: what its modules change in themselves.
    """

    stages: list[tuple[int, Stage]]
    kept: dict[int, Evaluation]
    outputs: tuple[Tensor, ...]
    reached: Reached
    traces: tuple[Trace, ...]
    borrows_graph: bool
    saving: Saving
    state: ModuleState

    @property
    def random(self) -> bool:
        """Whether the drift drew from a global generator."""
        return any(trace.draws for trace in self.traces)


class Reached(NamedTuple):
    """What outputs depend on: y_0, the noise's tensors, and leaves by identity (arguments by their copies)."""

    start: bool = False
    noise: bool = False
    leaves: dict[int, Tensor] = {}  # noqa: RUF012 (never changed)


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
    @eagerly
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(plan.inputs))
        tensors = unchanged(ctx)
        inputs, saved = tensors[: len(plan.inputs)], iter(tensors[len(plan.inputs) + len(plan.watched) :])
        end = next(saved)
        stack = nests.refilled(ctx.stages, saved) if ctx.complete else list(ctx.stages)
        if not ctx.complete:
            ctx.stages = plan.retrieval.permanent(ctx.stages)
        return (None, None, *plan.retrieval.gradients(Held(plan, stack, end, ctx.kept), inputs, grads))


def unchanged(ctx: Any) -> tuple[Tensor, ...]:
    """The saved tensors; PyTorch's own error, which tells neither whose nor what to do, gets a note."""
    try:
        return tuple(ctx.saved_tensors)
    except RuntimeError as error:
        if "inplace operation" in str(error):
            error.add_note(
                "(x_T, cond, the noise, a weight or a result of sample was changed in place, by an optimizer's step "
                "for instance, between the forward and the backward pass; change it before sample or after backward, "
                "or change a copy)"
            )
        raise


class Held(NamedTuple):
    """What a backward pass starts from.

    ``stack``: the stored stages, which are used up; ``end``: ``y_N``; ``kept``: evaluations whose graphs are whole.
    """

    plan: Plan
    stack: list[tuple[int, Stage]]
    end: Tensor
    kept: dict[int, Evaluation]


def pull_back_all(held: Held, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of the inputs from those of the outputs."""
    plan = held.plan
    plan.check()
    cotangents: Cotangents = [grads[-1]]
    with BackwardSweep(plan) as sweep:
        sweep.sum_large_gradients()
        for n, stage, reached in sweep.stages(held.stack, held.end):
            kept = held.kept.pop(n, None)
            if any(cotangent is not None for cotangent in cotangents):
                done = sweep.recompute(n, stage, reached) if kept is None else kept
                cotangents = sweep.pull_back(n, done, cotangents, kept=kept is not None)
                del done
            del kept
            if plan.keep and n > 0 and (grad := grads[n - 1]) is not None:
                cotangents[0] = grad if cotangents[0] is None else cotangents[0] + grad
        if plan.swept.reached.start:
            sweep.totals.add([plan.start], cotangents[:1])
        return sweep.totals.finished()


class BackwardSweep:
    """What the steps of a backward sweep have in common. It is entered out of inference mode, and without gradients."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.totals = Totals(plan.inputs, plan.recursion)
        self.hooks = MutedHooks(plan.inputs)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        parallel = self.plan.parallel.recomputing()
        for context in (torch.inference_mode(False), torch.no_grad(), self.hooks, parallel):
            self._stack.enter_context(context)
        self.checks = self._stack.enter_context(read_at_the_end())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def stages(self, stack: list[tuple[int, Stage]], end: Tensor) -> Iterator[tuple[int, Stage, Tensor]]:
        """What ``Retrieval.backwards`` finds, without the hooks that the network registers meanwhile."""
        stages = self.plan.retrieval.backwards(self.plan, stack, end)
        while True:
            registered = self.hooks.registered()
            found = next(stages, None)
            self.hooks.forget_others(registered)
            if found is None:
                return
            yield found
            if found[0] == self.plan.first:
                self.checks.settle()  # before the retrieval tells anybody how it went

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        seeds: Sequence[Tensor],
        *,
        retain_graph: bool,
        create_graph: bool = False,
        at_once: bool = False,
    ) -> tuple[Tensor | None, ...]:
        """``torch.autograd.grad`` through a step, which neither hooks nor wrappers take for a backward pass."""
        found = self.hooks.differentiate(
            outputs, inputs, seeds, retain_graph=retain_graph, create_graph=create_graph, at_once=at_once
        )
        self.plan.parallel.settle()
        return found

    def sum_large_gradients(self) -> None:
        """Let ``pull_back`` add each step's part of a large leaf's gradient when it is there, not when all are."""
        for k, tensor in enumerate(self.plan.inputs):
            if tensor.is_leaf and _is_plain(tensor) and tensor.numel() * tensor.element_size() >= LARGE:
                self.hooks.sum_at_once(tensor, partial(self.totals.sum_at_once, k))

    def recompute(self, n: int, stage: Stage, reached: Tensor) -> Evaluation:
        """Step n with its graph, as it was in the forward sweep; ``reached`` is where it must lead."""
        plan, trace = self.plan, self.plan.swept.traces[n]
        registered = self.hooks.registered()
        plan.swept.state.refuse_changed_weights()
        before = [generator.get_state() for generator in plan.sources.generators]
        with ExitStack() as stack:
            stack.enter_context(plan.swept.state.swapped(stage.held))
            if trace.draws:
                stack.enter_context(generators_untouched(reached.device))
                stage.generators.restore()
            done = evaluate(plan.isolated, n, stage.carry, trace.wanted, plan.autocast, Saving.PLAIN)
        self.hooks.forget_others(registered)
        plan.isolated.drop_hooks()
        _refuse_draws(plan.sources, before)
        _refuse_mismatch(plan, n, stage.carry, done.out.y.detach(), reached)
        if plan.recursion.hook is not None:
            self.checks.settle()  # before it sees the adjoint
        return done

    def pull_back(self, n: int, done: Evaluation, cotangents: Cotangents, *, kept: bool = False) -> Cotangents:
        """Cotangents of ``carry_n`` from those of ``carry_{n+1}``; the inputs' gradients are added to the totals."""
        plan = self.plan
        known, others = done.known(plan.isolated), self.others(n, done, kept=kept)
        pairs = zip(nests.tensors(done.out), cotangents, strict=False)
        asked = [(o, a) for o, a in pairs if a is not None and o.requires_grad]
        if not asked:
            return [None]
        outputs, seeds = zip(*asked, strict=True)
        with plan.isolated.guard.opened(kept):
            # A graph that is kept goes on behind its gates, where nothing must be freed.
            retain = kept or plan.swept.borrows_graph
            grads = iter(self.differentiate(outputs, [*known, *others], seeds, retain_graph=retain, at_once=True))
        back: Cotangents = [None if tensor is None else next(grads) for tensor in done.own]
        self.totals.add_noise(n, [next(grads) for _ in done.noise])
        self.totals.add([*plan.isolated.originals, *others], list(grads))
        return back

    def others(self, n: int, done: Evaluation, *, kept: bool = False) -> list[Tensor]:
        """The leaves that step n reads without having been given them; refuses another graph than the forward one's."""
        plan, known = self.plan, done.known(self.plan.isolated)
        if plan.swept.traces[n].is_unexamined:
            return [tensor for tensor in plan.inputs if tensor.is_leaf]
        found = done.dependencies(last=n == plan.recursion.steps - 1)
        others, expected = found.leaves_but(known), plan.swept.traces[n].fingerprint
        if kept or expected is None:
            return others
        named = [tensor for tensor in others if id(tensor) in expected.leaves]
        leaves = places_of(found, known).union(map(id, named))
        kinds = kinds_of(found, opaque=plan.sources.is_scripted)
        difference = expected.differs(Fingerprint(kinds, leaves, len(others) - len(named)))
        self._refuse_other_graph(n, difference or (kinds and self._other_number(n, found)) or "")
        return named

    def _other_number(self, n: int, found: Dependencies) -> str:
        """Which number of the forward pass a recomputed graph lacks, in words: a branch of zeros hides it."""
        was = missing_number(self.plan.swept.traces[n].numbers, numbers_of(found), _relative(self.plan))
        return "" if was is None else f"it multiplies by another number in place of {was:.6g}"

    def _refuse_other_graph(self, n: int, difference: str) -> None:
        if difference:
            raise RuntimeError(
                f"network: recomputing step {n} of {self.plan.recursion.steps} built another graph than the forward "
                f"pass ({difference}), so the gradient would be another function's: it counts its calls, keeps tensors "
                "of earlier evaluations, or was changed in between; make it a function of (x, t, cond), or use "
                "adjoint=Direct()"
            )


def _refuse_draws(sources: Sources, before: Sequence[Tensor]) -> None:
    """Raise if a step drew from a generator of the network's own: a branch of zeros may hide what it drew."""
    pairs = zip(sources.generators, before, strict=True)
    if not all(torch.equal(generator.get_state(), state) for generator, state in pairs):
        raise RuntimeError(
            "network: it draws from a generator of its own, so a recomputed step gave another state than the forward "
            "pass, or another factor of a branch of zeros; let it draw from torch's global generators, which are "
            "replayed, or use adjoint=Direct()"
        )


def _refuse_mismatch(plan: Plan, n: int, carry: Carry, recomputed: Tensor, reached: Tensor) -> None:
    """A recomputation may differ by the round-off of nondeterministic kernels, and by nothing else.

    The bound is in the Euclidean norm of each sample, relative to what the step starts from and where it ends: the
    round-off of a recomputation, or the retrieval's.
    """
    relative = _relative(plan)
    wide = torch.promote_types(reached.dtype, torch.float32)
    parts = [*nests.tensors(carry), reached]
    # Steps may join or split samples: then all of them are one.
    whole = len({tensor.shape[:1] for tensor in parts}) > 1
    error = _by_sample(recomputed.to(wide) - reached.to(wide), whole)
    size = sum(_by_sample(tensor.to(wide), whole) for tensor in parts)
    steps, difference = plan.recursion.steps, error.max()

    def refusal() -> RuntimeError:
        return RuntimeError(
            f"network: recomputing step {n} of {steps} gave another state than the forward pass (difference "
            f"{float(difference):.3g}), so the gradient would be another function's: it keeps a cache or counter, "
            "draws from a generator of its own, or was changed in between; make it a function of (x, t, cond), or use "
            "adjoint=Direct()"
        )

    require((error <= relative * size).all(), refusal)


def _relative(plan: Plan) -> float:
    """How far a recomputation may be off, relative to its terms."""
    y = plan.start
    narrow = y.dtype == torch.bfloat16 or plan.autocast.enabled
    return max(round_off(y.dtype, y.device.type, narrow), plan.retrieval.tolerance(plan))


def _by_sample(y: Tensor, whole: bool) -> Tensor:
    """The Euclidean norm of each sample, (batch,); of all together if ``whole`` or if the state has one dimension."""
    return torch.linalg.vector_norm(y.reshape(1 if whole or y.ndim < 2 else len(y), -1), dim=1)


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
        """Add one step's gradients of inputs; tensors that are not inputs get none."""
        places = map(self.slots.get, map(id, tensors))
        found = [(k, grad) for k, grad in zip(places, grads, strict=True)
                 if k is not None and grad is not None and grad is not self._grads[k]]  # fmt: skip
        totals = [total for k, _ in found if (total := self._grads[k]) is not None]
        parts = [grad for _, grad in found]
        once = len({k for k, _ in found}) == len(found) == len(totals)  # and not one tensor in two roles
        if found and once and _are_plain(totals) and _are_plain(parts):
            torch._foreach_add_(totals, parts)
            return
        for k, grad in found:
            self._add_one(k, grad)

    def _add_one(self, k: int, grad: Tensor) -> None:
        total = self._grads[k]
        if total is None:
            # Autograd may hand out one tensor for two inputs: a copy, before anything is added to it.
            self._grads[k] = grad.clone()
        elif total.is_sparse and not grad.is_sparse:
            self._grads[k] = grad + total
        else:
            total.add_(grad)

    def sum_at_once(self, k: int, grad: Tensor) -> Tensor | None:
        """Add a part of input k's gradient, and return the sum, which ``add`` then leaves alone; None if it cannot."""
        total = self._grads[k]
        if not _is_plain(grad) or not (total is None or _is_plain(total)):
            return None
        self._add_one(k, grad)
        return self._grads[k]

    def add_noise(self, n: int, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of step n's noise, given those of its increment and its Levy area."""
        if self._bound is not None:
            self._bound.pull_back(n, grads, self._noise)

    def finished(self) -> list[Tensor | None]:
        """The gradients of all inputs. To be called once."""
        if self._bound is not None:
            self.add(self._bound.tensors, self._noise)
        return self._grads


def _is_plain(tensor: Tensor) -> bool:
    return _are_plain([tensor])


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are added to others of their kind by one operation for all: none is sparse or batched."""
    if not set(map(type, tensors)) <= {Tensor, Parameter} or not set(map(_LAYOUT, tensors)) <= {torch.strided}:
        return False
    return not any(map(_functorch.is_functorch_wrapped_tensor, tensors)) and not any(map(_BATCHED, tensors))


_LAYOUT, _BATCHED = attrgetter("layout"), _functorch.is_legacy_batchedtensor
