"""The forward sweep of the replaying adjoints: values and stored stages, and what they depend on."""

from __future__ import annotations

import weakref
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ... import nests
from ...ledger import settle, tentatively
from ...memory import storages
from ...recursion import Carry, Observer, Recursion
from ..direct import Direct
from ..tangents import has_tangents, push_forward, refuse_hidden_tangents, refuse_transforms
from .backward import LARGE, Plan, Reached, Replay, Retrieval, Swept, training_modes
from .graphs import (
    NO_NUMBERS,
    Dependencies,
    Fingerprint,
    kinds_of,
    numbers_of,
    places_of,
    sequence_number,
    updates_batch_statistics,
)
from .leaves import (
    ActivationsNeededError,
    Evaluation,
    Isolated,
    Saving,
    Stage,
    Trace,
    distinct,
    evaluate,
    evaluate_without_graph,
)
from .module_state import ModuleState
from .parallel import Parallel, refuse_flat_parameters
from .places import Watch
from .sources import Sources
from .surroundings import Autocast, GeneratorStates


@dataclass(frozen=True)
class Replayed:
    """Runs a recursion without its activations, for a backward sweep that has its stages from ``retrieval``.

    Args:
        retrieval: where stages come from.
        graphs: bytes for whole graphs of the latest steps.
        last: how many steps are differentiated, counted from the end; None for all.
        refuse_random, refuse_state: the sentences for networks that draw from torch's global generators, and for those
            whose modules change their ``{name}`` at each step; empty if they may.
        pure: whether the caller vouches for the network, so that steps like the first one need no graph.
    """

    retrieval: Retrieval
    graphs: int = 0
    last: int | None = None
    refuse_random: str = ""
    refuse_state: str = ""
    pure: bool = False

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return Direct().solve(recursion, y, keep=keep, observe=observe)
        refuse_transforms()
        if has_tangents(recursion, y):
            return push_forward(recursion, y, keep=keep, observe=observe)
        first = 0 if self.last is None else max(0, recursion.steps - self.last)
        stored, put = self.retrieval.stored(first, recursion.steps), self.retrieval.put
        how = Sweep(stored, keep, observe, graphs=self.graphs, first=first, put=put, pure=self.pure)
        swept, plan = sweep_and_plan(recursion, y, self.retrieval, how)
        if swept.random and self.refuse_random:
            raise RuntimeError(self.refuse_random)
        if self.refuse_state and (name := swept.state.unsettled):
            raise RuntimeError(self.refuse_state.format(name=name))
        if plan is None:
            return swept.outputs
        outputs: tuple[Tensor, ...] = Replay.apply(plan, swept, *plan.inputs)
        plan.parallel.prepare(outputs)
        return outputs


class Sweep(NamedTuple):
    """How to sweep: which stages to store, whether all states are outputs, who watches.

    ``states``: all states are returned, although only the last is an output; ``graphs``: bytes for whole graphs;
    ``first``: the first step that is differentiated: leaves of earlier ones are not looked for; ``put``: makes of a
    stage what is stored; ``pure``: whether steps between the first and the last may be taken without a graph.
    """

    stored: frozenset[int]
    keep: bool
    observe: Callable[[int, Carry], None]
    states: bool = False
    graphs: int = 0
    first: int = 0
    put: Callable[[Stage], Stage] = lambda stage: stage
    pure: bool = False


