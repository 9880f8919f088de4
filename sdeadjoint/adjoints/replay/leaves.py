"""One step cut out of its surroundings: its arguments as leaves, its evaluation, what its graph saves."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, partial
from operator import is_
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ... import nests
from ...memory import storages
from ...noise import Increment
from ...recursion import Carry, Recursion
from .graphs import Dependencies, Fingerprint, dependencies
from .guard import Guard
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


# One step with its graph.


class Stage(NamedTuple):
    """Everything a recomputation starts from: the carry before a step, the global generators' states, and what modules
    hold that they change."""

    carry: Carry
    generators: GeneratorStates
    held: dict[int, Any]

    def on(self, device: torch.device) -> Stage:
        """The same with its carry on a device; with CUDA the host may go on before it is there."""
        return self._replace(carry=nests.map_tensors(lambda tensor: _moved(tensor, device), self.carry))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; CUDA's lie on the host in pinned memory. Only CUDA's copies are known to be in order."""
    if device.type == "cpu" and tensor.device.type == "cuda":
        return torch.empty_like(tensor, device=device, pin_memory=True).copy_(tensor, non_blocking=True)
    return tensor.to(device, non_blocking=device.type == "cuda")


class Trace(NamedTuple):
    """What the forward sweep saw of a step.

    ``wanted``: which tensors of the carry before it require gradients; ``fingerprint``: of its graph, None before the
    first step that counts, and of steps that were taken without one; ``numbers``: that its graph multiplies by;
    ``draws``: whether it drew from a global generator; ``held``, ``generators``: what modules hold before it, and the
    generators' states, where a callback changed them after the step before.
    """

    wanted: tuple[bool, ...]
    fingerprint: Fingerprint | None
    numbers: array[float]
    draws: bool
    held: dict[int, Any]
    generators: GeneratorStates | None

    @property
    def is_unexamined(self) -> bool:
        """Whether nobody has looked at the step's graph."""
        return self.fingerprint is None


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


def evaluate_without_graph(isolated: Isolated, n: int, carry: Carry, autocast: Autocast) -> Carry:
    """Step n's carry alone, of a network that is known to compute the same without gradients."""
    with torch.no_grad(), autocast.replayed():
        return isolated.recursion.step(n, carry, isolated.base.increment(n))


class ActivationsNeededError(RuntimeError):
    """The network differentiates by itself what it computed in the same evaluation."""

    def __init__(self, saving: Saving) -> None:
        super().__init__("the step is evaluated again, with its activations")
        self.saving = saving


class _Slot:
    """A saved tensor in the hands of the graph node that needs it: freed with the node, or emptied before."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.version = 0 if tensor.is_inference() else tensor._version

    def get(self) -> Tensor | None:
        if self.tensor is not None and not self.tensor.is_inference() and self.tensor._version != self.version:
            raise RuntimeError(
                "network: it changed in place a tensor that its derivative needs; let it work on a copy (clone)"
            )
        return self.tensor


_drop = partial(is_, None)
"""In the place of a saved tensor, False. Written in C, as autograd calls it for every tensor that a node saves."""


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
        pack: Callable[[Tensor], Any] = self._hold if self.saving is Saving.HELD else _drop
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, self._unpack):
                yield
        finally:
            self._live = False

    def release(self) -> None:
        """Let go of what is held."""
        for reference in self._slots:
            if (slot := reference()) is not None:
                slot.tensor = None
        self._slots.clear()

    def sizes(self, elsewhere: set[int]) -> list[int]:
        """The bytes of each storage that is held, but for storages ``elsewhere`` (by identity): the parameters."""
        slots = (reference() for reference in self._slots)
        tensors = (slot.tensor for slot in slots if slot is not None and slot.tensor is not None)
        held = {storage._cdata: storage.nbytes() for tensor in tensors for storage in storages(tensor)}
        return [size for key, size in held.items() if key not in elsewhere]

    def _hold(self, tensor: Tensor) -> _Slot:
        # Detached: a node that saves its own output would otherwise hold itself alive through the slot, for good.
        slot = _Slot(tensor.detach())
        self._slots.append(weakref.ref(slot))
        return slot

    def _unpack(self, slot: _Slot | Literal[False]) -> Tensor:
        tensor = slot.get() if slot else None
        if tensor is None and self._live:
            self.missed = ActivationsNeededError(Saving.HELD)
            raise self.missed
        if tensor is None:
            self._guard.refuse(
                "network: it used a tensor that an earlier evaluation had computed, whose graph is gone (a cache kept "
                "between calls); make it a function of (x, t, cond), or use adjoint=Direct()"
            )
        return tensor
