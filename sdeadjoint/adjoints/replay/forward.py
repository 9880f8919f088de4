"""The forward sweep of the replaying adjoints: values and stored stages, and what they depend on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ... import nests
from ...recursion import Carry, Observer, Recursion
from ..direct import Direct
from .backward import Plan, Replay, Retrieval, Swept, training_modes
from .leaves import (
    ActivationsNeededError,
    Dependencies,
    Evaluation,
    Isolated,
    Stage,
    dependencies,
    distinct,
    evaluate,
    isolate,
    parameters,
    precedes,
    sequence_number,
    updates_batch_statistics,
)
from .surroundings import Autocast, GeneratorStates


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

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return Direct().solve(recursion, y, keep=keep, observe=observe)
        first = 0 if self.last is None else max(0, recursion.steps - self.last)
        swept, plan = sweep_and_plan(
            recursion, y, self.retrieval, keep=keep, observe=observe, graphs=self.graphs, first=first
        )
        if swept.random and self.refuse_random:
            raise RuntimeError(self.refuse_random)
        if plan is None:
            return swept.outputs
        outputs: tuple[Tensor, ...] = Replay.apply(plan, swept, *plan.inputs)
        return outputs


def sweep_and_plan(
    recursion: Recursion,
    y: Tensor,
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
    given = nests.tensors(recursion.equation.tensors)
    declared = distinct([y, *given, *parameters(recursion.equation), *noise])
    autocast, isolated = Autocast.current(y.device), isolate(recursion, y)
    stored = retrieval.stored(first, recursion.steps)
    how = Sweep(stored, keep or states, autocast, observe, graphs=graphs, first=first)
    swept = sweep(isolated, recursion.start(y.detach()), how)
    inputs = distinct([*(tensor for tensor in declared if tensor.requires_grad), *swept.leaves])
    if not inputs:
        return swept, None
    return swept, Plan(
        isolated,
        y,
        tuple(inputs),
        # Inference tensors have no version to watch, and can be changed in inference mode alone.
        watched=tuple(tensor for tensor in declared if not (tensor.requires_grad or tensor.is_inference())),
        retrieval=retrieval,
        keep=keep,
        autocast=autocast,
        borrows_graph=swept.borrows_graph,
        differentiates=swept.differentiates,
        modes=training_modes(recursion.equation),
        first=first,
    )


class Sweep(NamedTuple):
    """How to sweep: which stages to store, what to return, who watches, bytes for graphs, the first step that counts.

    The leaves of steps before ``first`` are not looked for.
    """

    stored: frozenset[int]
    keep: bool
    autocast: Autocast
    observe: Callable[[int, Carry], None]
    graphs: int = 0
    first: int = 0


def sweep(isolated: Isolated, carry: Carry, how: Sweep) -> Swept:
    """Run all steps from ``carry_0``. Each builds its graph, without activations, and drops it once it has been read.

    Without a graph the network could take other code paths than in the recomputation, and a tensor that it caches would
    lose its history in silence; with one, the values are those of ``Direct`` bit by bit and a cached tensor is noticed.
    A step whose network needs its own activations, as it calls autograd itself, is evaluated again and keeps them until
    it is done, and so are the following ones. With bytes for graphs, those of the latest steps stay whole.
    """
    last, device, mark = isolated.recursion.steps - 1, carry.y.device, sequence_number()
    window, made = KeptGraphs(how.graphs, isolated, carry.y), WeakValueDictionary[int, Tensor]()
    stages: list[tuple[int, Stage]] = []
    outputs: list[Tensor] = []
    leaves: dict[int, Tensor] = {}
    differentiates, borrows, random, generators = False, False, False, GeneratorStates.current(device)
    for n in range(last + 1):
        generators = GeneratorStates.current(device, generators)  # the observer may have drawn
        if n in how.stored or n == last:
            stages.append((n, Stage(carry, generators)))
        window.make_room()
        try:
            done, found = _examined(isolated, n, carry, how.autocast, keep=differentiates or window.is_open)
        except ActivationsNeededError:
            differentiates = True
            generators.restore()
            done, found = _examined(isolated, n, carry, how.autocast, keep=True)
        own = [*nests.tensors(done.entry), *done.noise, *isolated.copies]
        if n >= how.first:
            _refuse_connections(found, made, own)
            leaves |= {id(leaf): leaf for leaf in found.leaves_but(own)}
            borrows |= any(precedes(node, mark) for node in found.nodes)
        made.update({id(tensor): tensor for tensor in own[: len(own) - len(isolated.copies)]})
        carry = nests.map_tensors(Tensor.detach, done.out)
        window.add(n, done)
        del done, found, own
        random = random or GeneratorStates.current(device, generators) is not generators
        how.observe(n + 1, carry)
        if how.keep or n == last:
            outputs.append(carry.y)
    return Swept(stages, dict(window.kept), tuple(outputs), tuple(leaves.values()), borrows, differentiates, random)


class KeptGraphs:
    """Evaluations whose graphs stay whole for the backward pass: the latest ones, as many as fit into some bytes."""

    def __init__(self, nbytes: int, isolated: Isolated, y: Tensor) -> None:
        self.kept: deque[tuple[int, Evaluation]] = deque()
        self._room = nbytes
        self._sizes: deque[int] = deque()
        self._latest = 0
        given = [*parameters(isolated.recursion.equation), *isolated.copies, y]
        self._elsewhere = {tensor.untyped_storage().data_ptr() for tensor in given}

    @property
    def is_open(self) -> bool:
        """Whether the next evaluation may be kept."""
        return self._latest <= self._room > 0

    def make_room(self) -> None:
        """Let go of the earliest graphs until one more of the latest size fits."""
        while self.kept and sum(self._sizes) + self._latest > self._room:
            self._drop()

    def add(self, n: int, done: Evaluation) -> None:
        """Keep an evaluation if it fits, else let go of its activations."""
        assert done.activations is not None
        if self.is_open:
            self._latest = done.activations.nbytes(self._elsewhere)
            if self._latest <= self._room:
                self.kept.append((n, done))
                self._sizes.append(self._latest)
                while sum(self._sizes) > self._room:
                    self._drop()
                return
        done.activations.release()

    def _drop(self) -> None:
        _, done = self.kept.popleft()
        self._sizes.popleft()
        if done.activations is not None:
            done.activations.release()


def _refuse_connections(found: Dependencies, made: Mapping[int, Tensor], own: list[Tensor]) -> None:
    """Raise if a step depends on what was made for an earlier one: through a tensor that the network kept."""
    if any(made.get(id(tensor)) is tensor for tensor in found.leaves_but(own)):
        raise RuntimeError(
            "network: it used a tensor that an earlier evaluation had computed (a cache kept between calls), so a step "
            "depends on more than its state; make it a function of (x, t, cond), or use adjoint=Direct()"
        )


def _examined(
    isolated: Isolated, n: int, carry: Carry, autocast: Autocast, *, keep: bool
) -> tuple[Evaluation, Dependencies]:
    """Step n and what it depends on."""
    done = evaluate(isolated, n, carry, autocast, keep=keep)
    found = dependencies(nests.tensors(done.out))
    _refuse_what_cannot_be_repeated(found.nodes)
    noise = () if isolated.recursion.noise is None else isolated.recursion.noise.tensors
    if any(found.includes(tensor) for tensor in (*isolated.originals, *noise) if not tensor.is_leaf):
        raise RuntimeError(
            "network: it reads x_T, the noise or a tensor of cond not only as an argument but also directly (through a "
            "closure), and the tensor is not a leaf, so its gradient would miss a part; let the network use its "
            "arguments only, or pass adjoint=Direct()"
        )
    return done, found


def _refuse_what_cannot_be_repeated(nodes: Iterable[Any]) -> None:
    if any(updates_batch_statistics(node) for node in nodes):
        raise RuntimeError(
            "network: a normalisation layer in training mode updates its running statistics, which a recomputation "
            "would update again; call network.eval(), set track_running_stats=False, or pass adjoint=Direct()"
        )
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes):
        raise RuntimeError(
            "network: it uses torch.utils.checkpoint with use_reentrant=True, which works with .backward() alone; pass "
            "use_reentrant=False there, or adjoint=Direct() here"
        )
