"""Fine-tune a diffusion model to a style that is only a loss on its samples, by the gradient through the sampler.

The task of AdjointDPM's stylisation (Pan et al., 2024): the digits' network draws ink on paper and shall make reliefs,
lit from the upper left. No pixel is compared with a relief's: the style is the mean of the products of oriented slopes
(Gatys et al., 2016), and a classifier asks for the digit. The gradient goes through all steps of the sampler into the
weights, into all of them or into low-rank updates (LoRA: Hu et al., 2022), on the ODE and on the SDE, whose noise is
new in each iteration and is replayed in the backward pass.

The table: the style's loss, 0 for the mean of real reliefs, and the share of digits that another classifier recognises,
before and after, on latents and noise that the training does not use, no more than that classifier. The rows "last
step" have the truncated gradient of DRaFT-1 (Clark et al., 2024) for the same number of iterations. Look at the picture
for grey stone, dark edges on the upper left and light ones on the lower right, and for the digits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa
from examples.digits import classifiers, low_rank, unet
from examples.digits.looks import Style, relief
from examples.output import figure, main, show, table

SEED = 0
STEPS = 8
LAST_LAMBDA = 3.0  # sigma / alpha = e^-3 at the end: no noise that one could see
ITERATIONS = 30
BATCH = 10
HELD_OUT = 100
RANK = 4
LOW_RANK, ALL = "low rank", "all weights"
RATES = {LOW_RANK: 1e-2, ALL: 2e-3}  # Adam's
CONTENT = 0.5  # weight of the classifier's loss

SCHEDULE = unet.SCHEDULE
GRID = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(LAST_LAMBDA)))
SAMPLERS = {"ODE": sa.samplers.dpm_solver_pp_2m(SCHEDULE), "SDE": sa.samplers.sde_dpm_solver_pp_2m(SCHEDULE)}
HELD_OUT_NOISE = 10**6  # the seed of noise on which nothing is trained


class Judged(NamedTuple):
    """Held-out samples: their style's loss, the share that is recognised, and the first ten of them."""

    style: float
    recognised: float
    images: Tensor


@dataclass(frozen=True)
class Row:
    """One fine-tuning."""

    process: str
    weights: str
    adjoint: sa.Adjoint
    trained: int
    before: Judged
    after: Judged
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.process}, {self.weights}" + ("" if isinstance(self.adjoint, sa.Checkpoint) else ", last step")


@dataclass(frozen=True)
class Task:
    """What is asked of the samples, and what judges them; the classifiers know digits in ink and in relief."""

    style: Style
    teacher: nn.Module
    judge: nn.Module

    @classmethod
    def create(cls) -> Task:
        digits = sa.problems.Digits()
        ink, labels = digits.images[: classifiers.TRAINING_IMAGES], digits.labels[: classifiers.TRAINING_IMAGES]
        images, twice = torch.cat([ink, relief(ink)]), torch.cat([labels, labels])
        teacher, judge = (
            classifiers.trained(images, twice, seed=seed, noise=noise).float() for seed, noise in ((0, 0.3), (1, 0.6))
        )
        return cls(Style.of(relief(ink).float()), teacher, judge)


def generate(network: unet.UNet, process: str, normals: Tensor, seed: int, adjoint: sa.Adjoint) -> Tensor:
    """Samples of the digits 0, 1, ..., 9, 0, 1, ...: ``seed`` is that of the SDE's noise."""
    labels = torch.arange(len(normals)) % 10
    frame, solver = SAMPLERS[process]
    return sa.sample(
        sa.Denoiser(network, SCHEDULE, prediction=unet.PREDICTION),
        normals * SCHEDULE.sigma(GRID[0]).float(),
        frame=frame,
        grid=GRID,
        solver=solver,
        noise=sa.BrownianPath(seed) if frame.eta else None,
        cond={"embedding": network.classes(labels)},
        adjoint=adjoint,
    )


