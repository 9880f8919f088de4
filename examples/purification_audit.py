"""Audit a purification defence with exact and inexact gradients: the weaker the gradient, the safer the defence looks.

The defence is DiffPure's (Nie et al., 2022): noise the image up to time t*, solve the reverse SDE back, classify what
comes out. An audit attacks it, by projected gradient ascent on the classifier's loss in a ball around each held-out
image. What its gradient does not lead to is reported as robustness. Measured, for each gradient:

- robust accuracy, *noise known*: the defence draws its noise from one seed; the attack and the evaluation replay it;
- robust accuracy, *noise fresh*: each iteration of the attack sees another draw (expectation over transformation,
  Athalye et al., 2018), and accuracy is the average over draws that the attack has not seen;
- the gradient's error and cosine against the exact one, at the clean images with the known noise;
- network calls and seconds of the attack on the known noise.

Neither the classifier nor the diffusion model (a mixture around the training images, with its exact score) has seen the
attacked images. Look at:

- With the noise known, the exact attack leaves the least accuracy, give or take an image, and the defence is no
  safer than that. The others report up to nearly twice as much; the continuous adjoints get better with more steps.
- With the noise fresh all but the worst gradient find about the same: there, other errors outweigh the gradient's.
- Noise drawn anew for the backward pass is another gradient. Where states are reconstructed from x_0 it costs most of
  the attack, and more steps do not help (they do where the noise is replayed). Where they are recomputed from x_t* the
  cosine falls too, and the attack hardly suffers. The library refuses such noise; here it is done by hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES, accuracy, trained
from examples.digits.measures import Agreement, Counted, agreement, norms
from examples.digits.purifier import GRADIENTS, SCHEDULE, Defence, Gradient, of_the_classifier, through
from examples.output import COLOURS, figure, main, show, table

SEED = 0  # of the classifier
KNOWN = 5  # seeds of the defence's noise: the known draw,
FRESH = range(100, 108)  # and the draws that evaluate
IMAGES = 64
BANDWIDTH = 0.2  # of the mixture
NOISE_TO_SIGNAL = 0.8  # sigma / alpha at t*
STEPS = (6, 12)  # of the reverse SDE
BUDGET = 1.5  # Euclidean norm of the perturbation; an image has 64 pixels in [-1, 1]
ITERATIONS = 10
SHOWN = 9  # digits in the picture


@dataclass(frozen=True)
class Row:
    """One gradient at one number of steps; ``attacked`` are the images (n, 1, 8, 8) found with the noise known."""

    known: float
    fresh: float
    agreement: Agreement
    calls: int
    seconds: float
    attacked: Tensor


@dataclass(frozen=True)
class Audit:
    """``undefended``: accuracies without attack and under it; ``clean``: the defence's, (known, fresh), by steps."""

    undefended: tuple[float, float]
    clean: dict[int, tuple[float, float]]
    rows: dict[int, dict[str, Row]]


def attack(defence: Defence, x: Tensor, labels: Tensor, gradient: Gradient, seeds: list[int]) -> Tensor:
    """Projected gradient ascent with normalised steps, one for each seed, inside the ball and the pixels' range."""
    shift = torch.zeros_like(x)
    for seed in seeds:
        g = gradient(defence, x + shift, labels, seed)
        shift = shift + 2.5 * BUDGET / len(seeds) * g / norms(g)
        shift = shift * (BUDGET / norms(shift)).clamp(max=1.0)
        shift = (x + shift).clamp(-1.0, 1.0) - x
    return x + shift


def audited(defence: Defence, counted: Counted, gradient: Gradient, x: Tensor, labels: Tensor, exact: Tensor) -> Row:
    """Both attacks with one gradient, and what they find; ``exact``: the right one at the clean images."""
    agrees = agreement(gradient(defence, x, labels, KNOWN), exact)
    calls, start = counted.calls, time.perf_counter()
    attacked = attack(defence, x, labels, gradient, [KNOWN] * ITERATIONS)
    calls, seconds = counted.calls - calls, time.perf_counter() - start
    blind = attack(defence, x, labels, gradient, list(range(ITERATIONS)))
    known, fresh = robust(defence, attacked, labels, [KNOWN]), robust(defence, blind, labels, FRESH)
    return Row(known, fresh, agrees, calls, seconds, attacked)


def robust(defence: Defence, x: Tensor, labels: Tensor, seeds: Sequence[int]) -> float:
    """Accuracy of the defended classifier, the average over draws of its noise."""
    with torch.no_grad():
        shares = [accuracy(defence.classifier, defence.purified(x, seed), labels) for seed in seeds]
    return sum(shares) / len(shares)


