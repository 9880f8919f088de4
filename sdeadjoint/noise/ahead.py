"""Noise that the host draws while an accelerator runs the network."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import final

import torch
from torch import Tensor

from .base import BoundNoise, Increment, checked_step

AHEAD = 2
"""How many steps' increments wait on the host: one that is copied, and one that is drawn meanwhile."""


@final
class DrawnAhead(BoundNoise):
    """The increments that ``draw`` gives on the host, moved to ``device``, each drawn before it is asked for.

    One thread makes all draws, one after another, as paths are not made for two. It goes on in the order in which steps
    are asked for, upwards or downwards. The numbers are those of ``draw``, in any order of the queries. On CUDA the
    increments lie in pinned memory, and are copied without waiting.

    Args:
        draw: ``draw(n)``, step n's increment on the CPU.
        steps: how many there are.
        device: of the states.
    """

    def __init__(self, draw: Callable[[int], Increment], steps: int, device: torch.device) -> None:
        self._draw, self._steps, self._device = draw, steps, device
        self._waiting: dict[int, Future[Increment]] = {}
        self._last = -1
        # The worker ends when this object is collected.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def increment(self, n: int) -> Increment:
        checked_step(n, self._steps)
        direction = -1 if n < self._last else 1
        self._last = n
        window = [m for k in range(AHEAD + 1) if 0 <= (m := n + k * direction) < self._steps]
        for m in self._waiting.keys() - set(window):
            self._waiting.pop(m).cancel()
        for m in window:
            if m not in self._waiting:
                self._waiting[m] = self._worker.submit(copy_context().run, self._drawn, m)
        dB, H = self._waiting.pop(n).result()
        return Increment(self._moved(dB), None if H is None else self._moved(H))

    def _drawn(self, n: int) -> Increment:
        dB, H = self._draw(n)
        return Increment(self._staged(dB), None if H is None else self._staged(H))

    def _staged(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=self._device.type == "cuda")