def sweep_and_plan(recursion: Recursion, y: Tensor, retrieval: Retrieval, how: Sweep) -> tuple[Swept, Plan | None]:
    """The forward sweep, and the plan of the backward pass unless the outputs depend on nothing that has a gradient."""
    held = nests.others(recursion.equation.tensors)
    sources = Sources.of(recursion.equation.module, recursion.after_step, *held)
    modes, watch, autocast = training_modes(sources), Watch(sources.places), Autocast.current(y.device)
    isolated, parallel = Isolated.of(recursion), Parallel.of(sources.modules)
    with parallel.sweeping():
        swept = sweep(isolated, recursion.start(y), how, autocast, sources)
    settle()
    watch.settle()
    noise = () if recursion.noise is None else recursion.noise.tensors
    given = [y, *nests.tensors(recursion.equation.tensors), *sources.parameters, *noise]
    declared = distinct(tensor for tensor in given if not swept.state.changes(tensor))
    reached = swept.reached
    if any(trace.is_unexamined for trace in swept.traces[how.first :]):
        # What these steps read is not known, so that all is asked for.
        weights = (tensor for tensor in sources.parameters if tensor.requires_grad and tensor.is_leaf)
        found = {id(tensor): tensor for tensor in (*weights, *isolated.copies)}
        reached = reached._replace(leaves=reached.leaves | found)
    inputs = _inputs(declared, isolated, y, reached)
    if not inputs:
        return swept, None
    return swept, Plan(
        isolated,
        y,
        inputs,
        wanting=tuple(distinct([*(tensor for tensor in declared if tensor.requires_grad), *inputs])),
        # Inference tensors have no version to watch, and can be changed in inference mode alone.
        watched=tuple(tensor for tensor in declared if not (tensor.requires_grad or tensor.is_inference())),
        retrieval=retrieval,
        keep=how.keep,
        autocast=autocast,
        swept=swept._replace(stages=[], kept={}, outputs=()),
        sources=sources,
        modes=modes,
        watch=watch,
        parallel=parallel,
        first=how.first,
    )


def _inputs(declared: Sequence[Tensor], isolated: Isolated, y: Tensor, reached: Reached) -> tuple[Tensor, ...]:
    """The tensors that the outputs depend on: declared ones first, then other leaves that the drift reads."""
    leaves = dict(reached.leaves)
    found = [y] if reached.start else []
    if reached.start:
        found += nests.tensors(isolated.base.equation.start)
    if reached.noise and isolated.base.noise is not None:
        found += isolated.base.noise.tensors
    pairs = zip(isolated.originals, isolated.copies, strict=True)
    found += [own for own, copy in pairs if leaves.pop(id(copy), None) is not None]
    found += leaves.values()
    met = {id(tensor) for tensor in found}
    ordered = distinct([*(tensor for tensor in declared if id(tensor) in met), *found])
    return tuple(tensor for tensor in ordered if tensor.requires_grad)


def sweep(isolated: Isolated, carry: Carry, how: Sweep, autocast: Autocast, sources: Sources) -> Swept:
    """Run all steps from ``carry_0``. Each builds its graph, without activations, and drops it once it has been read.

    Without a graph the network could take other code paths than in the recomputation, and a tensor that it caches would
    lose its history in silence; with one, the values are those of ``Direct`` bit by bit and a cached tensor is noticed.
    A step whose network needs its own activations, as it calls autograd itself, is evaluated again and keeps them until
    it is done, and so are the following ones. With bytes for graphs, those of the latest steps stay whole.
    Where the caller vouches for the network, the first and the last step say for all what they depend on.
    """
    last, device = isolated.base.steps - 1, carry.y.device
    steps = _Steps(isolated, how, autocast, sources, carry.y)
    state = steps.runner.state
    stages: list[tuple[int, Stage]] = []
    outputs: list[Tensor] = []
    traces: list[Trace] = []
    wanted = tuple(tensor.requires_grad for tensor in nests.tensors(carry))
    carry, generators = nests.map_tensors(Tensor.detach, carry), GeneratorStates.current(device)
    for n in range(last + 1):
        before = GeneratorStates.current(device, generators)
        drawn = None if before is generators else before  # by the observer
        held = state.mark()
        stage = Stage(carry, before, state.values())
        if n in how.stored or n == last:
            stages.append((n, how.put(stage)))
        taken = steps.take(n, stage, wanted)
        generators = GeneratorStates.current(device, before)
        traces.append(Trace(wanted, taken.fingerprint, taken.numbers, generators is not before, held, drawn))
        carry, wanted = taken.carry, taken.wanted
        how.observe(n + 1, carry)
        if how.keep or how.states or n == last:
            outputs.append(carry.y)
    state.settle()
    reading = steps.reading
    found = (reading.reached, tuple(traces), reading.borrows, steps.runner.saving, state)
    return Swept(stages, dict(steps.window.kept), tuple(outputs), *found)


