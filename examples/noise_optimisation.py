"""Noise optimisation: steer an SDE's sample by the noise that is injected on its way.

The sampler of a diffusion SDE draws x_T and a Brownian path. Both are standard normals, x_T = sigma(T) z and
dB_n = sqrt(nu[n+1] - nu[n]) z_n, and both can be moved so that the sample becomes the digit that is wished for, with a
third more ink, while the norms stay those of normals:

    minimise   -log p(wish | x_0) + (ink / wished ink - 1)^2 / (2 * 0.05^2) + sum (|z| - sqrt(d))^2

with d the count of numbers in z, of x_T and of the path: the norm of d standard normals is sqrt(d), give or take 0.7.
Moved are x_T alone, the whole path, the early path, and x_T with the whole path; the last row leaves out the norms'
term. The early path is the noise injected while sigma / alpha exceeds twice the width of the model's images. Later
noise reaches the image unfiltered: it may please the classifier without drawing another digit. Measured over the
samples:

- the goal (the first two terms), p(wish) by the classifier, and the exact posterior of the wish under the model, of
  which no descent knows: means; the ink over the wished ink: mean;
- how many samples reach p(wish) > 0.95, and after how many iterations (median of those);
- how far the norms of x_T and of the path are from sqrt(d), in standard deviations: means. Drawn ones are 0.8 off.

Look at: x_T reaches nothing, for with eta = 1 the path decides. The whole path reaches every goal and looks like a
drawn one, but four in ten of its digits are the classifier's errors. The early path reaches nearly all, and the exact
model agrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES, trained
from examples.digits.goals import Goal, ink
from examples.digits.measures import posterior
from examples.output import COLOURS, figure, main, show, table

SEED = 0
SAMPLES = 10
STEPS = 20
BANDWIDTH = 0.1
ITERATIONS = 80
RATE = 0.1
REACHED = 0.95
MORE_INK = 4 / 3

SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.sde_dpm_solver_pp_2m(SCHEDULE)
GRID = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(3.0)))
SCALE = FRAME.noise_clock(GRID).diff().sqrt().reshape(-1, 1, 1, 1, 1)
EARLY = int((SCHEDULE.lam(GRID[1:]).exp() < 1 / (2 * BANDWIDTH)).sum())  # steps


@dataclass(frozen=True)
class Move:
    """What a descent moves: x_T or not, the noise of so many first steps, and whether norms are kept."""

    x_T: bool
    steps: int
    likely: bool = True


MOVES = {
    "x_T": Move(True, 0),
    "the whole path": Move(False, STEPS),
    "the early path": Move(False, EARLY),
    "x_T and the whole path": Move(True, STEPS),
    "both, norms left free": Move(True, STEPS, likely=False),
}


def generate(denoiser: sa.Denoiser, z_T: Tensor, z: Tensor) -> Tensor:
    """The sample of the SDE from standard normals: z_T (n, 1, 8, 8) and z (steps, n, 1, 8, 8)."""
    x_T, noise = SCHEDULE.sigma(GRID[0]) * z_T, sa.FixedNoise(SCALE * z)
    return sa.sample(denoiser, x_T, frame=FRAME, grid=GRID, solver=SOLVER, noise=noise, adjoint=sa.Checkpoint())


def excess(z: Tensor) -> Tensor:
    """``|z| - sqrt(d)`` for each sample, of z_T (n, 1, 8, 8) or of a path (steps, n, 1, 8, 8)."""
    each = z.movedim(-4, 0).flatten(1)
    return each.norm(dim=1) - math.sqrt(each.shape[1])


def deviations(z_T: Tensor, z: Tensor) -> tuple[float, float]:
    """Of both norms from sqrt(d), in standard deviations: the norm of many normals has one of 1 / sqrt(2)."""
    x_T, path = (float(excess(value).abs().mean()) * math.sqrt(2) for value in (z_T, z))
    return x_T, path


@dataclass(frozen=True)
class Row:
    """One descent: for each sample the goal and p(wish), (iterations + 1, n), and the rest as it is in the end."""

    images: Tensor
    goal: Tensor
    probability: Tensor
    posterior: Tensor
    ink: Tensor
    deviations: tuple[float, float]

    @property
    def reached(self) -> Tensor:
        """The first iteration with p(wish) > 0.95 of each sample that has one."""
        hits = self.probability > REACHED
        return hits.int().argmax(0)[hits.any(0)]


@dataclass(frozen=True)
class Descents:
    """Descents side by side, one for each move: the last latents and images, and the curves of every sample.

    ``z_T``, ``images``: (moves, n, 1, 8, 8); ``z``: (steps, moves, n, 1, 8, 8); ``goals``, ``probabilities``:
    (iterations + 1, moves, n).
    """

    z_T: Tensor
    z: Tensor
    images: Tensor
    goals: Tensor
    probabilities: Tensor


def penalties(moves: Sequence[Move], z_T: Tensor, z: Tensor) -> Tensor:
    """Of each sample, (moves, n): what keeps the norms of what is moved those of normals."""
    found = z_T.new_zeros(z_T.shape[:2])
    for k, move in enumerate(moves):
        if move.likely and move.x_T:
            found[k] += excess(z_T[k]).square()
        if move.likely and move.steps > 0:
            found[k] += excess(z[: move.steps, k]).square()
    return found


def descend(denoiser: sa.Denoiser, goal: Goal, moves: Sequence[Move], z_T: Tensor, z: Tensor) -> Descents:
    """Adam on what each of the moves names, from z_T (n, 1, 8, 8) and z (steps, n, 1, 8, 8).

    All moves are samples of one batch. What has no gradient is not moved by Adam, bit by bit.
    """
    shape = (len(moves), *z_T.shape)
    z_T, z = z_T.expand(shape).clone().requires_grad_(), z[:, None].expand(len(z), *shape).clone().requires_grad_()
    moves_T = torch.tensor([move.x_T for move in moves]).reshape(-1, 1, 1, 1, 1)
    moves_n = torch.stack([torch.arange(len(z)) < move.steps for move in moves], 1).reshape(len(z), -1, 1, 1, 1, 1)
    optimizer = torch.optim.Adam([z_T, z], lr=RATE)
    goals, probabilities = [], []
    for i in range(ITERATIONS + 1):
        images = generate(denoiser, z_T.flatten(0, 1), z.flatten(1, 2)).unflatten(0, shape[:2])
        losses = torch.stack([goal.losses(x) for x in images])
        goals.append(losses.detach())
        probabilities.append(torch.stack([goal.probability(x) for x in images.detach()]))
        if i < ITERATIONS:
            optimizer.zero_grad()
            (losses + penalties(moves, z_T, z)).sum().backward()
            assert z_T.grad is not None
            assert z.grad is not None
            z_T.grad *= moves_T
            z.grad *= moves_n
            optimizer.step()
    return Descents(z_T.detach(), z.detach(), images.detach(), torch.stack(goals), torch.stack(probabilities))


@dataclass(frozen=True)
class Steering:
    """``before``: the samples as drawn; ``start`` and ``wish``: digits; ``drawn``: the deviations of drawn norms."""

    before: Tensor
    start: Tensor
    wish: Tensor
    drawn: tuple[float, float]
    rows: dict[str, Row]


def run(out: Path) -> Steering:
    """Make every move; write ``noise_optimisation.png``."""
    problem = sa.problems.Digits(bandwidth=BANDWIDTH)
    denoiser = problem.denoiser(SCHEDULE)
    classes = sa.problems.Digits(bandwidth=BANDWIDTH, conditional=True)
    images, labels = problem.images[:TRAINING_IMAGES], problem.labels[:TRAINING_IMAGES]
    classifier = trained(images, labels, seed=SEED, noise=0.6, batch=TRAINING_IMAGES)
    z_T = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    z = sa.BrownianPath(seed=SEED).increments(FRAME, GRID, like=z_T) / SCALE
    before = generate(denoiser, z_T, z)
    start = classifier(before).argmax(1)
    goal = Goal(classifier, (start + 5) % 10, MORE_INK * ink(before))
    made = descend(denoiser, goal, list(MOVES.values()), z_T, z)
    rows = {}
    for k, name in enumerate(MOVES):
        x, curves = made.images[k], (made.goals[:, k], made.probabilities[:, k])
        exact = posterior(classes, x, goal.wish, (SCHEDULE, GRID[-1]))
        rows[name] = Row(x, *curves, exact, goal.ink(x), deviations(made.z_T[k], made.z[:, k]))
    result = Steering(before, start, goal.wish, deviations(z_T, z), rows)
    report(result)
    draw(result, out / "noise_optimisation.png")
    return result


def report(result: Steering) -> None:
    columns = ("moved", "goal", "p(wish)", "exact", "ink", "reached", "iterations", "norm of x_T", "norm of the path")
    lines = []
    for name, row in result.rows.items():
        means = (row.goal[-1], row.probability[-1], row.posterior, row.ink)
        reached = (f"{len(row.reached)}/{SAMPLES}", str(int(row.reached.median())) if len(row.reached) else "")
        off = (f"{deviation:.2f}" for deviation in row.deviations)
        lines.append((name, *(f"{float(mean.mean()):.2f}" for mean in means), *reached, *off))
    drawn = "drawn norms are off by {:.2f} and {:.2f}".format(*result.drawn)
    table(f"{SAMPLES} samples, {ITERATIONS} iterations; {drawn} standard deviations", columns, lines)


def draw(result: Steering, path: Path) -> None:
    """The samples before and after each move, with what the classifier and the exact model make of the wish."""
    with figure(path, 10.0, 7.2) as made:
        place = {"left": 0.2, "right": 0.98, "top": 0.88, "bottom": 0.04, "wspace": 0.1, "hspace": 0.32}
        axes = made.subplots(len(result.rows) + 1, SAMPLES, gridspec_kw=place)
        for i, axis in enumerate(axes[0]):
            show(axis, result.before[i])
            axis.set_title(f"{result.start[i]} \N{RIGHTWARDS ARROW} {result.wish[i]}", fontweight="bold")
        for line, row in zip(axes[1:], result.rows.values(), strict=True):
            for i, axis in enumerate(line):
                show(axis, row.images[i])
                for x, p, marker in ((0.38, row.probability[-1, i], "o"), (0.62, row.posterior[i], "s")):
                    face = COLOURS[2] if p > 0.5 else "none"
                    axis.plot(x, -0.14, marker, color=COLOURS[2], mfc=face, transform=axis.transAxes, clip_on=False)
        for axis, name in zip(axes[:, 0], ["as drawn", *result.rows], strict=True):
            axis.set_ylabel(name.replace("x_T", "$x_T$"), rotation=0, ha="right", va="center", labelpad=8)
        text = "filled: p(wish) > 1/2, by the classifier (circle), by the exact model (square)"
        made.text(0.59, 0.955, text, ha="center", color=COLOURS[2])


if __name__ == "__main__":
    main(run, __doc__)
