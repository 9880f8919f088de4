"""Find the word for a look: an embedding vector, optimised by the gradient through the whole sampler.

Two tasks of AdjointDPM (Pan et al., 2024) on the digits' network, whose words are embedding vectors. *Inversion*: given
twenty images of a digit and no label, find the vector whose samples look like them, starting from the word for "any
digit"; the loss is the energy distance between samples and images, and no classifier takes part. *Vocabulary
expansion*: a new word for a look that has no label, "light" or "bold", to be added to the word of a digit; the loss is
the amount of ink, and a classifier that asks for the digit. It is learned on the digits 0 to 4 and used on all.

The tables: what another classifier recognises in samples from latents that the training does not use. The truncated
gradient (DRaFT-1: Clark et al., 2024) knows how the last step depends on the word, but a digit is decided in the first
ones. Look at the picture for ten digits under "found", and for strokes that change while the digits stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa
from examples.digits import classifiers, unet
from examples.digits.looks import energy_distance, ink
from examples.output import figure, main, show, table

SEED = 0
STEPS = 10
LAST_LAMBDA = 3.0  # sigma / alpha = e^-3 at the end: no noise that one could see
HELD_OUT = 200
IMAGES = 20  # of each digit, for the inversion
INVERSION_ITERATIONS, INVERSION_RATE, PER_DIGIT = 30, 0.2, 3
EXPANSION_ITERATIONS, EXPANSION_RATE, BATCH = 30, 0.1, 10
KNOWN = 5  # the new words are learned on the digits below
INK = {"light": 0.18, "bold": 0.46}  # real digits: 0.31 in the mean, with a standard deviation of 0.03
CONTENT = 0.02  # weight of the classifier's loss

SCHEDULE = unet.SCHEDULE
GRID = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(LAST_LAMBDA)))
FRAME, SOLVER = sa.samplers.dpm_solver_pp_2m(SCHEDULE)


class Measured(NamedTuple):
    """Held-out samples under some words: first ten of them, energy distance to the images, and what follows by digit.

    ``ink`` and ``recognised`` are pairs: for the digits below ``KNOWN``, and for the others.
    """

    images: Tensor
    distance: float
    ink: tuple[float, float]
    recognised: tuple[float, float]


class Result(NamedTuple):
    """By name: the words of the inversion, and the network's words with each new one added to them."""

    inversion: dict[str, Measured]
    expansion: dict[str, Measured]
    references: Tensor


@dataclass(frozen=True)
class Scene:
    """The denoiser, the images (10, ``IMAGES``, 1, 8, 8), the classifier of the loss, and the one that judges."""

    network: unet.UNet
    images: Tensor
    teacher: nn.Module
    judge: nn.Module

    @classmethod
    def create(cls) -> Scene:
        digits = sa.problems.Digits()
        x, labels = digits.images[: classifiers.TRAINING_IMAGES], digits.labels[: classifiers.TRAINING_IMAGES]
        teacher, judge = (
            classifiers.trained(x, labels, seed=seed, noise=noise).float() for seed, noise in ((0, 0.3), (1, 0.6))
        )
        images = torch.stack([x[labels == digit][:IMAGES] for digit in range(10)]).float()
        return cls(unet.load(), images, teacher, judge)

    def sample(self, generator: torch.Generator, words: Tensor, adjoint: sa.Adjoint) -> Tensor:
        """One image for each of the words (batch, width): gradients flow into them."""
        normals = torch.randn(len(words), 1, 8, 8, generator=generator)
        return sa.sample(
            sa.Denoiser(self.network, SCHEDULE, prediction=unet.PREDICTION),
            normals * SCHEDULE.sigma(GRID[0]).float(),
            frame=FRAME,
            grid=GRID,
            solver=SOLVER,
            cond={"embedding": words},
            adjoint=adjoint,
        )

    def measure(self, words: Tensor) -> Measured:
        """The ten words (10, width) for the digits, on held-out latents."""
        labels = torch.arange(HELD_OUT) % 10
        x_0 = self.sample(torch.Generator().manual_seed(SEED + 1), words[labels], sa.Checkpoint())
        right = (self.judge(x_0).argmax(1) == labels).double()
        seen, others = labels < KNOWN, labels >= KNOWN
        return Measured(
            x_0[:10],
            float(energy_distance(by_digit(x_0), self.images)),
            (float(ink(x_0[seen]).mean()), float(ink(x_0[others]).mean())),
            (float(right[seen].mean()), float(right[others].mean())),
        )


