"""The forward sweep of the replaying adjoints: values and stored stages, and what they depend on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ... import nests
from ...discretization import Carry, Discretization
from .activations import Activations, ActivationsNeededError
from .isolation import Isolated
from .leaves import Dependencies, dependencies, precedes, sequence_number, updates_batch_statistics
from .surroundings import Autocast, GeneratorStates


class Stage(NamedTuple):
    """Everything a recomputation starts from: the carry before a step and the global generators' states there."""

    carry: Carry
    generators: GeneratorStates


class Evaluation(NamedTuple):
    """One step with its graph: the carry it starts from and its noise, as leaves, and the carry it makes.

    ``activations``: what the graph saves, None for ordinary saving.
    """

    entry: Carry
    noise: list[Tensor]
    out: Carry
    activations: Activations | None = None


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
    window, made = Window(how.graphs, isolated), WeakValueDictionary[int, Tensor]()
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


class Window:
    """Evaluations whose graphs stay whole for the backward pass: the latest ones, as many as fit into some bytes."""

    def __init__(self, nbytes: int, isolated: Isolated) -> None:
        self.kept: deque[tuple[int, Evaluation]] = deque()
        self._room = nbytes
        self._sizes: deque[int] = deque()
        self._latest = 0
        parameters = [*isolated.recursion.denoiser.parameters(), *isolated.recursion.denoiser.buffers()]
        states = [*isolated.copies, isolated.x_T]
        self._elsewhere = {tensor.untyped_storage().data_ptr() for tensor in (*parameters, *states)}

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


def evaluate(isolated: Isolated, n: int, carry: Carry, autocast: Autocast, *, keep: bool) -> Evaluation:
    """Step n with its graph."""
    entry = isolated.entry(n, carry)
    increment, noise = isolated.increment(n)
    activations = Activations(keep=keep)
    with torch.enable_grad(), activations.saved(), autocast.replayed():
        return Evaluation(entry, noise, isolated.recursion.step(n, entry, increment), activations)


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


def training_modes(recursion: Discretization) -> tuple[bool, ...]:
    """Whether each module of the network is in training mode."""
    return tuple(module.training for module in recursion.denoiser.modules())
