"""One step cut out of its surroundings: its arguments as leaves, what it depends on, what its graph saves."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ... import nests
from ...memory import storages
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
        base: the recursion as it was given.
        originals, copies: the equation's tensors that require gradients, each once, and their copies.
        gates: what the equation has in their places: the copies, or gates to them.
        guard: of this solve.
        gated: whether each step gets gates, as in a forward sweep.
    """

    base: Recursion
    originals: tuple[Tensor, ...]
    copies: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    guard: Guard
    gated: bool = False

    @classmethod
    def of(cls, recursion: Recursion) -> Isolated:
        """The recursion cut from the history of its arguments."""
        originals = distinct(tensor for tensor in nests.tensors(recursion.equation.tensors) if tensor.requires_grad)
        copies = tuple(leaf(tensor) for tensor in originals)
        return cls(recursion, tuple(originals), copies, copies, Guard())

    @property
    def guarded(self) -> Isolated:
        """On the same copies behind gates: for a forward sweep."""
        noise = () if self.base.noise is None else self.base.noise.tensors
        gates = tuple(self.guard.gate(copy, own) for copy, own in zip(self.copies, self.originals, strict=True))
        self.guard.extend([*gates, *noise])
        return replace(self, gates=gates, gated=True)

    @cached_property
    def recursion(self) -> Recursion:
        """The recursion on the copies."""
        equation = self.base.equation
        known = {id(own): gate for own, gate in zip(self.originals, self.gates, strict=True)}
        cut = nests.map_tensors(lambda tensor: known.get(id(tensor), tensor), equation.tensors)
        return replace(self.base, equation=equation.on(cut))

    def entry(self, carry: Carry, wanted: Sequence[bool]) -> tuple[Carry, list[Tensor | None]]:
        """The carry before a step as the step sees it, and the leaves of those of its tensors that require gradients.

        A tensor requires one where it would in plain autograd: networks may ask.
        """
        tensors = zip(nests.tensors(carry), wanted, strict=True)
        leaves = [leaf(tensor) if want else None for tensor, want in tensors]
        places = iter(leaves)

        def given(tensor: Tensor) -> Tensor:
            own = next(places)
            if own is None:
                return tensor
            return self.guard.gate(own, self.guard.behind) if self.gated else own

        return nests.map_tensors(given, carry), leaves

    def increment(self, n: int) -> tuple[Increment | None, list[Tensor]]:
        """Step n's noise, and those of its tensors that are leaves to differentiate with respect to."""
        noise, increment = self.base.noise, self.base.increment(n)
        if noise is None or increment is None or not any(tensor.requires_grad for tensor in noise.tensors):
            return increment, []
        leaves = nests.map_tensors(leaf, increment)
        guard = self.guard
        given = nests.map_tensors(lambda own: guard.gate(own, guard.behind), leaves) if self.gated else leaves
        return given, list(nests.tensors(leaves))

    def hand_on_hooks(self) -> None:
        """Move hooks that the network registered on a copy to the tensor itself, which has the total gradient."""
        for own, gate in zip(self.originals, self.gates, strict=True):
            hooks = gate._backward_hooks or {}
            for hook in hooks.values():
                own.register_hook(hook)
            hooks.clear()

    def drop_hooks(self) -> None:
        """Forget those that a recomputation has registered once more."""
        for gate in self.gates:
            (gate._backward_hooks or {}).clear()


def leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from its history, as a leaf that requires a gradient."""
    return tensor.detach().requires_grad_()


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without repetitions, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())


# Who leaves a step through its entry.


class Guard:
    """Refuses whoever walks a step's graph back through its entry.

    A tensor that was recorded inside of a step depends on all that came before, and its graph ends at the step's entry.
    So each entry is a ``Gate`` with an edge to what lies behind it: a derivative that would miss a part meets the gate
    on its way there and is refused.

    ``behind``: a tensor that depends on all of it, None if nothing does; ``refusal``: the last one, as a network may
    catch the error; ``is_open``: whether it is the backward sweep that walks, through a graph that was kept.
    """

    def __init__(self) -> None:
        self.behind: Tensor | None = None
        self.refusal: RuntimeError | None = None
        self.is_open = False
        self._known: set[int] = set()

    def extend(self, tensors: Iterable[Tensor]) -> None:
        """From now on these lie behind each entry, too."""
        new = [tensor for tensor in tensors if tensor.requires_grad and id(tensor) not in self._known]
        if new:
            self._known.update(map(id, new))
            self.behind = Behind.apply(*new, *(() if self.behind is None else (self.behind,)))

    def gate(self, own: Tensor, behind: Tensor | None) -> Tensor:
        """An entry from its leaf, with an edge to what lies behind it."""
        entry: Tensor = Gate.apply(self, own, behind)
        return entry

    @contextmanager
    def opened(self, is_open: bool) -> Iterator[None]:
        """For the backward sweep, where it walks through a graph that was kept."""
        before, self.is_open = self.is_open, is_open
        try:
            yield
        finally:
            self.is_open = before

    def refuse(self, sentence: str) -> NoReturn:
        """Raise, and remember it."""
        self.refusal = RuntimeError(sentence)
        raise self.refusal


RECORDED = (
    "network: a tensor that it computed inside of the sampler (recorded by it, or by a hook) is differentiated, and "
    "its gradient would end at the step's own state; measure the loss on what sample returns (trajectory=True has "
    "every state), let the network differentiate detached tensors, or pass adjoint=Direct()"
)


class Gate(torch.autograd.Function):
    """``apply(guard, leaf, behind)``: the leaf itself."""

    @staticmethod
    def forward(ctx: Any, guard: Guard, own: Tensor, behind: Tensor | None) -> Tensor:
        ctx.guard, ctx.own = guard, own
        ctx.set_materialize_grads(False)
        return own.detach() if own.layout is not torch.strided else own.view_as(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        guard: Guard = ctx.guard
        if not guard.is_open:
            guard.refuse(RECORDED)
        return None, grad, None


class Behind(torch.autograd.Function):
    """``apply(*tensors)``: a number that depends on them in name."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        return torch.zeros((), device="cpu")

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, ...]:
        return (None,) * ctx.count


# One step with its graph.


class Stage(NamedTuple):
    """Everything a recomputation starts from: the carry before a step, the global generators' states, buffers."""

    carry: Carry
    generators: GeneratorStates
    buffers: dict[int, Tensor]


class Trace(NamedTuple):
    """What the forward sweep saw of a step.

    ``wanted``: which tensors of the carry before it require gradients; ``fingerprint``: of its graph, None before the
    first step that counts; ``draws``: whether it drew from a global generator.
    """

    wanted: tuple[bool, ...]
    fingerprint: Fingerprint | None
    draws: bool


class Evaluation(NamedTuple):
    """One step with its graph: the carry it starts from and its noise, as leaves, and the carry it makes.

    ``own``: a leaf for each tensor of the carry that requires a gradient, None for the others; ``activations``: what
    the graph saves.
    """

    own: list[Tensor | None]
    noise: list[Tensor]
    out: Carry
    activations: Activations

    def known(self, isolated: Isolated) -> list[Tensor]:
        """The leaves that stand for the step's arguments."""
        return [*(tensor for tensor in self.own if tensor is not None), *self.noise, *isolated.copies]

    def dependencies(self, last: bool) -> Dependencies:
        """Of the carry; of the state alone after the last step, as what that remembers serves nobody."""
        return dependencies(nests.tensors(self.out.y if last else self.out))


class Saving(Enum):
    """What becomes of the activations of an evaluation."""

    DROPPED = "let go of at once, so that the graph has the structure and no content"
    HELD = "held until they are released, for networks that differentiate by themselves what they compute"
    PLAIN = "left to autograd, for networks that use torch.func, which allows nothing else"


def evaluate(
    isolated: Isolated, n: int, carry: Carry, wanted: Sequence[bool], autocast: Autocast, saving: Saving
) -> Evaluation:
    """Step n with its graph."""
    guard = isolated.guard
    guard.refusal = None
    activations = Activations(saving, guard)
    failed: Exception | None = None
    with torch.enable_grad():
        entry, own = isolated.entry(carry, wanted)
        increment, noise = isolated.increment(n)
        with activations.saved(), autocast.replayed():
            try:
                out = isolated.recursion.step(n, entry, increment)
            except Exception as error:
                failed = error
    # First our own errors, as the network may have caught them, or made others of them.
    for ours in (activations.missed, guard.refusal):
        if ours is not None:
            raise ours from (None if failed is ours else failed)
    if failed is not None:
        if saving is not Saving.PLAIN and isinstance(failed, RuntimeError) and "saved tensor hooks" in str(failed):
            raise ActivationsNeededError(Saving.PLAIN) from failed
        raise failed
    return Evaluation(own, noise, out, activations)


