"""A pipeline's loop over a diffusers scheduler, with the normals it draws given, and the same through an adapter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adapters.ancestral import AncestralPair
from sdeadjoint.adapters.two_stage import TwoStage

SHAPE = (2, 2, 4, 4)


class SmallModel(nn.Module):
    """A model as diffusers has them, sensitive to its time at every scale, computing in float64."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed writes down the whole stack, slowly
            self.inward = nn.Conv2d(2, 6, 3, padding=1)
            self.outward = nn.Conv2d(6, 2, 3, padding=1)
            self.time, self.style = nn.Linear(6, 6), nn.Linear(3, 6)
        self.double()

    def forward(
        self, sample: Tensor, timestep: Tensor, style: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor, ...]:
        frequencies = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.003], dtype=torch.float64)
        waves = torch.sin(timestep.double().reshape(-1, 1) * frequencies + torch.arange(6))
        h = self.inward(sample) + self.time(waves)[:, :, None, None]
        if style is not None:
            h = h + self.style(style)[:, :, None, None]
        return (self.outward(torch.tanh(h)),)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loop(
    scheduler: Any, model: Callable[..., Any], x: Tensor, normals: Sequence[Tensor] | Tensor, **options: Any
) -> Tensor:
    """The loop of a pipeline over a scheduler whose timesteps are set; ``options`` of ``step`` and the model's cond."""
    cond, memory, earlier = options.pop("cond", {}), None, None
    remembers = type(scheduler).__name__ == "CogVideoXDPMScheduler"
    with drawing(scheduler, _drawn_twice(normals) if remembers else iter(normals)):
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            out = model(given, t, **cond, return_dict=False)[0]
            if remembers:
                x, memory = scheduler.step(out, memory, t, earlier, x, **options)
                earlier = t
            else:
                x = scheduler.step(out, t, x, **options).prev_sample
    return x


def _drawn_twice(normals: Sequence[Tensor] | Tensor) -> Iterator[Tensor]:
    """This scheduler draws twice in all steps but the first, and drops the first of the two."""
    for n, normal in enumerate(normals):
        yield from ([normal] if n == 0 else [torch.zeros_like(normal), normal])


@contextmanager
def drawing(scheduler: Any, normals: Iterator[Tensor]) -> Iterator[None]:
    """Let a scheduler draw these instead of its own normals."""
    module = sys.modules[type(scheduler).__module__]
    own = getattr(module, "randn_tensor", None)
    if own is not None:
        module.randn_tensor = lambda *args, **options: next(normals)  # type: ignore[attr-defined]
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = lambda sigma, sigma_next: next(normals)
    try:
        yield
    finally:
        if own is not None:
            module.randn_tensor = own  # type: ignore[attr-defined]


def noise_of(adapter: sa.adapters.Adapter, steps: int | None, normals: Tensor) -> sa.FixedNoise | None:
    """The increments that a scheduler's standard normals are in the adapter's frame."""
    if adapter.frame.eta == 0:
        return None
    nu = adapter.frame.noise_clock(adapter.grid(steps))
    increments = []
    for n in range(len(nu) - 1):
        # The second of a pair of half steps has a normal for the pair.
        pair = isinstance(adapter.solver, TwoStage | AncestralPair) and n % 2 == 1
        size = nu[n + 1] - nu[n - 1 if pair else n]
        # An ancestral pair draws once, at its end.
        ancestral = isinstance(adapter.solver, AncestralPair)
        normal = normals[n // 2] * (n % 2) if ancestral else normals[n]
        whole = (size if torch.isfinite(size) else torch.zeros_like(size)).sqrt() * normal
        increments.append(whole - increments[-1] if pair else whole)
    return sa.FixedNoise(torch.stack(increments))
