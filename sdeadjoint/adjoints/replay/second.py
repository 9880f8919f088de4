"""Second derivatives: the gradient is a function too, differentiated by tangents and one more backward sweep.

A step is ``c_{n+1} = Phi(c_n, p)``: a carry, and everything else that it reads. The gradient is made by

    b_n = dPhi/dc^T b_{n+1},    g += dPhi/dp^T b_{n+1}

from the cotangents ``w`` of the outputs. Its derivative along ``v``, one direction for each input, is that of
``L = <v, g> = <w, J v>``. The tangents ``d_{n+1} = dPhi (d_n, v)`` lead from the first step to the last, and ``J v``
is the derivative in ``w``. Then the steps are pulled back once more, last first:

    a_n = dPhi/dc^T a_{n+1} + d/dc <b_{n+1}, dPhi (d_n, v)>,    and the same in p: reverse over forward.

A step's tangent is the derivative of ``dPhi^T u`` in ``u``, which is linear in it, so that no operation needs a formula
for forward mode. Source: Christianson (1992) for the sweeps; the trick with ``u`` is Townsend's (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import _functorch

from ... import nests
from ...compiling import eagerly
from ...recursion import Carry
from .backward import BackwardSweep, Cotangents, Held, Plan, _refuse_mismatch, pull_back_all, unchanged
from .leaves import Evaluation, Saving, Stage, evaluate
from .surroundings import GeneratorStates, generators_untouched

Tangents = list[Tensor | None]
"""The tangent of each tensor of a carry, y first; None for zero."""


class Twin(NamedTuple):
    """The stage before a step, and the tangents of its carry."""

    stage: Stage
    tangents: Tangents

    @property
    def carry(self) -> Carry:
        return self.stage.carry


class Reversal(Protocol):
    """Which twins are stored on the way to the last step, and how the others are found on the way back."""

    def stored(self, first: int, steps: int) -> frozenset[int]:
        """The steps from ``first`` on before which twins are stored."""
        ...

    def in_reverse(
        self, plan: Plan, stack: list[tuple[int, Twin]], end: Tensor, advance: Callable[[Twin, int, int], Twin]
    ) -> Iterator[tuple[int, Twin, Tensor]]:
        """``(n, twin before step n, y_{n+1})`` from the last step on."""
        ...


def gradient(
    held: Held, reversal: Reversal, inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs, which depend on the inputs and on the outputs' gradients ``grads``."""
    if held.plan.recursion.hook is not None:
        raise RuntimeError(
            "Hooked: what a hook makes of an adjoint is not a gradient, and backward had create_graph=True; "
            "pass adjoint=Checkpoint() without the hook, or adjoint=Direct(), for second derivatives"
        )
    _refuse_batches(grads)
    found: tuple[Tensor | None, ...] = Gradient.apply(held, reversal, *_no_leaves(inputs), *grads)
    return found