def held_out() -> Tensor:
    """Latents that the training does not use."""
    return torch.randn(HELD_OUT, 1, 8, 8, generator=torch.Generator().manual_seed(SEED + 1))


def fine_tune(task: Task, process: str, weights: str, adjoint: sa.Adjoint, before: Judged) -> Row:
    """Adam on the style's loss and the teacher's, measured on samples; ``before``: the network as it is loaded."""
    network = unet.load()
    trained = low_rank.adapt(network, RANK) if weights == LOW_RANK else list(network.requires_grad_().parameters())
    optimizer = torch.optim.Adam(trained, lr=RATES[weights])
    generator = torch.Generator().manual_seed(SEED)
    began = time.perf_counter()
    for iteration in range(ITERATIONS):
        normals = torch.randn(BATCH, 1, 8, 8, generator=generator)
        x_0 = generate(network, process, normals, SEED + iteration, adjoint)
        content = functional.cross_entropy(task.teacher(x_0), torch.arange(BATCH) % 10)
        optimizer.zero_grad()
        (task.style(x_0) + CONTENT * content).backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    after = evaluate(task, network, process, held_out())
    return Row(process, weights, adjoint, sum(p.numel() for p in trained), before, after, seconds)


@torch.no_grad()
def evaluate(task: Task, network: unet.UNet, process: str, normals: Tensor) -> Judged:
    """Samples from latents, and with noise, that the training does not use."""
    x_0 = generate(network, process, normals, HELD_OUT_NOISE, sa.Checkpoint())
    right = task.judge(x_0).argmax(1) == torch.arange(len(x_0)) % 10
    return Judged(float(task.style(x_0)), float(right.double().mean()), x_0[:10])


def draw(path: Path, rows: list[Row]) -> None:
    """One row of images per process before, and one for each fine-tuning after; real digits in relief at the bottom."""
    real = sa.problems.Digits().images[:10]  # one of each digit, in order
    strips: list[tuple[str, Tensor]] = []
    for process in SAMPLERS:
        of_process = [row for row in rows if row.process == process]
        strips.append((f"{process}, before", of_process[0].before.images))
        strips.extend((row.name, row.after.images) for row in of_process)
    strips.append(("real digits in relief", relief(real)))
    with figure(path, 6.8, 0.48 * len(strips) + 0.45) as made:
        axes = made.subplots(len(strips), 10)
        made.subplots_adjust(0.31, 0.01, 0.99, 1 - 0.4 / made.get_figheight(), 0.06, 0.06)
        made.suptitle("Digits from held-out latents, before and after fine-tuning to reliefs", y=0.985)
        for line, (text, images) in zip(axes, strips, strict=True):
            line[0].text(-0.25, 0.5, text, transform=line[0].transAxes, ha="right", va="center")
            for axis, image in zip(line, images, strict=True):
                show(axis, image)


def run(out: Path) -> list[Row]:
    """Fine-tune six times, print the table, and draw ``style_finetuning.png``."""
    task = Task.create()
    exact, last = sa.Checkpoint(), sa.Truncated(1)
    before = {process: evaluate(task, unet.load(), process, held_out()) for process in SAMPLERS}
    rows = [fine_tune(task, process, weights, exact, before[process]) for process in SAMPLERS for weights in RATES]
    rows += [fine_tune(task, "ODE", weights, last, before["ODE"]) for weights in RATES]
    table(
        f"Fine-tuning to reliefs: {ITERATIONS} iterations, {BATCH} samples, {STEPS} steps",
        ("gradient through", "weights trained", "style loss", "after", "recognised", "after", "seconds"),
        [
            (
                row.name,
                str(row.trained),
                *(f"{judged.style:.3f}" for judged in (row.before, row.after)),
                *(f"{judged.recognised:.0%}" for judged in (row.before, row.after)),
                f"{row.seconds:.1f}",
            )
            for row in rows
        ],
    )
    draw(out / "style_finetuning.png", rows)
    return rows


if __name__ == "__main__":
    main(run, __doc__)
