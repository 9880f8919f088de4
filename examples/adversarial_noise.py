"""Adversarial initial noise: audit a classifier with images that a diffusion model makes itself.

AdjointDPM's security audit (Pan et al., 2024). A sampler is asked for a digit of class c. Its initial noise x_T is
moved a little, on the sphere where it was drawn, so that the classifier misreads what the sampler makes of it. Whether
the image still shows a c is known exactly here: the model is a mixture, whose posterior is a formula.
Measured, for each gradient that the attack may use:

- success: the share of the samples, all read rightly before, that the classifier misreads after a rotation of x_T by at
  most so many radians (0.2 is 20 % of its norm); the control takes the best of as many random rotations by that angle;
- "still c": the share of the successful ones, at the largest angle, whose exact posterior p(c | x) exceeds 1/2;
- "moved": the distance |x_T' - x_T| / |x_T|, and then network calls and seconds, at the largest angle;
- the gradient's error and cosine against the exact one, at the start.

Look at: random rotations do little. At 10 steps exact gradients make more than half of the samples adversarial, all of
them still of their class, while adjoint equations solved by Euler's method point the wrong way, and would declare the
classifier safe. At 20 steps the cosines are those of a usable gradient, and every attack finds about the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES, accuracy, trained
from examples.digits.measures import Agreement, Counted, agreement, norms
from examples.digits.target import SCHEDULE, Target, rotated
from examples.output import COLOURS, figure, main, show, table

SEED = 0  # of the classifier
LATENTS = 1  # seed of x_T
SAMPLES = 40
BANDWIDTH = 0.2  # of the mixture
STEPS = (10, 20)
ANGLES = (0.2, 0.4)  # radians
ITERATIONS = 3

ADJOINTS: dict[str, sa.Adjoint] = {
    'adjoint_dpm("euler")': sa.adjoint_dpm("euler"),
    'adjoint_dpm("midpoint")': sa.adjoint_dpm("midpoint"),
    "adjoint_deis(1)": sa.adjoint_deis(1),
    "adjoint_deis(2)": sa.adjoint_deis(2),
    "ContinuousAdjoint(Heun())": sa.ContinuousAdjoint(sa.Heun()),
    "Checkpoint(), exact": sa.Checkpoint(),
}
RANDOM, EXACT = "random rotations", "Checkpoint(), exact"


def attacked(target: Target, z: Tensor, adjoint: sa.Adjoint, angle: float) -> Tensor:
    """Gradient ascent with normalised steps, on the sphere, at most ``angle`` away."""
    now = z
    for _ in range(ITERATIONS):
        g = target.gradient(now, adjoint)
        now = rotated(now + 2.5 * angle / ITERATIONS * norms(z) * g / norms(g), z, angle)
    return now


def control(target: Target, z: Tensor, angle: float) -> Tensor:
    """The best of as many random rotations by ``angle``."""
    best, generator = z, torch.Generator().manual_seed(LATENTS + 1)
    highest = target.losses(target.image(z))
    for _ in range(ITERATIONS):
        tried = rotated(1e6 * torch.randn(z.shape, generator=generator, dtype=z.dtype), z, angle)
        losses = target.losses(target.image(tried))
        best = torch.where((losses > highest)[:, None, None, None], tried, best)
        highest = losses.maximum(highest)
    return best


@dataclass(frozen=True)
class Row:
    """One way to attack; by angle: success rates, and the share of the successes which still show the class."""

    success: dict[float, float]
    still: dict[float, float]
    distance: float
    agreement: Agreement | None
    calls: int
    seconds: float
    latents: Tensor


@dataclass(frozen=True)
class Audit:
    """``right``: the share of samples read rightly before; ``rows`` by number of steps and name of the gradient."""

    right: dict[int, float]
    held_out: float
    rows: dict[int, dict[str, Row]]


def audited(
    target: Target, z: Tensor, right: Tensor, attack: Callable[[float], Tensor], agrees: Agreement | None
) -> Row:
    """Attack with every angle; ``right``: the samples that are read rightly before."""
    success, still = {}, {}
    for angle in ANGLES:
        calls, start = target.network.calls, time.perf_counter()
        found = attack(angle)
        calls, seconds = target.network.calls - calls, time.perf_counter() - start
        x = target.image(found)
        fooled = target.misread(x) & right
        success[angle] = float(fooled.sum() / right.sum())
        still[angle] = float((target.posterior(x)[fooled] > 0.5).double().mean()) if fooled.any() else math.nan
    distance = float((norms(found - z) / norms(z)).mean())
    return Row(success, still, distance, agrees, calls, seconds, found)


def run(out: Path) -> Audit:
    """Audit one classifier; write ``adversarial_noise.png``."""
    problem = sa.problems.Digits(bandwidth=BANDWIDTH, conditional=True)
    seen, rest = slice(TRAINING_IMAGES), slice(TRAINING_IMAGES, None)
    classifier = trained(problem.images[seen], problem.labels[seen], seed=SEED)
    network = Counted(problem.denoiser(SCHEDULE).network)
    labels = torch.arange(SAMPLES) % 10
    z = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(LATENTS), dtype=torch.float64)
    rows: dict[int, dict[str, Row]] = {}
    shares = {}
    for steps in STEPS:
        grid = sa.uniform_logsnr(SCHEDULE, steps, t_min=float(SCHEDULE.time(3.0)))
        target = Target(problem, network, classifier, labels, grid)
        exact = target.gradient(z, sa.Checkpoint())
        right = ~target.misread(target.image(z))
        shares[steps] = float(right.double().mean())
        rows[steps] = {RANDOM: audited(target, z, right, partial(control, target, z), None)}
        for name, adjoint in ADJOINTS.items():
            agrees = agreement(exact if name == EXACT else target.gradient(z, adjoint), exact)
            rows[steps][name] = audited(target, z, right, partial(attacked, target, z, adjoint), agrees)
    result = Audit(shares, accuracy(classifier, problem.images[rest], problem.labels[rest]), rows)
    report(result)
    draw(result, target, z, out / "adversarial_noise.png")
    return result


def report(result: Audit) -> None:
    print(f"The classifier reads {result.held_out:.2f} of the held-out images rightly")
    sizes = [f"success, {angle:g} rad" for angle in ANGLES]
    columns = ("gradient of the attack", *sizes, "still c", "moved", "error", "cosine", "calls", "seconds")
    for steps, rows in result.rows.items():
        lines = []
        for name, row in rows.items():
            shares = [f"{row.success[angle]:.2f}" for angle in ANGLES]
            still = f"{row.still[ANGLES[-1]]:.2f}" if row.success[ANGLES[-1]] else ""
            agrees = row.agreement and (f"{row.agreement.error:.2g}", f"{row.agreement.cosine:.3f}")
            effort = (str(row.calls), f"{row.seconds:.1f}")
            lines.append((name, *shares, still, f"{row.distance:.2f}", *(agrees or ("", "")), *effort))
        right = f"{result.right[steps]:.2f} of {SAMPLES} samples are read rightly before"
        table(f"Misread after a rotation of x_T, {steps} steps; {right}", columns, lines)


def draw(result: Audit, target: Target, z: Tensor, path: Path) -> None:
    """Bars of success rates, and below them digits that the exact attack made adversarial."""
    with figure(path, 10.0, 7.0) as made:
        parts: Any = made.subfigures(2, 1, height_ratios=(0.8, 1.0))
        top, bottom = parts
        place = {"left": 0.2, "right": 0.98, "top": 0.82, "bottom": 0.16, "wspace": 0.1}
        axes = top.subplots(1, len(STEPS), sharey=True, gridspec_kw=place)
        for axis, (steps, rows) in zip(axes, result.rows.items(), strict=True):
            y = torch.arange(len(rows)).numpy()
            for shift, colour, angle in zip((-0.19, 0.19), (COLOURS[5], COLOURS[0]), ANGLES, strict=True):
                shares = [row.success[angle] for row in rows.values()]
                axis.barh(y + shift, shares, 0.36, color=colour, label=f"$x_T$ turned by {angle:g} rad at most")
            axis.set(title=f"{steps} steps", xlim=(0, 1), xlabel="share of samples that the classifier misreads")
            axis.set_yticks(y, list(rows))
            axis.tick_params(axis="y", length=0)
        axes[0].invert_yaxis()
        top.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=2, loc="upper center", fontsize=9)
        strip(target, z, result.rows[STEPS[-1]][EXACT].latents, bottom)


def strip(target: Target, z: Tensor, found: Tensor, part: Any) -> None:
    """One adversarial sample of each digit that has one, with what the classifier and the exact posterior read."""
    before, after = target.image(z), target.image(found)
    read = target.classifier(after).argmax(1)
    posterior = target.posterior(after)
    fooled = (target.misread(after) & ~target.misread(before)).nonzero().flatten().tolist()
    first = {int(target.labels[i]): i for i in reversed(fooled)}
    place = {"left": 0.2, "right": 0.98, "top": 0.97, "bottom": 0.09, "wspace": 0.15, "hspace": 0.12}
    axes = part.subplots(4, 10, gridspec_kw=place)
    for axis in axes.flat:
        axis.set_axis_off()
    names = ("$x_T$ as drawn", "$x_T$ as moved", "sample before", "sample after")
    for line, (name, images) in enumerate(zip(names, (z / 3, found / 3, before, after), strict=True)):
        axes[line, 0].text(-0.3, 0.5, name, transform=axes[line, 0].transAxes, ha="right", va="center", fontsize=9)
        for axis, digit in zip(axes[line], sorted(first), strict=False):
            show(axis, images[first[digit]])
            axis.set_axis_on()
    for axis, digit in zip(axes[-1], sorted(first), strict=False):
        axis.set_xlabel(f"read {read[first[digit]]}", color=COLOURS[1], fontsize=9, labelpad=3)
        text = f"p({digit}) = {posterior[first[digit]]:.3f}"
        axis.text(0.5, -0.36, text, transform=axis.transAxes, ha="center", va="top", color=COLOURS[2], fontsize=8)


if __name__ == "__main__":
    main(run, __doc__)