class _Taken(NamedTuple):
    """A step that was taken: the carry it made, which of its tensors require gradients, and what its graph said."""

    carry: Carry
    wanted: tuple[bool, ...]
    fingerprint: Fingerprint | None
    numbers: array[float]


class _Steps:
    """Takes the steps of a forward sweep."""

    def __init__(self, isolated: Isolated, how: Sweep, autocast: Autocast, sources: Sources, y: Tensor) -> None:
        self._how, self._sources, self._last = how, sources, isolated.base.steps - 1
        self.runner, self.reading = _Runner(isolated, autocast, sources, y), _Reading(isolated, how, sources)
        self.window = KeptGraphs(how.graphs, sources, isolated)
        self._is_known = False

    def take(self, n: int, stage: Stage, wanted: tuple[bool, ...]) -> _Taken:
        """Step n: with its graph, or without it if it may be taken for like the ones before."""
        if self._is_known and n < self._last:
            carry = self.runner.run_without_graph(n, stage)
            self.runner.state.notice(updates=False)
            return _Taken(carry, (True,) * len(list(nests.tensors(carry))), None, NO_NUMBERS)
        return self._examined(n, stage, wanted)

    def _examined(self, n: int, stage: Stage, wanted: tuple[bool, ...]) -> _Taken:
        self.window.make_room()
        done = self.runner.run(n, stage, wanted, keep=self.window.is_open)
        seen = self.reading.read(n, done, self.runner.state)
        wanted = tuple(tensor.requires_grad for tensor in nests.tensors(done.out))
        refuse_hidden_tangents(done.out)
        carry = nests.map_tensors(Tensor.detach, done.out)
        # Compiled graphs give their buffers away in a backward pass, and allow none that keeps what lies behind gates.
        is_compiled = seen is not None and seen.kinds is None and not self._sources.is_scripted
        if is_compiled or (seen is not None and bool(seen.new)):
            done.activations.release()
        else:
            self.window.add(n, done)
        del done
        if seen is None:
            return _Taken(carry, wanted, None, NO_NUMBERS)
        self._is_known = self._how.pure and all(wanted) and self._is_plain(seen)
        return _Taken(carry, wanted, self.reading.settle(n, seen), seen.numbers)

    def _is_plain(self, seen: _Seen) -> bool:
        """Whether a step was as one expects: nothing compiled, differentiated inside, or changed by modules."""
        if seen.kinds is None or seen.new or not seen.enters or self._how.graphs:
            return False
        return self.runner.saving is Saving.DROPPED and not self.runner.state.changing


class _Runner:
    """Evaluates the steps of a forward sweep; one that needs its activations is evaluated again, with them."""

    def __init__(self, isolated: Isolated, autocast: Autocast, sources: Sources, y: Tensor) -> None:
        self._isolated, self._autocast = isolated.guarded, autocast
        isolated.guard.extend([y])
        self._weights = [tensor for tensor in sources.parameters if tensor.requires_grad and tensor.is_leaf]
        self.state = ModuleState.of(sources)
        self.saving = Saving.DROPPED

    def run(self, n: int, stage: Stage, wanted: Sequence[bool], *, keep: bool) -> Evaluation:
        while True:
            keeps = keep and self.saving is not Saving.PLAIN
            grads = self._grads()
            try:
                saving = Saving.HELD if keeps else self.saving
                with tentatively(ActivationsNeededError):
                    done = evaluate(self._isolated, n, stage.carry, wanted, self._autocast, saving)
            except ActivationsNeededError as error:
                self.saving = error.saving
                # Its frames hold the failed evaluation's graph, whose hooks hold the error, and this frame.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                stage.generators.restore()
                self.state.rewind(stage.held)
                continue
            if self._grads() != grads:
                raise RuntimeError(
                    "network: it calls backward(), which adds to the .grad of its weights at each evaluation, and once "
                    "more when a step is recomputed; use torch.autograd.grad in it, or pass adjoint=Direct()"
                )
            self._isolated.hand_on_hooks()
            return done

    def run_without_graph(self, n: int, stage: Stage) -> Carry:
        """Step n's carry alone."""
        return evaluate_without_graph(self._isolated, n, stage.carry, self._autocast)

    def _grads(self) -> list[tuple[int, int]]:
        """What tells whether gradients were accumulated, by networks that differentiate by themselves."""
        grads = [grad for grad in map(_GRAD, self._weights) if grad is not None]
        return [(id(grad), 0 if grad.is_inference() else grad._version) for grad in grads]


