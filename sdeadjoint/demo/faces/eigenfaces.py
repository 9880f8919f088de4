"""How alike two faces are: the angle between their coordinates in the space of eigenfaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

COMPONENTS = 40


@dataclass(frozen=True)
class Eigenfaces:
    """Principal components of images, each scaled to variance 1 over these images.

    ``mean`` (pixels,) and ``components`` (pixels, COMPONENTS) are float32. A coarse measure: what it finds alike is
    alike in light, pose and shape. Fine patterns that nobody sees cannot fool it, as it does not see them either.
    Source: Turk and Pentland (1991).
    """

    mean: Tensor
    components: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Eigenfaces:
        flat = images.flatten(1).double()
        mean = flat.mean(0)
        _, lengths, directions = torch.linalg.svd(flat - mean, full_matrices=False)
        deviations = lengths[:COMPONENTS] / len(flat) ** 0.5
        return cls(mean.float(), (directions[:COMPONENTS].T / deviations).float())

    def embedding(self, x: Tensor) -> Tensor:
        """Unit vectors (n, COMPONENTS)."""
        return functional.normalize((x.flatten(1) - self.mean) @ self.components, dim=1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """``1 - cosine``, (n,), from 0 for the same face to 2; about 1 for two that have nothing in common."""
        return 1 - (self.embedding(x) * self.embedding(y)).sum(1)
