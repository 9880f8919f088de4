"""Descending on what a sampler is given, until its sample is the wished digit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..noise import BrownianPath, FixedNoise, Noise
from .scene import BANDWIDTH, ODE, SCHEDULE, SDE, Scene

CANDIDATES = 60
LIMIT = 300
RATE = 0.05
REACHED = 0.95  # probability of the wished digit at which a descent ends


@dataclass(frozen=True)
class Descent:
    """Several descents side by side.

    ``start`` and ``wish`` are digits; ``before`` and ``after`` samples (n, 1, 8, 8); ``losses`` the curves, one value
    per evaluation, the last where the descent ended; ``probability`` the classifier's for the wish at the end, and
    ``exact_probability`` that of the mixture itself.
    """

    start: list[int]
    wish: list[int]
    before: Tensor
    after: Tensor
    losses: list[list[float]]
    probability: list[float]
    exact_probability: list[float]

    @property
    def iterations(self) -> list[int]:
        return [len(curve) - 1 for curve in self.losses]

    def as_json(self) -> dict[str, Any]:
        names = ("start", "wish", "iterations", "probability", "exact_probability", "losses")
        return {name: getattr(self, name) for name in names}


def on_latent(scene: Scene, pairs: int) -> Descent:
    """The ODE: descend on ``x_T``."""
    latents = scene.latents(CANDIDATES, offset=3)
    scale = SCHEDULE.sigma(scene.grid()[0])

    def generate(z: Tensor) -> Tensor:
        return scene.sample(ODE, scale * z, _any_class(z.shape[0]))

    chosen, start = _starts(scene, generate(latents / scale), pairs)
    return _descend(scene, latents[chosen] / scale, generate, start)


def on_noise(scene: Scene, pairs: int) -> Descent:
    """The SDE: ``x_T`` stays, descend on the noise injected while ``sigma / alpha`` exceeds twice the bandwidth.

    Increments have variances over many decades, so what is moved are standard normals z with ``dB = sqrt(dnu) z``, an
    ordinary operation in front of ``FixedNoise``. Noise that comes later reaches the image unfiltered: it could fool
    the classifier without drawing another digit, so it is replayed as it was.
    """
    frame, grid = SDE.frame, scene.grid()
    latents = scene.latents(CANDIDATES, offset=4)
    path = BrownianPath(seed=[scene.seed + i for i in range(CANDIDATES)])  # one per sample, whatever its batch mates
    scale = frame.noise_clock(grid).diff().sqrt().reshape(-1, 1, 1, 1, 1)
    normals = path.increments(frame, grid, like=latents) / scale

    def generate_from(x_T: Tensor, noise: Noise) -> Tensor:
        return scene.sample(SDE, x_T, _any_class(len(x_T)), noise)

    chosen, start = _starts(scene, generate_from(latents, path), pairs)
    early = int((SCHEDULE.lam(grid[1:]).exp() < 1 / (2 * BANDWIDTH)).sum())
    x_T, late = latents[chosen], normals[early:, chosen]
    return _descend(
        scene,
        normals[:early, chosen],
        lambda z: generate_from(x_T, FixedNoise(scale * torch.cat([z, late]))),
        start,
    )


def _any_class(n: int) -> Tensor:
    """Neutral conditioning, so that the digit is decided by x_T and the noise alone."""
    return torch.zeros(n, 10, dtype=torch.float64)


def _starts(scene: Scene, x: Tensor, pairs: int) -> tuple[list[int], list[int]]:
    """The first samples of different digits: their places among the candidates, and their digits, sorted by digit."""
    first: dict[int, int] = {}
    for i, digit in enumerate(scene.classifier(x).argmax(1).tolist()):
        if len(first) < pairs:
            first.setdefault(digit, i)
    return [first[digit] for digit in sorted(first)], sorted(first)


def _descend(scene: Scene, z: Tensor, generate: Callable[[Tensor], Tensor], start: list[int]) -> Descent:
    """Adam on standard normals z (..., n, 1, 8, 8), kept on the spheres they were drawn on.

    Standard normals in 64 dimensions lie close to a sphere; staying on it keeps z a likely draw. The wish is the start
    plus 5 (modulo 10). A sample counts as it is when its wish is reached, while the others go on.
    """
    wish = torch.tensor([(digit + 5) % 10 for digit in start])
    z = z.clone().requires_grad_()
    radius = _norm(z.detach())
    optimizer = torch.optim.Adam([z], lr=RATE)
    curves: list[list[float]] = [[] for _ in start]
    open_ends = torch.ones(len(start), dtype=torch.bool)
    before = after = torch.empty(())
    for i in range(LIMIT + 1):
        x = generate(z)
        losses, now = scene.losses(x, wish), x.detach()
        for n in open_ends.nonzero().flatten().tolist():
            curves[n].append(losses[n].item())
        before = now if i == 0 else before
        after = torch.where(open_ends[:, None, None, None], now, after)
        open_ends &= losses.detach() > -math.log(REACHED)
        if not open_ends.any():
            break
        (z.grad,) = torch.autograd.grad(losses.sum(), [z])
        optimizer.step()
        with torch.no_grad():
            z *= radius / _norm(z)
    if open_ends.any():
        raise RuntimeError(
            f"{int(open_ends.sum())} of {len(start)} descents did not reach their digit in {LIMIT} iterations; "
            "pass another seed"
        )
    probability, exact = (p.gather(1, wish[:, None])[:, 0].tolist() for p in scene.class_probabilities(after))
    return Descent(start, wish.tolist(), before, after, curves, probability, exact)


def _norm(z: Tensor) -> Tensor:
    return z.flatten(-3).norm(dim=-1)[..., None, None, None]
