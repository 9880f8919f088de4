"""What modules change in themselves in a forward pass: buffers and plain attributes, put back for a recomputation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .places import Places, Same, Special, is_plain
from .sources import Sources

LARGEST = 2**20  # bytes: counters and running statistics are small; larger buffers are data, which nobody changes


class ModuleState:
    """Buffers (running statistics, averages), other tensors among attributes, and plain attributes (counters) that
    modules change in a forward pass.

    Each recomputation of a step starts from what they were before that step, and leaves them as the forward pass did.
    ``changing``: numbers of the places that were seen to change.
    """

    def __init__(self, places: Places, buffers: int, weights: Places) -> None:
        """Begin before the first step. Of the ``places`` the first ones are of ``buffers``."""
        self._places, self._buffers = places, buffers
        self._initial = [_copied(value) for value in places.read()]
        self._marks = self._found()
        self.changing: set[int] = set()
        self._later: set[int] = set()
        self._is_first = True
        self._weights, self._versions = weights, list(map(_version, weights.read()))
        self._changed_weight = ""

    @classmethod
    def of(cls, sources: Sources) -> ModuleState:
        """That of the modules among the sources, before the first step."""
        plain = [module for module in sources.modules if not isinstance(module, torch.jit.ScriptModule)]
        named = [(module, name) for module in plain for name in module._buffers]
        places, weights = Places(), Places()
        for module in plain:
            places.add(module._buffers, module._buffers)
        # What a forward pass may change: a tensor, as an average; a number, a label or nothing, as a counter.
        settings = list(sources.places.of_settings())
        for holder, name, value in settings:
            if isinstance(value, Tensor) and not value.requires_grad:
                places.add(holder, [name], settings=True)
        buffers = len(places)
        for holder, name, value in settings:
            if is_plain(value):
                places.add(holder, [name], settings=True)
        for module in plain:
            if getattr(module, "max_norm", None) is None:  # else they are scaled at every look-up
                # Others are sharded, or have no values yet.
                kept = [name for name, value in module._parameters.items() if type(value) is nn.Parameter]
                weights.add(module._parameters, kept)
        state = cls(places, buffers, weights)
        # Kernels of normalisations change running statistics without telling autograd.
        state.changing |= {k for k, (module, name) in enumerate(named) if _is_updated(module, name)}
        return state

    def settle(self) -> None:
        """After the forward sweep: find weights that it changed in place."""
        versions = map(_version, self._weights.read())
        pairs = zip(self._weights.names, self._versions, versions, strict=True)
        changed = (name for name, was, now in pairs if was[0] == now[0] and was[1] != now[1])
        self._changed_weight, self._weights, self._versions = next(changed, ""), Places(), []

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
        return self._places.names[min(self._later)] if self._later else ""

    def changes(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that changes."""
        return any(self._places.get(k) is tensor for k in self.changing)

    def mark(self) -> dict[int, Any]:
        """Before a step: what stands there now, if some was changed since the last step, by a callback for instance."""
        found, changed = self._replaced()
        self._note(found, changed)
        return self.values() if changed & self.changing else {}

    def notice(self, *, updates: bool) -> None:
        """After a step: find what it has changed; ``updates``: whether its graph has updates that leave no mark."""
        found, changed = self._replaced()
        if updates:
            changed |= {k for k in range(self._buffers) if not _equal(self._initial[k], self._places.get(k))}
        self._note(found, changed)
        self._is_first = False

    def _note(self, found: list[Any], changed: set[int]) -> None:
        self._marks = found
        changed = {k for k in changed if (k < self._buffers and not _has_history(found[k])) or is_plain(found[k])}
        for k in changed - self.changing:
            if self._initial[k] is Special.LARGE:
                raise RuntimeError(
                    f"network: its buffer {self._places.names[k]!r} is changed by the forward pass and too large to be "
                    "restored for a recomputation; make it an argument, or pass adjoint=Direct()"
                )
        self.changing |= changed
        if not self._is_first:
            self._later |= changed

    def values(self) -> dict[int, Any]:
        """Copies of those that change."""
        return {k: _copied(self._places.get(k)) for k in sorted(self.changing)}

    def put(self, values: Mapping[int, Any]) -> None:
        """Put copies of ``values`` in their places."""
        for k, value in values.items():
            self._places.put(k, _copied(value))

    @contextmanager
    def swapped(self, values: Mapping[int, Any]) -> Iterator[None]:
        """With copies of ``values``, or of the initial ones, in the place of those that change."""
        kept = {k: self._places.get(k) for k in self.changing}
        try:
            for k in self.changing:
                self._places.put(k, _copied(values.get(k, self._initial[k])))
            yield
        finally:
            for k, value in kept.items():
                self._places.put(k, value)

    def rewind(self, values: Mapping[int, Any]) -> None:
        """Undo what a step changed that is taken again: in place, for whoever else holds the buffers."""
        for k in self.changing | self._replaced()[1]:
            if k >= self._buffers:
                self._places.put(k, self._marks[k])
                continue
            back, value = values.get(k, self._initial[k]), self._places.get(k)
            if isinstance(value, Tensor) and isinstance(back, Tensor) and self._marks[k][0] == Same(value):
                with torch.no_grad():
                    value.copy_(back)
            elif back is not Special.LARGE:
                self._places.put(k, _copied(back))

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
        values = self._places.read()
        values[: self._buffers] = map(_version, values[: self._buffers])
        return values


def _version(buffer: Any) -> tuple[Same, int]:
    """Two that follow each other may have one ``id``, so the mark holds the buffer."""
    return Same(buffer), 0 if not isinstance(buffer, Tensor) or buffer.is_inference() else buffer._version


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
        return Special.LARGE
    return value.detach().clone()


def _same(was: Any, now: Any) -> bool:
    """Whether marks are the same: versions of buffers, or plain values."""
    comparable = type(was) is type(now) and (isinstance(was, tuple) or is_plain(was))
    return comparable and (was == now or (was != was and now != now))


def _equal(was: Any, now: Any) -> bool:
    tensors = isinstance(was, Tensor) and isinstance(now, Tensor)
    return torch.equal(was, now) if tensors else was is Special.LARGE or was is now
