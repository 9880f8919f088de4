"""What the network's score is off by, where the right one is known."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...diffusion.denoiser import Denoiser
from ...problems import Mixture
from .images import BANDWIDTH, seen, unseen

LEVELS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)  # sigma / alpha
IMAGES = 40


@dataclass(frozen=True)
class Errors:
    """At one level of noise, for pixels that span [-1, 1].

    ``score``: relative error of the network's score ``(alpha E[x_0 | x] - x) / sigma^2`` against that of the training
    law, on noisy training images. ``seen``, ``unseen``: root-mean-square errors per pixel of the network's denoised
    images, then of the law's exact posterior mean, against the clean training and held-out images.
    """

    level: float
    score: float
    seen: tuple[float, float]
    unseen: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def errors(denoiser: Denoiser, law: Mixture, seed: int) -> list[Errors]:
    """At all levels. The images are noised by the training law's own noise, then by the diffusion's."""
    generator = torch.Generator().manual_seed(seed + 6)
    chosen = torch.randperm(len(seen()), generator=generator)[:IMAGES]
    sets = [images + BANDWIDTH * _normals(images, generator) for images in (seen()[chosen], unseen()[::2])]
    return [_at(denoiser, law, level, sets, generator) for level in LEVELS]


@torch.no_grad()
def _at(denoiser: Denoiser, law: Mixture, level: float, sets: list[Tensor], generator: torch.Generator) -> Errors:
    schedule = denoiser.schedule
    t = float(schedule.time(-math.log(level)))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    rows = []
    for images in sets:
        x = (alpha * images + sigma * _normals(images, generator)).float()
        found, exact = denoiser(x, t), law.posterior_mean(x, t, schedule)
        score = float((alpha * (found - exact)).norm() / (alpha * exact - x).norm())
        rows.append((score, (_rms(found - images), _rms(exact - images))))
    (score, of_seen), (_, of_unseen) = rows
    return Errors(level, score, of_seen, of_unseen)


def _normals(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
