"""The state around a network, recorded in the forward pass and put back for a recomputation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

LARGEST = 2**20  # bytes: counters and running statistics are small; larger buffers are data, which nobody changes


@dataclass(frozen=True)
class Autocast:
    """Autocast as it was when the sampler was called, for one device and the CPU."""

    modes: tuple[tuple[str, bool, torch.dtype], ...]
    caches: bool

    @classmethod
    def current(cls, device: torch.device) -> Autocast:
        kinds = sorted({device.type, "cpu"})
        modes = ((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
        return cls(tuple(modes), torch.is_autocast_cache_enabled())

    @property
    def enabled(self) -> bool:
        return any(enabled for _, enabled, _ in self.modes)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, enabled, dtype in self.modes:
                # A disabled mode is entered only where the surroundings differ: some devices warn at the mere entering.
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled, self.caches))
            yield


@dataclass(frozen=True)
class GeneratorStates:
    """States of torch's global generators, on the CPU and on one device: what dropout draws from."""

    device: torch.device
    cpu: Tensor
    own: Tensor | None

    @classmethod
    def current(cls, device: torch.device, last: GeneratorStates | None = None) -> GeneratorStates:
        """The present states; ``last`` itself if nothing was drawn since, so that unused generators cost no memory."""
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        states = cls(device, torch.get_rng_state(), own)
        return last if last is not None and last.equals(states) else states

    def equals(self, other: GeneratorStates) -> bool:
        same_own = self.own is None or (other.own is not None and torch.equal(self.own, other.own))
        return same_own and torch.equal(self.cpu, other.cpu)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)


@contextmanager
def generators_untouched(device: torch.device) -> Iterator[None]:
    """Whatever is drawn or restored inside, the global generators continue afterwards as if nothing had been.

    Not for networks that draw nothing: other threads draw from the same generators.
    """
    before = GeneratorStates.current(device)
    try:
        yield
    finally:
        if not before.equals(GeneratorStates.current(device)):
            before.restore()


class Buffers:
    """The buffers that a network changes in its forward pass: running statistics, counters, averages.

    Each recomputation of a step starts from what they were before that step, and leaves them as the forward pass did.
    ``changing``: places of those that were seen to change.
    """

    def __init__(self, places: Sequence[tuple[dict[str, Tensor | None], str]]) -> None:
        self._places = places
        self._initial = [_copied(held[name]) for held, name in places]
        self._marks: Sequence[tuple[int, int]] = []
        self.changing: set[int] = set()

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Buffers:
        """Those of modules, before the first step."""
        plain = (module for module in modules if not isinstance(module, torch.jit.ScriptModule))
        named = [(module, name) for module in plain for name in module._buffers]
        buffers = cls([(module._buffers, name) for module, name in named])
        # Kernels of normalisations change running statistics without telling autograd.
        buffers.changing |= {k for k, (module, name) in enumerate(named) if _is_updated(module, name)}
        return buffers

    def changes(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that changes."""
        return any(self._present(k) is tensor for k in self.changing)

    def mark(self) -> None:
        """Before a step."""
        self._marks = self._found()

    def notice(self, *, updates: bool) -> None:
        """After a step: find those it has changed; ``updates``: whether its graph has updates that leave no mark."""
        changed = {k for k, (was, now) in enumerate(zip(self._marks, self._found(), strict=True)) if was != now}
        if updates:
            changed |= {k for k, was in enumerate(self._initial) if was is not None and not self._equals(k, was)}
        for k in changed - self.changing:
            if self._initial[k] is None:
                raise RuntimeError(
                    f"network: its buffer {self._places[k][1]!r} is changed by the forward pass and too large to be "
                    "restored for a recomputation; make it an argument, or pass adjoint=Direct()"
                )
        self.changing |= changed

    def values(self) -> dict[int, Tensor]:
        """Copies of those that change."""
        copies = ((k, _copied(self._present(k))) for k in sorted(self.changing))
        return {k: copy for k, copy in copies if copy is not None}

    @contextmanager
    def swapped(self, values: Mapping[int, Tensor]) -> Iterator[None]:
        """With copies of ``values``, or of the initial ones, in the place of those that change."""
        kept = {k: self._present(k) for k in self.changing}
        try:
            for k in self.changing:
                self._put(k, _copied(values.get(k, self._initial[k])))
            yield
        finally:
            for k, tensor in kept.items():
                self._put(k, tensor)

    def rewind(self, values: Mapping[int, Tensor]) -> None:
        """Undo what a step changed that is taken again: in place, for whoever else holds the buffers."""
        for k, (was, now) in enumerate(zip(self._marks, self._found(), strict=True)):
            back, present = values.get(k, self._initial[k]), self._present(k)
            if back is None or (was == now and k not in self.changing):
                continue
            if was[0] == now[0] and present is not None:
                with torch.no_grad():
                    present.copy_(back)
            else:
                self._put(k, back.clone())

    def _found(self) -> Sequence[tuple[int, int]]:
        """What tells whether a buffer was replaced or changed."""
        present = [held[name] for held, name in self._places]
        return [(id(b), 0 if b is None or b.is_inference() else b._version) for b in present]

    def _present(self, k: int) -> Tensor | None:
        held, name = self._places[k]
        return held[name]

    def _put(self, k: int, tensor: Tensor | None) -> None:
        held, name = self._places[k]
        held[name] = tensor

    def _equals(self, k: int, was: Tensor) -> bool:
        now = self._present(k)
        return now is not None and torch.equal(was, now)


def _is_updated(module: nn.Module, name: str) -> bool:
    """Whether a buffer is a running statistic of a normalisation in training."""
    statistics = isinstance(module, _NormBase) and name in ("running_mean", "running_var")
    return statistics and module.training and module._buffers[name] is not None


def _copied(buffer: Tensor | None) -> Tensor | None:
    if buffer is None or torch.nn.parameter.is_lazy(buffer) or buffer.numel() * buffer.element_size() > LARGEST:
        return None
    return buffer.detach().clone()
