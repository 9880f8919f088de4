"""The state around a network, recorded in the forward pass and put back for a recomputation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Autocast:
    """Autocast as it was when the sampler was called, for one device and the CPU."""

    modes: tuple[tuple[str, bool, torch.dtype], ...]
    caches: bool

    @classmethod
    def current(cls, device: torch.device) -> Autocast:
        kinds = [kind for kind in sorted({device.type, "cpu"}) if torch.amp.is_autocast_available(kind)]
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
        own = torch.get_device_module(device).get_rng_state(device) if _has_generators(device) else None
        states = cls(device, torch.get_rng_state(), own)
        return last if last is not None and last.equals(states) else states

    def equals(self, other: GeneratorStates) -> bool:
        same_own = self.own is None or (other.own is not None and _same_bytes(self.own, other.own))
        return same_own and _same_bytes(self.cpu, other.cpu)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)


def _has_generators(device: torch.device) -> bool:
    """Whether a device has generators besides the CPU's; "meta" has none, as it draws no numbers."""
    return device.type not in ("cpu", "meta")


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


def _same_bytes(state: Tensor, other: Tensor) -> bool:
    """Whether two states are the same: bytes on the CPU, of generators on any device."""
    return bool((state.numpy() == other.numpy()).all())
