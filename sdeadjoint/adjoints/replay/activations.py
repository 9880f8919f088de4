"""What a step's graph saves for its derivatives: dropped at once, or held as long as it is wanted."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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
