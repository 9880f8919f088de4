"""Inverse problems by optimising x_T: inpainting and super-resolution of digits that the model has never seen.

Find the latent whose image explains the measurement y = A x, among those that a standard normal makes likely:

    minimise over z   |A x_0(z) - y|^2 / (2 s^2) + |z|^2 / 2,      x_T = sigma(T) z

with x_0(z) the ODE's sample and the exact gradient through its steps, from several starts: of many candidates, those
that fit best. Half of them are given up on the way, and the one with the least loss is kept. The prior is a mixture
around the training images, as wide as makes the images of other writers likeliest; the images to be restored are held
out. For such a prior the posterior is a formula: its mean, which no estimate beats on average if the prior is right,
and its draws, whose squared error is twice that. Averages over the images:

- fit: the root mean square of A x - y; pixels are in [-1, 1];
- PSNR of the missing part, which is the component of the image that A maps to zero, in dB;
- the share that a classifier reads rightly; network calls and seconds.

Look at: but for the posterior's mean, the optimised images fit best. What was not measured comes out decibels better
than in a draw of the exact posterior, in the candidate that fits best, in a sample of the prior or in the mean image.
The training image whose measurement is the nearest fits three or four times worse; its lower half is the better guess,
its fine pixels are not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES, accuracy, trained
from examples.digits.measurements import MEASUREMENTS, Measurement, posterior, ranked
from examples.digits.measures import Counted
from examples.output import figure, main, show, table

SEED = 0
IMAGES = 12
CANDIDATES = 512
STARTS, KEPT = 8, 4  # in the beginning, and after so many iterations:
TRIAL, ITERATIONS = 30, 80
RATE = 0.1
BANDWIDTH = 0.3  # the likeliest for images of other writers, among 0.2, 0.25, 0.3, 0.35 and 0.4
ACCURACY = 0.1  # s, the standard deviation that the fit may have
STEPS = 15

SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.dpm_solver_pp_2m(SCHEDULE)
GRID = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(3.0)))


@dataclass(frozen=True)
class Row:
    """One way to restore; ``images`` (n, 1, 8, 8)."""

    images: Tensor
    fit: float
    psnr: float
    read: float
    calls: int
    seconds: float


def generate(denoiser: sa.Denoiser, z: Tensor) -> Tensor:
    x_T = SCHEDULE.sigma(GRID[0]) * z
    return sa.sample(denoiser, x_T, frame=FRAME, grid=GRID, solver=SOLVER, adjoint=sa.Checkpoint())


def optimised(denoiser: sa.Denoiser, measurement: Measurement, y: Tensor, z: Tensor) -> Tensor:
    """The images of the best latents, from starts z (n, starts, 1, 8, 8); y (n, ...)."""
    n = len(y)
    z, wanted = z.clone().requires_grad_(), y[:, None]
    optimizer = torch.optim.Adam([z], lr=RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)

    def losses(x: Tensor) -> Tensor:
        made = measurement.apply(x).unflatten(0, (n, -1))
        return (made - wanted).flatten(2).square().sum(2) / (2 * ACCURACY**2) + z.flatten(2).square().sum(2) / 2

    for k in range(ITERATIONS):
        optimizer.zero_grad()
        each = losses(generate(denoiser, z.flatten(0, 1)))
        each.sum().backward()
        optimizer.step()
        decay.step()
        if k + 1 == TRIAL:
            z = kept(optimizer, z, each.argsort(1)[:, :KEPT])
    with torch.no_grad():
        x = generate(denoiser, z.flatten(0, 1))
        best = losses(x).argmin(1)
    return x.unflatten(0, (n, -1))[torch.arange(n), best]


def kept(optimizer: torch.optim.Optimizer, z: Tensor, places: Tensor) -> Tensor:
    """Of the starts z (n, starts, ...) those at ``places`` (n, kept), which go on as they would have gone."""
    rows = torch.arange(len(z))[:, None]
    state, fewer = optimizer.state.pop(z), z.detach()[rows, places].requires_grad_()
    optimizer.state[fewer] = {name: value[rows, places] if value.ndim else value for name, value in state.items()}
    optimizer.param_groups[0]["params"] = [fewer]
    return fewer


@dataclass(frozen=True)
class Candidates:
    """Latents z (candidates, 1, 8, 8) and their images, and what these cost: the same for all measurements."""

    counted: Counted
    z: Tensor
    images: Tensor
    calls: int
    seconds: float

    @classmethod
    def draw(cls, counted: Counted, event: torch.Size) -> Candidates:
        z = torch.randn(CANDIDATES, *event, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        calls, start = counted.calls, time.perf_counter()
        with torch.no_grad():
            images = generate(denoiser_of(counted), z)
        return cls(counted, z, images, counted.calls - calls, time.perf_counter() - start)

    @property
    def denoiser(self) -> sa.Denoiser:
        return denoiser_of(self.counted)


def denoiser_of(counted: Counted) -> sa.Denoiser:
    return sa.Denoiser(counted, SCHEDULE, prediction="sample", time_dtype=torch.float64)


def restored(
    drawn: Candidates, measurement: Measurement, truth: Tensor, seen: Tensor
) -> dict[str, tuple[Tensor, int, float]]:
    """Each way's images, with its network calls and seconds."""
    y, counted, samples = measurement.apply(truth), drawn.counted, drawn.images
    order = ranked(measurement, y, samples)
    calls, start = counted.calls, time.perf_counter()
    found = optimised(drawn.denoiser, measurement, y, drawn.z[order[:, :STARTS]])
    effort = drawn.calls + counted.calls - calls, drawn.seconds + time.perf_counter() - start
    mean, draw = posterior(measurement, y, seen, bandwidth=BANDWIDTH, accuracy=ACCURACY, seed=SEED)
    return {
        "x_T optimisation": (found, *effort),
        f"best of {CANDIDATES} samples": (samples[order[:, 0]], drawn.calls, drawn.seconds),
        "nearest training image": (seen[ranked(measurement, y, seen)[:, 0]], 0, 0.0),
        "mean training image": (seen.mean(0).expand_as(truth), 0, 0.0),
        "sample of the prior": (samples[: len(truth)], 0, 0.0),
        "exact posterior, a draw": (draw, 0, 0.0),
        "exact posterior, the mean": (mean, 0, 0.0),
    }


