"""The forward sweep of ``Checkpoint``: values and snapshots, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nests
from ..discretization import Carry, Discretization
from .binomial import positions
from .isolation import Isolated
from .leaves import Dependencies, dependencies, precedes, sequence_number, updates_batch_statistics
from .surroundings import Autocast, GeneratorStates


class Stage(NamedTuple):
    """Everything a recomputation starts from: the carry before a step and the global generators' states there."""

    carry: Carry
    generators: GeneratorStates


class Swept(NamedTuple):
    """What a forward sweep found.

    ``stages``: ``(n, stage before step n)`` for the steps to be stored and the last; ``outputs``: ``(y_N,)`` or all of
    ``y_1, ..., y_N``; ``leaves``: the leaves that the network read, declared or not, besides the copies of its
    arguments; ``borrows_graph``: whether it read tensors computed outside of it, whose graph must outlive each
    step's; ``differentiates``: whether it calls autograd itself.
    """

    stages: list[tuple[int, Stage]]
    outputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    borrows_graph: bool
    differentiates: bool


class Sweep(NamedTuple):
    """How to sweep: where snapshots go, what to return and who watches."""

    snapshots: int
    keep: bool
    autocast: Autocast
    observe: Callable[[int, Carry], None]


def sweep(isolated: Isolated, carry: Carry, how: Sweep) -> Swept:
    """Run all steps from ``carry_0``. Each builds its graph, without activations, and drops it once it has been read.

    Without a graph the network could take other code paths than in the recomputation, and a tensor that it caches would
    lose its history in silence; with one, the values are those of ``Direct`` bit by bit and a cached tensor is noticed.
    A step whose network needs its own activations, as it calls autograd itself, is evaluated again and keeps them until
    it is done, and so are the following ones.
    """
    last, device, mark = isolated.recursion.steps - 1, carry.y.device, sequence_number()
    wanted = {*positions(last + 1, how.snapshots), last}
    stages: list[tuple[int, Stage]] = []
    outputs: list[Tensor] = []
    leaves: dict[int, Tensor] = {}
    differentiates, borrows, generators = False, False, None
    for n in range(last + 1):
        generators = GeneratorStates.current(device, generators)
        if n in wanted:
            stages.append((n, Stage(carry, generators)))
        try:
            out, found, own = _examined(isolated, n, carry, how.autocast, keep=differentiates)
        except ActivationsNeededError:
            differentiates = True
            generators.restore()
            out, found, own = _examined(isolated, n, carry, how.autocast, keep=True)
        leaves |= {id(leaf): leaf for leaf in found.leaves_but(own)}
        borrows |= any(precedes(node, mark) for node in found.nodes)
        carry = nests.map_tensors(Tensor.detach, out)
        del out, found, own
        how.observe(n + 1, carry)
        if how.keep or n == last:
            outputs.append(carry.y)
    return Swept(stages, tuple(outputs), tuple(leaves.values()), borrows, differentiates)


def _examined(
    isolated: Isolated, n: int, carry: Carry, autocast: Autocast, *, keep: bool
) -> tuple[Carry, Dependencies, list[Tensor]]:
    """Step n, what it depends on, and which of these are leaves made for it."""
    entry, noise, out = evaluate(isolated, n, carry, autocast, keep=keep)
    found = dependencies(nests.tensors(out))
    _refuse_what_cannot_be_repeated(found.nodes)
    noise_tensors = () if isolated.recursion.noise is None else isolated.recursion.noise.tensors
    if any(found.includes(tensor) for tensor in (*isolated.originals, *noise_tensors) if not tensor.is_leaf):
        raise RuntimeError(
            "network: it reads x_T, the noise or a tensor of cond not only as an argument but also directly (through a "
            "closure), and the tensor is not a leaf, so its gradient would miss a part; let the network use its "
            "arguments only, or pass adjoint=Direct()"
        )
    return out, found, [*nests.tensors(entry), *noise, *isolated.copies]


class ActivationsNeededError(RuntimeError):
    """The network differentiates by itself what it computed in the same evaluation."""


class Activations:
    """What a step's graph saves for its derivatives: let go of at once, or kept until the step is done."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._live = True
        self._kept: list[Tensor] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._live = False
            self._kept.clear()

    def _pack(self, tensor: Tensor) -> int:
        if self.keep:
            self._kept.append(tensor)
        return len(self._kept) - 1

    def _unpack(self, place: int) -> Tensor:
        if self._live and self.keep:
            return self._kept[place]
        if self._live:
            raise ActivationsNeededError
        raise RuntimeError(
            "network: it used a tensor that an earlier evaluation had computed, whose graph is gone (a cache kept "
            "between calls); make it a function of (x, t, cond), or use adjoint=Direct()"
        )


def evaluate(
    isolated: Isolated, n: int, carry: Carry, autocast: Autocast, *, keep: bool
) -> tuple[Carry, list[Tensor], Carry]:
    """Step n with its graph: the carry it starts from and its noise, as leaves, and the carry it makes."""
    entry = isolated.entry(n, carry)
    increment, noise = isolated.increment(n)
    with torch.enable_grad(), Activations(keep=keep).held(), autocast.replayed():
        return entry, noise, isolated.recursion.step(n, entry, increment)


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
