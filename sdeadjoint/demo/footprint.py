"""Peak memory of one gradient against the number of steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..adjoints import Checkpoint, Direct
from ..memory import PeakMemory
from ..noise import BrownianPath
from .scene import SDE, Scene

ADJOINTS = {"Direct()": Direct(), "Checkpoint()": Checkpoint(), "Checkpoint(snapshots=8)": Checkpoint(snapshots=8)}
BATCH = 16


def peaks(scene: Scene, steps: Sequence[int]) -> dict[str, list[int]]:
    """Bytes of all tensors alive at once, at most, by adjoint and number of steps: the SDE with replayed noise."""
    result: dict[str, list[int]] = {}
    for name, adjoint in ADJOINTS.items():
        result[name] = []
        for n in steps:
            x_T = scene.latents(BATCH, offset=5).requires_grad_()
            label = torch.zeros(BATCH, 10, dtype=torch.float64, requires_grad=True)
            with PeakMemory() as memory:
                x = scene.sample(SDE, x_T, label, BrownianPath(scene.seed), steps=n, adjoint=adjoint)
                torch.autograd.grad(scene.losses(x, torch.arange(BATCH) % 10).sum(), [x_T, label])
            result[name].append(memory.peak)
            del x
    return result
