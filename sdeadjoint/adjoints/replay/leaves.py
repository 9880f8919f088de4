"""One step cut out of its surroundings: its arguments as leaves, what it depends on, what its graph saves."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ... import nests
from ...equation import Equation
from ...noise import Increment
from ...recursion import Carry, Recursion
from .surroundings import Autocast, GeneratorStates

# Arguments as leaves.


@dataclass(frozen=True)
class Isolated:
    """A recursion on copies of its arguments, cut from their history.

    The graph of a step then ends in these copies, in the module's parameters and in other leaves that the drift reads,
    none of which can be reached through another: an argument that was computed from a parameter, or from another
    argument, is not counted twice, and hooks on it see its total gradient once.

    Args:
        recursion: the recursion, its equation on the copies.
        originals, copies: the equation's tensors that require gradients, each once, and their copies.
        starts: whether the initial state requires a gradient.
    """

    recursion: Recursion
    originals: tuple[Tensor, ...]
    copies: tuple[Tensor, ...]
    starts: bool

    def entry(self, n: int, carry: Carry) -> Carry:
        """The carry before step n as leaves; an initial state that needs no gradient stays as it is."""
        if n == 0 and not self.starts:
            return carry
        return Carry(*nests.map_tensors(leaf, carry))

    def increment(self, n: int) -> tuple[Increment | None, list[Tensor]]:
        """Step n's noise, and those of its tensors that are leaves to differentiate with respect to."""
        noise, increment = self.recursion.noise, self.recursion.increment(n)
        if noise is None or increment is None or not any(tensor.requires_grad for tensor in noise.tensors):
            return increment, []
        increment = nests.map_tensors(leaf, increment)
        return increment, list(nests.tensors(increment))


def isolate(recursion: Recursion, y: Tensor) -> Isolated:
    """Cut the recursion from the history of its arguments; ``y`` is the initial state."""
    equation = recursion.equation
    originals = distinct(tensor for tensor in nests.tensors(equation.tensors) if tensor.requires_grad)
    copies = {id(tensor): leaf(tensor) for tensor in originals}
    cut = nests.map_tensors(lambda tensor: copies.get(id(tensor), tensor), equation.tensors)
    return Isolated(
        replace(recursion, equation=equation.on(cut)), tuple(originals), tuple(copies.values()), y.requires_grad
    )


def parameters(equation: Equation) -> list[Tensor]:
    """The parameters and buffers of the equation's module."""
    module = equation.module
    return [] if module is None else [*module.parameters(), *module.buffers()]


def modules(equation: Equation) -> list[nn.Module]:
    """The equation's module and all modules in it."""
    return [] if equation.module is None else list(equation.module.modules())


def leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from its history, as a leaf that requires a gradient.

    Its gradient is asked for by name. One that is accumulated comes from a loss that reaches into the sampler.
    """
    cut = tensor.detach().requires_grad_()
    cut.register_post_accumulate_grad_hook(_refuse_use_outside)
    return cut


def _refuse_use_outside(cut: Tensor) -> None:
    cut.grad = None
    raise RuntimeError(
        "network: a tensor that it computed inside of the sampler (recorded by it, or by a hook) is used in the loss, "
        "and its gradient would end there; measure the loss on what sample returns (trajectory=True has every "
        "state), or pass adjoint=Direct()"
    )


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without repetitions, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())


@contextmanager
def hooks_off(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Without the hooks that users registered on leaves, which are for a gradient's total, not for a step's part."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor.is_leaf and tensor._backward_hooks]
    for tensor, _ in hooked:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks


# One step with its graph.


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


def evaluate(isolated: Isolated, n: int, carry: Carry, autocast: Autocast, *, keep: bool) -> Evaluation:
    """Step n with its graph."""
    entry = isolated.entry(n, carry)
    increment, noise = isolated.increment(n)
    activations = Activations(keep=keep)
    with torch.enable_grad(), activations.saved(), autocast.replayed():
        return Evaluation(entry, noise, isolated.recursion.step(n, entry, increment), activations)


class ActivationsNeededError(RuntimeError):
    """The network differentiates by itself what it computed in the same evaluation."""


class _Slot:
    """A saved tensor in the hands of the graph node that needs it: freed with the node, or emptied before."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor = tensor
        self.version = 0 if tensor is None or tensor.is_inference() else tensor._version

    def get(self) -> Tensor | None:
        if self.tensor is not None and not self.tensor.is_inference() and self.tensor._version != self.version:
            raise RuntimeError(
                "network: it changed in place a tensor that its derivative needs; let it work on a copy (clone)"
            )
        return self.tensor


