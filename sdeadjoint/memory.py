"""Measuring the tensor memory of a computation, exactly and on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._C import _functorch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensor storages created inside the context, and remembers the largest sum alive at once.

        with PeakMemory() as memory:
            loss(sample(...)).backward()
        memory.peak  # bytes

    Deterministic and the same on every device: it sees the output of each operation, forward and backward, and
    the moment its storage dies. It does not see workspaces inside an operation, nor memory the allocator
    holds back; for those use ``torch.cuda.max_memory_allocated``. It slows small operations down: do not time under it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [storage for value in _tensors((out,)) for storage in storages(value)]
        if any(storage._cdata not in self._alive for storage in made):
            # An output on the storage of an argument is a view or an in-place result, not new memory.
            given = _tensors((args, tuple((kwargs or {}).values())))
            old = {storage._cdata for value in given for storage in storages(value)}
            for storage in made:
                if storage._cdata not in old:
                    self._count(storage)
        return out

    def _count(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._alive.pop(key)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Those in nested lists and tuples. Called for every operation, hence not the general walk over nests."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) is list or type(value) is tuple:
            yield from _tensors(value)


def storages(tensor: Tensor) -> Iterator[UntypedStorage]:
    """The storages that a tensor lies in: one, or those of its parts, or none where it has no values yet."""
    if torch.nn.parameter.is_lazy(tensor):
        return
    if _functorch.is_functorch_wrapped_tensor(tensor):
        yield from storages(_functorch.get_unwrapped(tensor))
    elif is_traceable_wrapper_subclass(tensor):
        parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        for part in parts:
            if isinstance(part, Tensor):  # a sharded one names its mesh of devices, too
                yield from storages(part)
    elif tensor.layout is torch.strided:
        yield tensor.untyped_storage()
    elif tensor.is_sparse:
        yield from (part.untyped_storage() for part in (tensor._indices(), tensor._values()))