_GRAD = attrgetter("grad")


class _Seen(NamedTuple):
    """What the graph of a step says, without holding the graph.

    ``enters``, ``noise``: whether it depends on the carry before the step, and on its noise; ``kinds``, ``numbers``: of
    its nodes; ``known``: the arguments that it depends on, by their place; ``copies``: those of the equation among
    them; ``others``: its other leaves, ``new``: those of them that were not seen before, which may be the step's own.
    """

    enters: bool
    noise: bool
    kinds: Counter[type] | None
    numbers: array[float]
    known: frozenset[int]
    copies: list[Tensor]
    others: list[Tensor]
    new: list[weakref.ref[Tensor]]


class _Reading:
    """Reads off each step's graph what it depends on, and refuses what cannot be recomputed."""

    def __init__(self, isolated: Isolated, how: Sweep, sources: Sources) -> None:
        self.reached, self.borrows = Reached(), False
        self._isolated, self._how, self._sources = isolated, how, sources
        self._mark = sequence_number()
        self._made = weakref.WeakValueDictionary[int, Tensor]()
        self._parameters = list(sources.parameters)  # held, so that nobody else gets their numbers
        self._vetted = set(map(id, self._parameters))
        self._latest: Fingerprint | None = None

    def read(self, n: int, done: Evaluation, state: ModuleState) -> _Seen | None:
        """What is to be settled once the graph is gone; None if the step does not count."""
        found = done.dependencies(last=n == self._isolated.base.steps - 1)
        updates = _refuse_what_cannot_be_repeated(found)
        state.notice(updates=updates)
        if updates and not state.changing:
            raise RuntimeError(STATISTICS)
        self._refuse_direct_reads(found)
        self._made.update({id(tensor): tensor for tensor in (*done.own, *done.noise) if tensor is not None})
        if n < self._how.first:
            return None
        known = done.known(self._isolated)
        others = found.leaves_but(known)
        new = [tensor for tensor in others if id(tensor) not in self._vetted]
        if new:
            others = [tensor for tensor in others if id(tensor) in self._vetted]
        refuse_flat_parameters(new)
        if any(self._made.get(id(tensor)) is tensor for tensor in new):
            raise RuntimeError(
                "network: it used a tensor that an earlier evaluation had computed (a cache kept between calls), so a "
                "step depends on more than its state; make it a function of (x, t, cond), or use adjoint=Direct()"
            )
        self.borrows = self.borrows or found.precede(self._mark)
        met = {id(leaf) for leaf in found.leaves}
        kinds = kinds_of(found, opaque=self._sources.is_scripted)
        return _Seen(
            any(id(tensor) in met for tensor in done.own),
            any(id(tensor) in met for tensor in done.noise),
            kinds,
            NO_NUMBERS if kinds is None else numbers_of(found),
            places_of(found, known),
            [copy for copy in self._isolated.copies if id(copy) in met],
            others,
            [weakref.ref(tensor) for tensor in new],
        )

    def settle(self, n: int, seen: _Seen) -> Fingerprint:
        """What the outputs depend on, now that step n is done, through its entry and by itself; its fingerprint.

        A leaf that goes with the graph is the step's own, made in each evaluation anew.
        """
        new = [tensor for reference in seen.new if (tensor := reference()) is not None]
        others = [*seen.others, *new]
        before = self.reached if seen.enters or self._how.keep else Reached()
        leaves = {id(leaf): leaf for leaf in (*seen.copies, *others)}
        self.reached = Reached(
            before.start or (n == 0 and seen.enters), before.noise or seen.noise, before.leaves | leaves
        )
        self._isolated.guard.extend(others)
        self._vetted.update(map(id, new))
        fingerprint = Fingerprint(seen.kinds, seen.known.union(map(id, others)), len(seen.new) - len(new))
        if self._latest != fingerprint:
            self._latest = fingerprint
        return self._latest

    def _refuse_direct_reads(self, found: Dependencies) -> None:
        noise = () if self._isolated.base.noise is None else self._isolated.base.noise.tensors
        computed = [tensor for tensor in self._sources.tensors if tensor.requires_grad and not tensor.is_leaf]
        if any((t._backward_hooks or t.retains_grad) and found.includes(t) for t in computed):
            raise RuntimeError(
                "network: it reads a tensor that was computed outside of it and has a hook, or retain_grad(), which "
                "would see each step's part of the gradient; pass the tensor in cond, where it has the whole, or pass "
                "adjoint=Direct()"
            )
        if any(found.includes(tensor) for tensor in (*self._isolated.originals, *noise) if not tensor.is_leaf):
            raise RuntimeError(
                "network: it reads x_T, the noise or a tensor of cond not only as an argument but also directly "
                "(through a closure), and the tensor is not a leaf, so its gradient would miss a part; let the network "
                "use its arguments only, or pass adjoint=Direct()"
            )


