"""What modules change in themselves in a forward pass: buffers and plain attributes, put back for a recomputation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .sources import Place, Same, Sources, is_plain

_GET: Callable[[Any, str, Any], Any] = dict.get
LARGEST = 2**20  # bytes: counters and running statistics are small; larger buffers are data, which nobody changes


class _Special(Enum):
    NOTHING = "no value stands there"
    LARGE = "a tensor that is too large to be copied, or has no values yet"


class ModuleState:
    """Buffers (running statistics, averages), other tensors among attributes, and plain attributes (counters) that
    modules change in a forward pass.

    Each recomputation of a step starts from what they were before that step, and leaves them as the forward pass did.
    ``changing``: numbers of the places that were seen to change.
    """

    def __init__(self, buffers: Sequence[Place], attributes: Sequence[Place]) -> None:
        self._places = [*buffers, *attributes]
        self._holders = [place.holder for place in self._places]
        self._names = [place.name for place in self._places]
        self._buffers = len(buffers)
        self._initial = [_copied(value) for value in self._values()]
        self._marks = self._found()
        self.changing: set[int] = set()
        self._later: set[int] = set()
        self._is_first = True
        self._weights: list[tuple[Place, tuple[Same, int]]] = []
        self._changed_weight = ""

    @classmethod
    def of(cls, sources: Sources) -> ModuleState:
        """That of the modules among the sources, before the first step."""
        plain = [module for module in sources.modules if not isinstance(module, torch.jit.ScriptModule)]
        named = [(module, name) for module in plain for name in module._buffers]
        attributes = [place for place in sources.places if place.is_plain_setting]
        tensors = [place for place in sources.places if place.is_constant_tensor]
        state = cls([*(Place(module._buffers, name) for module, name in named), *tensors], attributes)
        # Kernels of normalisations change running statistics without telling autograd.
        state.changing |= {k for k, (module, name) in enumerate(named) if _is_updated(module, name)}
        plain = [module for module in plain if getattr(module, "max_norm", None) is None]  # scaled at every look-up
        weights = (Place(module._parameters, name) for module in plain for name in module._parameters)
        # Others are sharded, or have no values yet.
        kept = (place for place in weights if type(place.holder[place.name]) is nn.Parameter)
        state._weights = [(place, _version(place.holder[place.name])) for place in kept]
        return state

    def settle(self) -> None:
        """After the forward sweep: find weights that it changed in place."""
        weights = self._weights
        changed = (place.name for place, was in weights if _changed_in_place(was, place.holder.get(place.name)))
        self._changed_weight, self._weights = next(changed, ""), []

    def refuse_changed_weights(self) -> None:
        """Raise before a recomputation, which would change them once more."""
        if self._changed_weight:
            raise RuntimeError(
                f"network: its forward pass changes its weight {self._changed_weight!r} in place, so a recomputed step "
                "gave another state than the forward pass, or another factor of a branch of zeros; make it a buffer, "
                "which is put back, or use adjoint=Direct()"
            )

    @property
    def unsettled(self) -> str:
        """The name of one that changes in later steps than the first, too; empty if none does."""
        return self._places[min(self._later)].name if self._later else ""

    def changes(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that changes."""
        return any(self._value(k) is tensor for k in self.changing)

    def mark(self) -> dict[int, Any]:
        """Before a step: what stands there now, if some was changed since the last step, by a callback for instance."""
        found, changed = self._replaced()
        self._note(found, changed)
        return self.values() if changed & self.changing else {}

    def notice(self, *, updates: bool) -> None:
        """After a step: find what it has changed; ``updates``: whether its graph has updates that leave no mark."""
        found, changed = self._replaced()
        if updates:
            changed |= {k for k in range(self._buffers) if not _equal(self._initial[k], self._value(k))}
        self._note(found, changed)
        self._is_first = False

    def _note(self, found: list[Any], changed: set[int]) -> None:
        self._marks = found
        changed = {k for k in changed if (k < self._buffers and not _has_history(found[k])) or is_plain(found[k])}
        for k in changed - self.changing:
            if self._initial[k] is _Special.LARGE:
                raise RuntimeError(
                    f"network: its buffer {self._places[k].name!r} is changed by the forward pass and too large to be "
                    "restored for a recomputation; make it an argument, or pass adjoint=Direct()"
                )
        self.changing |= changed
        if not self._is_first:
            self._later |= changed

    def values(self) -> dict[int, Any]:
        """Copies of those that change."""
        return {k: _copied(self._value(k)) for k in sorted(self.changing)}

    def put(self, values: Mapping[int, Any]) -> None:
        """Put copies of ``values`` in their places."""
        for k, value in values.items():
            self._put(k, _copied(value))

    @contextmanager
    def swapped(self, values: Mapping[int, Any]) -> Iterator[None]:
        """With copies of ``values``, or of the initial ones, in the place of those that change."""
        kept = {k: self._value(k) for k in self.changing}
        try:
            for k in self.changing:
                self._put(k, _copied(values.get(k, self._initial[k])))
            yield
        finally:
            for k, value in kept.items():
                self._put(k, value)

    def rewind(self, values: Mapping[int, Any]) -> None:
        """Undo what a step changed that is taken again: in place, for whoever else holds the buffers."""
        for k in self.changing | self._replaced()[1]:
            if k >= self._buffers:
                self._put(k, self._marks[k])
                continue
            back, value = values.get(k, self._initial[k]), self._value(k)
            if isinstance(value, Tensor) and isinstance(back, Tensor) and self._marks[k][0] == Same(value):
                with torch.no_grad():
                    value.copy_(back)
            elif back is not _Special.LARGE:
                self._put(k, _copied(back))

    def _replaced(self) -> tuple[list[Any], set[int]]:
        """What is found now, and the places where it is something else than at the last mark."""
        found, marks = self._found(), self._marks
        count = self._buffers
        if found[:count] == marks[:count] and all(map(is_, found[count:], marks[count:])):
            return found, set()
        pairs = enumerate(zip(marks, found, strict=True))
        return found, {k for k, (was, now) in pairs if was is not now and not _same(was, now)}

    def _found(self) -> list[Any]:
        """What tells whether a buffer or an attribute was replaced or changed."""
        values = self._values()
        values[: self._buffers] = map(_version, values[: self._buffers])
        return values

    def _values(self) -> list[Any]:
        return list(map(_GET, self._holders, self._names, repeat(_Special.NOTHING)))

    def _value(self, k: int) -> Any:
        held, name, _ = self._places[k]
        return held.get(name, _Special.NOTHING)

    def _put(self, k: int, value: Any) -> None:
        held, name, _ = self._places[k]
        if value is _Special.NOTHING:
            held.pop(name, None)
        else:
            held[name] = value