class ActivationsNeededError(RuntimeError):
    """The network differentiates by itself what it computed in the same evaluation."""

    def __init__(self, saving: Saving) -> None:
        super().__init__("the step is evaluated again, with its activations")
        self.saving = saving


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
    """The activations of one evaluation. ``missed``: the error of who asked for one that is gone."""

    def __init__(self, saving: Saving, guard: Guard) -> None:
        self.missed: ActivationsNeededError | None = None
        self._guard = guard
        self.saving = saving
        self._live = False
        self._slots: list[weakref.ref[_Slot]] = []

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Where the graph is built."""
        if self.saving is Saving.PLAIN:
            yield
            return
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
        """Bytes held, each storage once, but for storages ``elsewhere`` (by identity): the network's parameters."""
        slots = (reference() for reference in self._slots)
        tensors = (slot.tensor for slot in slots if slot is not None and slot.tensor is not None)
        held = {storage._cdata: storage.nbytes() for tensor in tensors for storage in storages(tensor)}
        return sum(size for key, size in held.items() if key not in elsewhere)

    def _pack(self, tensor: Tensor) -> _Slot:
        # Detached: a node that saves its own output would otherwise hold itself alive through the slot, for good.
        held = self.saving is Saving.HELD
        slot = _Slot(tensor.detach() if held else None)
        if held:
            self._slots.append(weakref.ref(slot))
        return slot

    def _unpack(self, slot: _Slot) -> Tensor:
        tensor = slot.get()
        if tensor is None and self._live:
            self.missed = ActivationsNeededError(Saving.HELD)
            raise self.missed
        if tensor is None:
            self._guard.refuse(
                "network: it used a tensor that an earlier evaluation had computed, whose graph is gone (a cache kept "
                "between calls); make it a function of (x, t, cond), or use adjoint=Direct()"
            )
        return tensor


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

    def reaches(self, tensor: Tensor | None) -> bool:
        """Whether a tensor is among the leaves."""
        return tensor is not None and any(leaf is tensor for leaf in self.leaves)


def dependencies(outputs: Iterable[Tensor]) -> Dependencies:
    """Walk the graphs of ``outputs`` back to their leaves. Linear in the number of nodes (about a microsecond each).

    An entry of a step (see ``Guard``) counts as its leaf.
    """
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
        name = type(node).__name__
        if name == "AccumulateGrad":
            leaves.append(node.variable)
            continue
        if name == "GateBackward":
            leaves.append(node.own)
            continue
        nodes.append(node)
        edges.update(node.next_functions)
        stack += [source for source, _ in node.next_functions if source is not None]
    return Dependencies(tuple(leaves), tuple(nodes), edges)


class Fingerprint(NamedTuple):
    """What tells a step's graph from another's: how many nodes of each type it has, and its leaves.

    ``nodes``: None where some are opaque (compiled or scripted code, which may be compiled anew at any call);
    ``leaves``: arguments by their place, all others by identity; ``passing``: how many more there are that each
    evaluation has of its own.
    """

    nodes: Counter[type] | None
    leaves: frozenset[int]
    passing: int = 0

    @classmethod
    def of(cls, found: Dependencies, known: Sequence[Tensor], *, opaque: bool) -> Fingerprint:
        places = {id(tensor): place for place, tensor in enumerate(known)}
        nodes = Counter(map(type, found.nodes))
        opaque = opaque or any(kind.__name__.startswith("CompiledFunction") for kind in nodes)
        leaves = frozenset(places.get(id(leaf), id(leaf)) for leaf in found.leaves)
        return cls(None if opaque else nodes, leaves)

    def counting(self, passing: Set[int]) -> Fingerprint:
        """The same with some of its leaves counted, and not known by their identity."""
        gone = self.leaves & passing
        return self._replace(leaves=self.leaves - gone, passing=len(gone)) if gone else self

    def differs(self, other: Fingerprint) -> str:
        """How another fingerprint differs, in words; empty if it does not."""
        if not self.leaves <= other.leaves or len(other.leaves - self.leaves) != self.passing:
            was, now = len(self.leaves) + self.passing, len(other.leaves)
            return f"it depends on {now} tensors that require gradients in place of {was}"
        if self.nodes is None or other.nodes is None or self.nodes == other.nodes:
            return ""
        counts = [(kind.__name__, self.nodes[kind], other.nodes[kind]) for kind in self.nodes | other.nodes]
        name, before, after = next(found for found in counts if found[1] != found[2])
        return f"{after} operations {name} in place of {before}"


def updates_batch_statistics(node: Any) -> bool:
    """Whether a graph node is a normalisation that changed its running statistics."""
    if not getattr(node, "_saved_training", False):
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