FEW = 2**14
"""Bytes that nobody looks for: below, no graph is left out for them."""


class KeptGraphs:
    """Evaluations whose graphs stay whole for the backward pass: the latest ones, as many as fit into some bytes.

    And in no more memory than plain autograd takes, which holds all graphs, but no states, and no step's gradients
    beside their sums: so room for these is left free, and for two of a graph's tensors, as the backward pass holds a
    whole graph where autograd lets go of its part by part.
    """

    def __init__(self, nbytes: int, sources: Sources, isolated: Isolated) -> None:
        self.kept: deque[tuple[int, Evaluation]] = deque()
        self._budget = nbytes
        self._sizes: deque[int] = deque()
        self._latest = self._all = self._largest = 0
        given = [*sources.parameters, *nests.tensors(isolated.base.equation.tensors)] if nbytes else []
        self._elsewhere = {storage._cdata for tensor in given for storage in storages(tensor)}
        sizes = [_nbytes([tensor]) for tensor in given if tensor.requires_grad]
        # Of large ones the backward pass holds one part of one gradient at a time.
        self._gradients = 2 * sum(size for size in sizes if size < LARGE) + max([0, *sizes])

    @property
    def is_open(self) -> bool:
        """Whether the next evaluation may be kept."""
        return self._latest <= self._budget > 0

    def make_room(self) -> None:
        """Let go of the earliest graphs until one more of the latest size fits."""
        while self.kept and sum(self._sizes) + self._latest > self._budget:
            self._drop()

    def add(self, n: int, done: Evaluation) -> None:
        """Keep an evaluation if it fits, else let go of its activations."""
        if not self.is_open or done.activations.saving is not Saving.HELD:
            done.activations.release()
            return
        sizes = done.activations.sizes(self._elsewhere)
        self._latest, self._largest = sum(sizes), max([self._largest, *sizes])
        self._all += self._latest
        self.kept.append((n, done))
        self._sizes.append(self._latest)
        besides = (n + 1) * _nbytes(nests.tensors(done.out)) + self._gradients + 2 * self._largest
        room = self._budget if besides < FEW else min(self._budget, self._all - besides)
        while self.kept and sum(self._sizes) > room:
            self._drop()

    def _drop(self) -> None:
        _, done = self.kept.popleft()
        self._sizes.popleft()
        done.activations.release()


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if not is_lazy(tensor))


STATISTICS = (
    "network: a normalisation in training mode updates running statistics that are not buffers of a module that can be "
    "seen, and a recomputation would update them again; call network.eval(), or pass adjoint=Direct()"
)


def _refuse_what_cannot_be_repeated(found: Dependencies) -> bool:
    """Raise for what works once only; return whether a normalisation updates running statistics."""
    kinds = {kind: kind.__name__ for kind in set(map(type, found.nodes))}
    if "CheckpointFunctionBackward" in kinds.values():
        raise RuntimeError(
            "network: it uses torch.utils.checkpoint with use_reentrant=True, which works with .backward() alone; pass "
            "use_reentrant=False there, or adjoint=Direct() here"
        )
    norms = {kind for kind, name in kinds.items() if "BatchNorm" in name}
    return bool(norms) and any(updates_batch_statistics(node) for node in found.nodes if type(node) in norms)