def run(out: Path) -> Audit:
    """Audit the defence with every gradient; write ``purification_audit.png``."""
    digits = sa.problems.Digits()
    images, labels = digits.images, digits.labels
    seen, held_out = slice(TRAINING_IMAGES), slice(TRAINING_IMAGES, TRAINING_IMAGES + IMAGES)
    classifier = trained(images[seen], labels[seen], seed=SEED)
    prior = sa.problems.Mixture([1.0] * TRAINING_IMAGES, images[seen], BANDWIDTH**2)
    counted = Counted(prior.denoiser(SCHEDULE).network)
    denoiser = sa.Denoiser(counted, SCHEDULE, prediction="sample", time_dtype=torch.float64)
    x, y = images[held_out], labels[held_out]

    defences = {steps: Defence.create(classifier, denoiser, NOISE_TO_SIGNAL, steps) for steps in STEPS}
    exact = {steps: through(sa.Checkpoint())(defence, x, y, KNOWN) for steps, defence in defences.items()}
    undefended = attack(defences[STEPS[0]], x, y, of_the_classifier, [KNOWN] * ITERATIONS)
    result = Audit(
        (accuracy(classifier, x, y), accuracy(classifier, undefended, y)),
        {steps: (robust(defence, x, y, [KNOWN]), robust(defence, x, y, FRESH)) for steps, defence in defences.items()},
        {
            steps: {
                name: audited(defence, counted, gradient, x, y, exact[steps]) for name, gradient in GRADIENTS.items()
            }
            for steps, defence in defences.items()
        },
    )
    report(result)
    draw(result, defences[STEPS[0]], x, y, out / "purification_audit.png")
    return result


def report(result: Audit) -> None:
    clean, attacked = result.undefended
    print(f"{IMAGES} held-out digits, perturbations of norm {BUDGET}")
    print(f"Accuracy without a defence: {clean:.2f}; attacked: {attacked:.2f}")
    columns = ("gradient of the attack", "noise known", "noise fresh", "error", "cosine", "network calls", "seconds")
    for steps, rows in result.rows.items():
        first = ("none: clean accuracy", *(f"{value:.2f}" for value in result.clean[steps]), "", "", "", "")
        lines = [
            (name, f"{row.known:.2f}", f"{row.fresh:.2f}", f"{row.agreement.error:.2g}", f"{row.agreement.cosine:.3f}",
             str(row.calls), f"{row.seconds:.1f}") for name, row in rows.items()
        ]  # fmt: skip
        table(f"Robust accuracy of the purified classifier, {steps} steps", columns, [first, *lines])


def draw(result: Audit, defence: Defence, x: Tensor, labels: Tensor, path: Path) -> None:
    """Bars of apparent robustness, and below them digits that fall to the exact attack and not to the weaker one."""
    with figure(path, 10.0, 7.6) as made:
        parts: Any = made.subfigures(2, 1, height_ratios=(1.0, 1.0))
        top, bottom = parts
        place = {"left": 0.25, "right": 0.98, "top": 0.84, "bottom": 0.14, "wspace": 0.12}
        axes = top.subplots(1, len(STEPS), sharey=True, gridspec_kw=place)
        for axis, (steps, rows) in zip(axes, result.rows.items(), strict=True):
            y = torch.arange(len(rows)).numpy()
            axis.barh(y - 0.19, [row.known for row in rows.values()], 0.36, color=COLOURS[0], label="noise known")
            axis.barh(y + 0.19, [row.fresh for row in rows.values()], 0.36, color=COLOURS[5], label="noise fresh")
            axis.axvline(
                result.clean[steps][0], color="0.4", linewidth=1.0, linestyle=":", label="no attack, noise known"
            )
            axis.set(title=f"{steps} steps", xlim=(0, 1), xlabel="robust accuracy that the audit reports")
            axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", ".2", ".4", ".6", ".8", "1"])
            axis.set_yticks(y, list(rows))
            axis.tick_params(axis="y", length=0)
        axes[0].invert_yaxis()
        top.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="upper center", fontsize=9)
        strip(result, defence, x, labels, bottom)


def strip(result: Audit, defence: Defence, x: Tensor, labels: Tensor, part: Any) -> None:
    """Images, attacked images and what the purifier makes of them, with what the classifier reads there."""
    rows = result.rows[STEPS[0]]
    weak, exact = rows["straight through (BPDA)"].attacked, rows["Checkpoint(), exact"].attacked
    with torch.no_grad():
        made = [x, *(image for shot in (weak, exact) for image in (shot, defence.purified(shot, KNOWN)))]
        read = [defence.classifier(images).argmax(1) for images in made]
    only = ((read[2] == labels) & (read[4] != labels)).nonzero().flatten().tolist()[:SHOWN]
    names = ("held-out image", "attacked, straight through", "and purified", "attacked, exact gradient", "and purified")
    place = {"left": 0.25, "right": 0.98, "top": 0.95, "bottom": 0.02, "wspace": 0.1, "hspace": 0.1}
    axes = part.subplots(len(names), SHOWN, squeeze=False, gridspec_kw=place)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, images, digits) in enumerate(zip(names, made, read, strict=True)):
        axes[line, 0].text(-0.3, 0.5, name, transform=axes[line, 0].transAxes, ha="right", va="center", fontsize=9)
        for axis, i in zip(axes[line], only, strict=False):
            show(axis, images[i])
            axis.set_axis_on()
            wrong = digits[i] != labels[i]
            axis.set_ylabel(str(int(digits[i])), rotation=0, labelpad=8, va="center", color=COLOURS[1 if wrong else 2])


if __name__ == "__main__":
    main(run, __doc__)
