"""Measuring the tensor memory of a computation, exactly and on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
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
        # Bytes by storage, with a reference that tells when the storage dies.
        self._alive: dict[int, tuple[int, weakref.ref[UntypedStorage]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = [storage for storage in _storages((out,), []) if storage._cdata not in self._alive]
        if made:
            # An output on the storage of an argument is a view or an in-place result, not new memory.
            old = {storage._cdata for storage in _storages((*args, *kwargs.values()), [])}
            for storage in made:
                if storage._cdata not in old:
                    self._count(storage)
        return out

    def _count(self, storage: UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = size, weakref.ref(storage, partial(self._forget, key))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, died: weakref.ref[UntypedStorage]) -> None:
        self.live -= self._alive.pop(key)[0]


def _storages(values: Iterable[Any], found: list[UntypedStorage]) -> list[UntypedStorage]:
    """Add those of tensors in nested lists and tuples. Called for every operation: not the general walk over nests."""
    for value in values:
        if type(value) is Tensor and value.layout is torch.strided and not is_functorch_wrapped_tensor(value):
            found.append(value.untyped_storage())
        elif isinstance(value, Tensor):
            found.extend(storages(value))
        elif type(value) is list or type(value) is tuple:
            _storages(value, found)
    return found


def storages(tensor: Tensor) -> Iterator[UntypedStorage]:
    """The storages that a tensor lies in: one, or those of its parts, or none where it has no values yet."""
    if torch.nn.parameter.is_lazy(tensor):
        return
    if is_functorch_wrapped_tensor(tensor):
        yield from storages(get_unwrapped(tensor))
    elif is_traceable_wrapper_subclass(tensor):
        parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        for part in parts:
            if isinstance(part, Tensor):  # a sharded one names its mesh of devices, too
                yield from storages(part)
    elif tensor.layout is torch.strided:
        yield tensor.untyped_storage()
    elif tensor.is_sparse:
        yield from (part.untyped_storage() for part in (tensor._indices(), tensor._values()))