def by_digit(x: Tensor) -> Tensor:
    """Samples of the digits 0, ..., 9, 0, ... as (10, n, 1, 8, 8)."""
    return x.unflatten(0, (-1, 10)).transpose(0, 1)


def invert(scene: Scene, start: Tensor, adjoint: sa.Adjoint) -> Tensor:
    """Ten words (10, width), each for the images of one digit."""
    words = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([words], lr=INVERSION_RATE)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(INVERSION_ITERATIONS):
        x_0 = scene.sample(generator, words.repeat(PER_DIGIT, 1), adjoint)
        optimizer.zero_grad()
        energy_distance(by_digit(x_0), scene.images).backward()
        optimizer.step()
    return words.detach()


def expand(scene: Scene, digit_words: Tensor, wanted: float) -> Tensor:
    """A word (width,) that makes the digits' ink the wanted one."""
    word = torch.zeros(digit_words.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([word], lr=EXPANSION_RATE)
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.arange(BATCH) % KNOWN
    for _ in range(EXPANSION_ITERATIONS):
        x_0 = scene.sample(generator, digit_words[labels] + word, sa.Checkpoint())
        content = functional.cross_entropy(scene.teacher(x_0), labels)
        optimizer.zero_grad()
        ((ink(x_0) - wanted).square().mean() + CONTENT * content).backward()
        optimizer.step()
    return word.detach()


def report(result: Result) -> None:
    """Both tables."""
    table(
        f"Inversion: from {IMAGES} images of each digit to its word",
        ("words", "recognised", "energy distance"),
        [(name, f"{sum(m.recognised) / 2:.0%}", f"{m.distance:.2f}") for name, m in result.inversion.items()],
    )
    others = f"digits {KNOWN} to 9"
    table(
        f"Vocabulary expansion: words learned on the digits 0 to {KNOWN - 1}",
        ("word", "ink wanted", f"ink, 0 to {KNOWN - 1}", "recognised", f"ink, {others}", "recognised"),
        [(name, f"{INK[name]:.2f}" if name in INK else "", *cells(m)) for name, m in result.expansion.items()],
    )


def cells(m: Measured) -> list[str]:
    return [text for ink, share in zip(m.ink, m.recognised, strict=True) for text in (f"{ink:.3f}", f"{share:.0%}")]


def draw(path: Path, result: Result) -> None:
    """A line of ten images for each set of words, from the same latents."""
    strips = [("images", result.references), *((name, m.images) for name, m in result.inversion.items())]
    strips += [(f"the network's own, “{name}”", result.expansion[name].images) for name in INK]
    with figure(path, 7.2, 0.48 * len(strips) + 0.45) as made:
        axes = made.subplots(len(strips), 10)
        made.subplots_adjust(0.33, 0.01, 0.99, 1 - 0.4 / made.get_figheight(), 0.06, 0.06)
        made.suptitle("Words found through the sampler, on held-out latents", y=0.985)
        for line, (text, images) in zip(axes, strips, strict=True):
            line[0].text(-0.25, 0.5, text, transform=line[0].transAxes, ha="right", va="center")
            for axis, image in zip(line, images, strict=True):
                show(axis, image)


def run(out: Path) -> Result:
    """Invert twice, learn two words, print the tables, and draw ``embedding_inversion.png``."""
    scene = Scene.create()
    own, nameless = scene.network.classes.weight[:10], scene.network.classes.weight[[unet.NONE] * 10]
    inversion = {
        "start: any digit": nameless,
        "found, gradient of the last step": invert(scene, nameless, sa.Truncated(1)),
        "found, gradient of all steps": invert(scene, nameless, sa.Checkpoint()),
        "the network's own": own,
    }
    expansion = {name: own + expand(scene, own, wanted) for name, wanted in INK.items()}
    plain = scene.measure(own)
    result = Result(
        {name: plain if words is own else scene.measure(words) for name, words in inversion.items()},
        {"no new word": plain} | {name: scene.measure(words) for name, words in expansion.items()},
        scene.images[:, 0],
    )
    report(result)
    draw(out / "embedding_inversion.png", result)
    return result


if __name__ == "__main__":
    main(run, __doc__)