def _version(buffer: Any) -> tuple[Same, int]:
    """Two that follow each other may have one ``id``, so the mark holds the buffer."""
    return Same(buffer), 0 if not isinstance(buffer, Tensor) or buffer.is_inference() else buffer._version


def _changed_in_place(was: tuple[Same, int], now: Any) -> bool:
    """Whether the same tensor has another version."""
    found = _version(now)
    return found[0] == was[0] and found[1] != was[1]


def _has_history(mark: tuple[Same, int]) -> bool:
    """Whether a marked tensor was computed from others: a cache, which cannot be copied."""
    return isinstance(mark[0].value, Tensor) and mark[0].value.requires_grad


def _is_updated(module: nn.Module, name: str) -> bool:
    """Whether a buffer is a running statistic of a normalisation in training."""
    statistics = isinstance(module, _NormBase) and name in ("running_mean", "running_var")
    return statistics and module.training and module._buffers[name] is not None


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if torch.nn.parameter.is_lazy(value) or value.numel() * value.element_size() > LARGEST:
        return _Special.LARGE
    return value.detach().clone()


def _same(was: Any, now: Any) -> bool:
    """Whether marks are the same: versions of buffers, or plain values."""
    comparable = type(was) is type(now) and (isinstance(was, tuple) or is_plain(was))
    return comparable and (was == now or (was != was and now != now))


def _equal(was: Any, now: Any) -> bool:
    tensors = isinstance(was, Tensor) and isinstance(now, Tensor)
    return torch.equal(was, now) if tensors else was is _Special.LARGE or was is now