class Activations:
    """The activations of one evaluation.

    ``keep=False`` lets go of each at once, so that the graph has the structure and no content; ``keep=True`` holds
    them until ``release``.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._live = False
        self._slots: list[weakref.ref[_Slot]] = []

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Where the graph is built."""
        self._live = True
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._live = False

    def release(self) -> None:
        """Let go of what is held."""
        for reference in self._slots:
            if (slot := reference()) is not None:
                slot.tensor = None
        self._slots.clear()

    def nbytes(self, elsewhere: set[int]) -> int:
        """Bytes held, each storage once, but for storages ``elsewhere`` (by address): the network's parameters."""
        slots = (reference() for reference in self._slots)
        held = (slot.tensor.untyped_storage() for slot in slots if slot is not None and slot.tensor is not None)
        sizes = {storage.data_ptr(): storage.nbytes() for storage in held}
        return sum(size for address, size in sizes.items() if address not in elsewhere)

    def _pack(self, tensor: Tensor) -> _Slot:
        # Detached: a node that saves its own output would otherwise hold itself alive through the slot, for good.
        slot = _Slot(tensor.detach() if self.keep else None)
        if self.keep:
            self._slots.append(weakref.ref(slot))
        return slot

    def _unpack(self, slot: _Slot) -> Tensor:
        tensor = slot.get()
        if tensor is not None:
            return tensor
        if self._live:
            raise ActivationsNeededError
        raise RuntimeError(
            "network: it used a tensor that an earlier evaluation had computed, whose graph is gone (a cache kept "
            "between calls); make it a function of (x, t, cond), or use adjoint=Direct()"
        )


# What a graph depends on.


class Dependencies(NamedTuple):
    """The leaves that outputs depend on, all graph nodes in between, and the edges (node, output) walked."""

    leaves: tuple[Tensor, ...]
    nodes: tuple[Any, ...]
    edges: set[tuple[Any, int]]

    def includes(self, tensor: Tensor) -> bool:
        """Whether a tensor that is not a leaf was met on the way."""
        edge = get_gradient_edge(tensor)
        return (edge.node, edge.output_nr) in self.edges

    def leaves_but(self, known: Iterable[Tensor]) -> list[Tensor]:
        """The leaves that are none of the ``known`` tensors."""
        identities = {id(tensor) for tensor in known}
        return [leaf for leaf in self.leaves if id(leaf) not in identities]


def dependencies(outputs: Iterable[Tensor]) -> Dependencies:
    """Walk the graphs of ``outputs`` back to their leaves. Linear in the number of nodes (about a microsecond each)."""
    leaves: list[Tensor] = []
    nodes = []
    seen = set()
    edges: set[tuple[Any, int]] = set()
    stack: list[Any] = [get_gradient_edge(tensor).node for tensor in outputs if tensor.requires_grad]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
            continue
        nodes.append(node)
        edges.update(node.next_functions)
        stack += [source for source, _ in node.next_functions if source is not None]
    return Dependencies(tuple(leaves), tuple(nodes), edges)


def updates_batch_statistics(node: Any) -> bool:
    """Whether a graph node is a normalisation that changed its running statistics."""
    if "BatchNorm" not in type(node).__name__ or not node._saved_training:
        return False
    try:
        return node._saved_running_mean is not None
    except RuntimeError:
        return True  # they are there, but were dropped from the graph with the activations


def sequence_number() -> int:
    """A number that graph nodes made later on this thread exceed; see ``precedes``."""
    with torch.enable_grad():
        return int(torch.zeros((), requires_grad=True).mul(1).grad_fn._sequence_nr())  # type: ignore[union-attr]


def precedes(node: Any, number: int) -> bool:
    """Whether the node was there before ``sequence_number()`` gave ``number``; in doubt, outside the main thread, yes.

    (PyTorch numbers the nodes of each thread by themselves.)
    """
    return int(node._sequence_nr()) < number or threading.current_thread() is not threading.main_thread()