def judged(measurement: Measurement, truth: Tensor, x: Tensor) -> tuple[float, float]:
    """Fit, and PSNR of the missing part: its peak-to-peak range is 2, and A leaves 64 numbers less those measured."""
    fit = float(measurement.apply(x - truth).square().mean().sqrt())
    unknown = truth[0].numel() - measurement.apply(truth)[0].numel()
    mse = measurement.missing(x - truth).flatten(1).square().sum(1) / unknown
    return fit, float((10 * (4 / mse).log10()).mean())


def run(out: Path) -> dict[str, dict[str, Row]]:
    """Restore held-out digits; write ``inverse_problem.png``; return the rows by measurement and way."""
    digits = sa.problems.Digits()
    seen, truth = digits.images[:TRAINING_IMAGES], digits.images[TRAINING_IMAGES:][:IMAGES]
    labels = digits.labels[TRAINING_IMAGES:][:IMAGES]
    classifier = trained(seen, digits.labels[:TRAINING_IMAGES], seed=SEED, noise=0.6)
    prior = sa.problems.Mixture([1.0] * len(seen), seen, BANDWIDTH**2)
    counted = Counted(prior.denoiser(SCHEDULE).network)
    drawn = Candidates.draw(counted, truth.shape[1:])
    result: dict[str, dict[str, Row]] = {}
    for title, measurement in MEASUREMENTS.items():
        result[title] = {
            name: Row(x, *judged(measurement, truth, x), accuracy(classifier, x, labels), calls, seconds)
            for name, (x, calls, seconds) in restored(drawn, measurement, truth, seen).items()
        }
        columns = ("", "fit", "PSNR of the missing part, dB", "read rightly", "network calls", "seconds")
        lines = [
            (name, f"{row.fit:.3f}", f"{row.psnr:.1f}", f"{row.read:.2f}", str(row.calls), f"{row.seconds:.1f}")
            for name, row in result[title].items()
        ]
        table(f"{title}: {IMAGES} held-out digits", columns, lines)
    draw(result, truth, out / "inverse_problem.png")
    return result


def draw(result: dict[str, dict[str, Row]], truth: Tensor, path: Path) -> None:
    """For each measurement: what was measured, what came out, the truth."""
    with figure(path, 9.0, 8.6) as made:
        parts: Any = made.subfigures(len(result), 1)
        for part, (title, rows) in zip(parts, result.items(), strict=True):
            part.suptitle(title, fontsize=11, y=0.98)
            measurement = MEASUREMENTS[title]
            known = measurement.transposed(measurement.apply(truth)) / measurement.gain
            grey = torch.where(measurement.missing(torch.ones_like(truth)) > 0.5, math.nan, known)
            ways = ("nearest training image", "exact posterior, the mean", "x_T optimisation")
            lines = {"measured": grey} | {name: rows[name].images for name in ways} | {"truth": truth}
            place = {"left": 0.21, "right": 0.99, "top": 0.92, "bottom": 0.02, "wspace": 0.1, "hspace": 0.1}
            axes = part.subplots(len(lines), IMAGES, gridspec_kw=place)
            for line, (name, images) in enumerate(lines.items()):
                for axis, image in zip(axes[line], images, strict=True):
                    axis.set_facecolor("0.85")
                    show(axis, image)
                name = name.replace("x_T", "$x_T$")
                axes[line, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)


if __name__ == "__main__":
    main(run, __doc__)