class Gradient(torch.autograd.Function):
    """``apply(held, reversal, *inputs, *grads)``: the gradients of the inputs, None where there is none."""

    @staticmethod
    def forward(ctx: Any, held: Held, reversal: Reversal, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        plan = held.plan
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.reversal = plan, reversal
        ctx.grads = nests.emptied(tensors[len(plan.inputs) :])
        complete = len(held.stack) == plan.recursion.steps - plan.first
        stages = list(held.stack) if complete else plan.retrieval.permanent(held.stack)
        # Stages that are in the forward pass' memory anyway; a later change in place of any tensor is noticed.
        ctx.stages = nests.emptied(stages)
        ctx.count = len(plan.inputs) + len(plan.watched)
        given = [tensor for tensor in tensors if tensor is not None]
        ctx.save_for_backward(*given[: len(plan.inputs)], *plan.watched, held.end, *given[len(plan.inputs) :],
                              *nests.tensors(stages))  # fmt: skip
        grads = tensors[len(plan.inputs) :]
        if not any(grad is not None and bool(grad.any()) for grad in grads):
            # ``J^T 0``, asked for because its derivative is ``J v``.
            return tuple(torch.zeros_like(tensor) for tensor in given[: len(plan.inputs)])
        return tuple(pull_back_all(held, grads))

    @staticmethod
    @eagerly
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        if all(direction is None for direction in directions):
            return (None,) * (2 + len(plan.inputs) + len(ctx.grads))
        tensors = unchanged(ctx)
        inputs, saved = tensors[: len(plan.inputs)], iter(tensors[ctx.count :])
        end, grads = next(saved), nests.refilled(ctx.grads, saved)
        solved = Solved(plan, ctx.reversal, nests.refilled(ctx.stages, saved), end)
        if torch.is_grad_enabled():
            _refuse_batches(directions)
            # The gradients may be leaves, too: those by whose derivative others find tangents.
            given = (*_no_leaves(inputs), *_no_leaves(grads))
            return (None, None, *Product.apply(solved, *given, *directions))
        wanted = _executed(ctx.next_functions[: len(plan.inputs)])
        return (None, None, *solved.product(directions, grads, wanted))


class Solved(NamedTuple):
    """A solve whose gradient is differentiated.

    ``stages``: those that are stored, all or the first; ``end``: ``y_N``.
    """

    plan: Plan
    reversal: Reversal
    stages: list[tuple[int, Stage]]
    end: Tensor

    def product(
        self,
        directions: Sequence[Tensor | None],
        grads: Sequence[Tensor | None],
        wanted: Sequence[bool],
        more: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor | None, ...]:
        """The derivatives of ``<v, g>`` in the inputs and in the outputs' gradients.

        ``wanted``: whether each input is to get one; ``more``: further gradients of the outputs, pulled back as well.
        """
        self.plan.check()
        # Their own histories are none of ours.
        grads, more = [_cut(grad) for grad in grads], more or [None] * len(grads)
        stored = self.reversal.stored(self.plan.first, self.plan.recursion.steps)
        with explained(), SecondSweep(self.plan, [_cut(v) for v in directions], wanted) as sweep:
            stages = {n: stage.on(self.end.device) for n, stage in self.stages}
            twins, tangents = sweep.push_all(stages, stored, self.end)
            moved = [own if grad is not None else None for own, grad in zip(tangents, grads, strict=True)]
            if any(wanted):
                sweep.pull_all(self.reversal.in_reverse(self.plan, twins, self.end, sweep.advance), grads, more)
            return (*sweep.totals.finished(), *moved)


class Product(torch.autograd.Function):
    """``apply(solved, *inputs, *grads, *directions)``: ``Solved.product``, which is linear in the directions.

    It is ``v -> (A v, J v)`` with a symmetric A, so the derivative in the directions along (p, q) is ``A p + J^T q``.
    PyTorch's own ``hvp`` asks for it. The derivatives in all others are third ones.
    """

    @staticmethod
    def forward(ctx: Any, solved: Solved, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, outputs = len(solved.plan.inputs), len(tensors) - 2 * len(solved.plan.inputs)
        grads, directions = tensors[inputs : inputs + outputs], tensors[inputs + outputs :]
        ctx.set_materialize_grads(False)
        ctx.solved, ctx.grads = solved, nests.emptied(grads)
        ctx.given = [direction is not None for direction in directions]
        kept = [tensor for tensor in (*tensors[:inputs], *solved.plan.watched, *grads) if tensor is not None]
        ctx.save_for_backward(*kept)
        if not any(direction is not None and bool(direction.any()) for direction in directions):
            found = (*tensors[:inputs], *grads)
            return tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in found)
        return solved.product(directions, grads, [True] * inputs)

    @staticmethod
    @eagerly
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        solved: Solved = ctx.solved
        inputs = len(solved.plan.inputs)
        grads = nests.refilled(ctx.grads, iter(unchanged(ctx)[inputs + len(solved.plan.watched) :]))
        others = inputs + sum(grad is not None for grad in grads)
        if torch.is_grad_enabled() or any(_executed(ctx.next_functions[:others])):
            raise RuntimeError(
                "this adjoint gives first and second derivatives, but a third one was asked for; "
                "pass adjoint=Direct() for third derivatives"
            )
        none = (None,) * (1 + inputs + len(grads))
        if all(cotangent is None for cotangent in cotangents):
            return (*none, *[None] * inputs)
        found = solved.product(cotangents[:inputs], grads, [True] * inputs, cotangents[inputs:])
        pairs = zip(found[:inputs], ctx.given, strict=True)
        return (*none, *(gradient if given else None for gradient, given in pairs))


class SecondSweep(BackwardSweep):
    """The tangents of a solve along one direction for each input, and the second backward sweep.

    Args:
        directions: one for each of ``plan.inputs``; None for zero.
        wanted: whether each input is to get a derivative.
    """

    def __init__(self, plan: Plan, directions: Sequence[Tensor | None], wanted: Sequence[bool]) -> None:
        super().__init__(plan)
        self._directions = {id(tensor): v for tensor, v in zip(plan.inputs, directions, strict=True)}
        self._wanted = {id(tensor) for tensor, asked in zip(plan.inputs, wanted, strict=True) if asked}
        copies = zip(plan.isolated.copies, plan.isolated.originals, strict=True)
        self._wanted |= {id(copy) for copy, original in copies if id(original) in self._wanted}
        leaves = [tensor for tensor in plan.inputs if tensor.is_leaf]
        self._read_directly = [(leaf, v) for leaf in leaves if (v := self._directions[id(leaf)]) is not None]
        noise = plan.recursion.noise
        self._noise = () if noise is None else noise.tensors

    # Forward: the tangents.

    def push_all(
        self, stages: dict[int, Stage], stored: frozenset[int], end: Tensor
    ) -> tuple[list[tuple[int, Twin]], list[Tensor | None]]:
        """The twins that the second sweep starts from, and the tangents of the outputs."""
        plan = self.plan
        last = plan.recursion.steps - 1
        stage, twins, found = stages[plan.first], list[tuple[int, Twin]](), list[Tensor | None]()
        tangents: Tangents = [self._directions.get(id(plan.start)) if plan.swept.reached.start else None]
        tangents += [None] * (len(list(nests.tensors(stage.carry))) - 1)
        for n in range(plan.first, last + 1):
            if n in stored or n == last:
                twins.append((n, Twin(stage, tangents)))
            done, after = self._evaluated(n, stage)
            tangents = self._push(n, done, tangents)
            del done  # before the next graph is built
            if n == last or n + 1 in stages:
                reached = end if n == last else stages[n + 1].carry.y
                _refuse_mismatch(plan, n, stage.carry, after.carry.y, reached)
            stage = stages.get(n + 1, after)
            if plan.keep or n == last:
                found.append(tangents[0])
        return twins, found

    def advance(self, twin: Twin, start: int, stop: int) -> Twin:
        """The twin before step ``stop``."""
        for n in range(start, stop):
            done, after = self._evaluated(n, twin.stage)
            twin = Twin(after, self._push(n, done, twin.tangents))
            del done
        return twin

    def _push(self, n: int, done: Evaluation, tangents: Tangents) -> Tangents:
        """The tangents of ``carry_{n+1}``."""
        outs = list(nests.tensors(done.out))
        # What it remembers after the last step serves nobody.
        serving = outs[:1] if n == self.plan.recursion.steps - 1 else outs
        asked = [out for out in serving if out.requires_grad]
        pairs = [(own, v) for own, v in self._pairs(n, done, tangents) if v is not None]
        pairs += self._read_directly
        if not pairs or not asked:
            return [None] * len(outs)
        leaves, vs = zip(*pairs, strict=True)
        with torch.enable_grad():
            us = [torch.zeros_like(out).requires_grad_() for out in asked]
            pulled = self.differentiate(asked, leaves, us, retain_graph=True, create_graph=True)
        linear = [(g, v) for g, v in zip(pulled, vs, strict=True) if g is not None and g.requires_grad]
        if not linear:
            return [None] * len(outs)
        gs, seeds = zip(*linear, strict=True)
        found = iter(self.differentiate(gs, us, seeds, retain_graph=self.plan.swept.borrows_graph))
        pushed = {id(out): next(found) for out in asked}
        return [pushed.get(id(out)) for out in outs]

    # Backward: the second sweep.

    def pull_all(
        self,
        twins: Iterator[tuple[int, Twin, Tensor]],
        grads: Sequence[Tensor | None],
        more: Sequence[Tensor | None],
    ) -> None:
        """Add the derivatives of all inputs to the totals; see ``Solved.product``."""
        plan = self.plan
        first: Cotangents = [grads[-1]]
        second: Cotangents = [more[-1]]
        for n, twin, reached in twins:
            if any(cotangent is not None for cotangent in (*first, *second)):
                done = self.recompute(n, twin.stage, reached)
                first, second = self._pull(n, done, twin.tangents, first, second)
                del done
            if plan.keep and n > 0:
                first[0], second[0] = _sum(first[0], grads[n - 1]), _sum(second[0], more[n - 1])
        if plan.swept.reached.start:
            self.totals.add([plan.start], second[:1])

    def _pull(
        self, n: int, done: Evaluation, tangents: Tangents, first: Cotangents, second: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        """Both cotangents of ``carry_n`` from those of ``carry_{n+1}``."""
        others = self.others(n, done)
        pairs = [*self._pairs(n, done, tangents), *((own, self._directions.get(id(own))) for own in others)]
        own = {id(leaf) for leaf in (*done.own, *done.noise)}
        moved = own | {id(leaf) for leaf, v in pairs if v is not None}
        pulled = self._pulled(*_asked(done, first), [leaf for leaf, _ in pairs], moved, create_graph=True)
        bends = [
            (g, v)
            for g, (_, v) in zip(pulled, pairs, strict=True)
            if g is not None and v is not None and g.requires_grad
        ]
        b = iter(pulled)
        first = [None if leaf is None else _cut(next(b)) for leaf in done.own]
        self._bend_noise(n, [_cut(next(b)) for _ in done.noise])
        both = [*bends, *zip(*_asked(done, second), strict=True)]
        outs, seeds = zip(*both, strict=True) if both else ((), ())
        found = iter(self._pulled(outs, seeds, [leaf for leaf, _ in pairs], own | self._wanted))
        second = [None if own is None else next(found) for own in done.own]
        self.totals.add_noise(n, [next(found) for _ in done.noise])
        self.totals.add([*self.plan.isolated.originals, *others], list(found))
        return first, second

    def _pulled(
        self,
        outs: Sequence[Tensor],
        seeds: Sequence[Tensor],
        leaves: Sequence[Tensor],
        wanted: set[int],
        *,
        create_graph: bool = False,
    ) -> list[Tensor | None]:
        """The derivatives in the leaves; None for those that nobody asked for."""
        asked = [leaf for leaf in leaves if id(leaf) in wanted]
        if not (outs and asked):
            return [None] * len(leaves)
        retain = create_graph or self.plan.swept.borrows_graph
        with torch.set_grad_enabled(create_graph):
            found = iter(self.differentiate(outs, asked, seeds, retain_graph=retain, create_graph=create_graph))
        return [next(found) if id(leaf) in wanted else None for leaf in leaves]

    # What both have in common.

    def _pairs(self, n: int, done: Evaluation, tangents: Tangents) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The leaves that stand for a step's arguments, in the order of ``Evaluation.known``, with their directions."""
        yield from ((own, v) for own, v in zip(done.own, tangents, strict=True) if own is not None)
        noise = self.plan.recursion.noise
        if noise is not None and done.noise:
            vs = [self._directions.get(id(tensor)) for tensor in self._noise]
            moved = [None] * len(done.noise) if all(v is None for v in vs) else noise.push_forward(n, vs)
            yield from zip(done.noise, moved, strict=True)
        for copy, original in zip(self.plan.isolated.copies, self.plan.isolated.originals, strict=True):
            yield copy, self._directions.get(id(original))

    def _bend_noise(self, n: int, grads: Sequence[Tensor | None]) -> None:
        """The second derivative of noise that is not linear in its tensors."""
        noise = self.plan.recursion.noise
        if noise is not None and not noise.is_linear and any(grad is not None for grad in grads):
            vs = [self._directions.get(id(tensor)) for tensor in self._noise]
            self.totals.add(self._noise, noise.bend(n, grads, vs))

    def _evaluated(self, n: int, stage: Stage) -> tuple[Evaluation, Stage]:
        """Step n with its graph, and the stage after it."""
        plan, trace, device = self.plan, self.plan.swept.traces[n], stage.carry.y.device
        registered = self.hooks.registered()
        with ExitStack() as stack:
            stack.enter_context(plan.swept.state.swapped(stage.held))
            if trace.draws:
                stack.enter_context(generators_untouched(device))
                stage.generators.restore()
            done = evaluate(plan.isolated, n, stage.carry, trace.wanted, plan.autocast, Saving.PLAIN)
            generators = GeneratorStates.current(device, stage.generators) if trace.draws else stage.generators
            if n + 1 < plan.recursion.steps:  # what a callback changed
                following = plan.swept.traces[n + 1]
                plan.swept.state.put(following.held)
                generators = following.generators or generators
            after = Stage(nests.map_tensors(Tensor.detach, done.out), generators, plan.swept.state.values())
        self.hooks.forget_others(registered)
        plan.isolated.drop_hooks()
        return done, after


def _asked(done: Evaluation, cotangents: Cotangents) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The tensors of ``carry_{n+1}`` that have a cotangent, and these."""
    pairs = zip(nests.tensors(done.out), cotangents, strict=False)
    asked = [(out, a) for out, a in pairs if a is not None and out.requires_grad]
    outs, seeds = zip(*asked, strict=True) if asked else ((), ())
    return outs, seeds


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _no_leaves(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same tensors as views: autograd says of the nodes of others than leaves whether it will execute them."""
    return [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]


def _executed(functions: Sequence[tuple[Any, int]]) -> list[bool]:
    """Whether the present backward pass goes on to each of these nodes."""
    return [node is not None and torch._C._will_engine_execute_node(node) for node, _ in functions]


def _refuse_batches(tensors: Sequence[Tensor | None]) -> None:
    if any(_is_batched(tensor) for tensor in tensors if tensor is not None):
        raise RuntimeError(
            "this adjoint has no second derivatives of batches of gradients (is_grads_batched, vectorize) with "
            "create_graph=True; take them one by one, or pass adjoint=Direct()"
        )


def _is_batched(tensor: Tensor) -> bool:
    return _functorch.is_functorch_wrapped_tensor(tensor) or _functorch.is_legacy_batchedtensor(tensor)


def _cut(tensor: Tensor | None) -> Tensor | None:
    """A tensor without its history; batches of gradients come without one."""
    return tensor if tensor is None or _is_batched(tensor) else tensor.detach()


@contextmanager
def explained() -> Iterator[None]:
    """Say what helps where an operation of the network has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if "attention" in str(error) and "not implemented" in str(error):
            error.add_note(
                "(the network's attention kernel has no second derivative; call sample and take both derivatives "
                "inside of: with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))"
            )
        raise
