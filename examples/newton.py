"""Newton's method in the latent: an inverse problem by Gauss-Newton against Adam, at equal network calls.

The digit of a measurement y = A x, 4x4 pixels of 8x8, is that of the latent which minimises

    |A x_0(z) - y|^2 / (2 s^2) + |z|^2 / 2,      x_T = sigma(T) z

as in ``examples/inverse_problem.py``, from one start. It is least squares, with a curvature of 1 / s^2 = 100 in
the directions that are measured and of 1 in the others. Gauss-Newton takes this into account. With J the derivative of
x_0 in z, each step solves

    (J^T A^T A J / s^2 + (1 + damping) I) step = -gradient

by conjugate gradients, from products of ``sa.gauss_newton_product`` with the graph of one solve. The damping is
Levenberg and Marquardt's, one number for each digit: it falls where the loss falls as the quadratic model said, it
rises where it does not, and a step that raises the loss is not taken.

Adam gets as many passes through the network, forward and backward, and the best of two rates. Per step of the
sampler a gradient takes three (to sample, once more with a graph, and back), a product five (twice with a graph, and
three passes back). Measured are medians over the digits of the loss, of the norm of its gradient, and the root mean
square of A x - y.

Look at: no clear winner. Adam is ahead for most of the passes, both end at about the same loss, and some digits differ:
each method ends in a minimum of its own. The exact model of a few hundred images bends within one step of Gauss-Newton,
so that steps are damped or not taken (where the curve is flat). What it has is no rate to choose, and a loss that never
rises: Adam's does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES
from examples.digits.measurements import MEASUREMENTS
from examples.digits.measures import Tallied
from examples.output import COLOURS, figure, main, show, table

SEED = 0
IMAGES = 5
PRIOR = 400  # images that the model has seen
BANDWIDTH = 0.3
ACCURACY = 0.1  # s
STEPS = 8
NEWTON_STEPS = 7
PRODUCTS = 5  # at most, for one step
RESIDUAL = 0.1  # of the gradient, at which conjugate gradients stop
RATES = (0.1, 0.3)
NEWTON = "Gauss-Newton"

MEASUREMENT = MEASUREMENTS["super-resolution, 4x4 to 8x8"]
SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.dpm_solver_pp_2m(SCHEDULE)
GRID = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(3.0)))


@dataclass(frozen=True)
class Task:
    """What is minimised: a model, its network's passes, and measurements y (n, 1, 4, 4)."""

    denoiser: sa.Denoiser
    passes: Tallied
    y: Tensor

    def image(self, z: Tensor) -> Tensor:
        x_T = SCHEDULE.sigma(GRID[0]) * z
        return sa.sample(self.denoiser, x_T, frame=FRAME, grid=GRID, solver=SOLVER, adjoint=sa.Checkpoint())

    def misfits(self, x: Tensor) -> Tensor:
        return (MEASUREMENT.apply(x) - self.y).flatten(1).square().sum(1) / (2 * ACCURACY**2)

    def losses(self, x: Tensor, z: Tensor) -> Tensor:
        return self.misfits(x) + z.flatten(1).square().sum(1) / 2


Line = tuple[int, Tensor, Tensor]
"""Passes so far, and of each digit the loss and the norm of its gradient."""


@dataclass(frozen=True)
class Course:
    """A descent, gradient by gradient: passes so far (k,), losses and gradients' norms (k, n), the last images."""

    calls: Tensor
    losses: Tensor
    slopes: Tensor
    images: Tensor


def course(lines: list[Line], x: Tensor) -> Course:
    calls, losses, slopes = zip(*lines, strict=True)
    return Course(torch.tensor(calls) - min(calls) + 3 * STEPS, torch.stack(losses), torch.stack(slopes), x.detach())


def norms(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).norm(dim=1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """For each digit, (n, 1, 1, 1)."""
    return (a * b).flatten(1).sum(1)[:, None, None, None]


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor) -> tuple[Tensor, Tensor]:
    """``s`` with ``product(s)`` near b, and the residual ``b - product(s)``: each digit is a system of its own."""
    s, r, p = torch.zeros_like(b), b, b
    squares = inner(r, r)
    goal = RESIDUAL**2 * squares
    for _ in range(PRODUCTS):
        live = squares > goal
        if not live.any():
            break
        q = product(p)
        length = torch.where(live, squares / inner(p, q), 0.0)
        s, r = s + length * p, r - length * q
        after = inner(r, r)
        p, squares = torch.where(live, r + after / squares * p, p), torch.where(live, after, squares)
    return s, r


def gauss_newton(task: Task, z: Tensor) -> Course:
    """``NEWTON_STEPS`` steps from z (n, 1, 8, 8)."""
    z, damping, lines = z.clone().requires_grad_(), torch.ones(len(z), 1, 1, 1, dtype=z.dtype), list[Line]()
    x = task.image(z)
    for k in range(NEWTON_STEPS + 1):
        losses = task.losses(x, z)
        (g,) = torch.autograd.grad(losses.sum(), z, retain_graph=True)
        lines.append((task.passes.calls, losses.detach(), norms(g)))
        if k == NEWTON_STEPS:
            break

        def product(v: Tensor, x: Tensor = x, z: Tensor = z, damping: Tensor = damping) -> Tensor:
            bent = sa.gauss_newton_product(x, z, v, loss=lambda x: task.misfits(x).sum())
            assert isinstance(bent, Tensor)
            return bent + (1 + damping) * v

        step, residual = conjugate_gradients(product, -g)
        # The quadratic model is g s + s (G + 1) s / 2, and (G + 1) s = -g - residual - damping s.
        expected = (inner(step, residual - g) + damping * inner(step, step)) / 2
        tried = (z.detach() + step).requires_grad_()
        x = task.image(tried)
        fell = (losses - task.losses(x, tried)).detach()[:, None, None, None]
        damping = torch.where(
            fell > 0.75 * expected, damping / 5, torch.where(fell < 0.25 * expected, 4 * damping, damping)
        )
        z, before = tried, z.detach()
        if not bool((fell > 0).all()):
            z = torch.where(fell > 0, tried.detach(), before).requires_grad_()
            x = task.image(z)
    return course(lines, x)


def adam(task: Task, z: Tensor, rate: float, iterations: int) -> Course:
    """So many gradients, with a rate that falls to 0 by a cosine."""
    z, lines = z.clone().requires_grad_(), list[Line]()
    optimizer = torch.optim.Adam([z], lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        x = task.image(z)
        losses = task.losses(x, z)
        optimizer.zero_grad()
        losses.sum().backward()
        assert z.grad is not None
        lines.append((task.passes.calls, losses.detach(), norms(z.grad)))
        optimizer.step()
        decay.step()
    return course(lines, x)


@dataclass(frozen=True)
class Result:
    """``truth`` (n, 1, 8, 8), and a course for each method."""

    truth: Tensor
    courses: dict[str, Course]

    @property
    def best(self) -> str:
        """The rate of Adam's with the least median loss."""
        names = [name for name in self.courses if name != NEWTON]
        return min(names, key=lambda name: float(self.courses[name].losses[-1].median()))


def task_of(images: int) -> tuple[Task, Tensor]:
    """The task for so many held-out digits, and these."""
    digits = sa.problems.Digits()
    prior = sa.problems.Mixture([1.0] * PRIOR, digits.images[:PRIOR], BANDWIDTH**2)
    truth = digits.images[TRAINING_IMAGES:][:images]
    passes = Tallied(prior.denoiser(SCHEDULE).network)
    denoiser = sa.Denoiser(passes, SCHEDULE, prediction="sample", time_dtype=torch.float64)
    return Task(denoiser, passes, MEASUREMENT.apply(truth)), truth


def run(out: Path) -> Result:
    """Restore digits by each method; write ``newton.png``."""
    task, truth = task_of(IMAGES)
    z = torch.randn(truth.shape, generator=torch.Generator().manual_seed(SEED), dtype=truth.dtype)
    newton = gauss_newton(task, z)
    iterations = -int(-newton.calls[-1] // (3 * STEPS))  # no fewer passes than Gauss-Newton has
    courses = {NEWTON: newton} | {f"Adam, rate {rate}": adam(task, z, rate, iterations) for rate in RATES}
    result = Result(truth, courses)
    report(result)
    draw(result, out / "newton.png")
    return result


def fit(course: Course, truth: Tensor) -> float:
    return float(MEASUREMENT.apply(course.images - truth).square().mean().sqrt())


def report(result: Result) -> None:
    lines = []
    for name, made in result.courses.items():
        loss, slope = float(made.losses[-1].median()), float(made.slopes[-1].median())
        mean = float(made.losses[-1].mean())
        numbers = (f"{loss:.2f}", f"{mean:.2f}", f"{slope:.2g}", f"{fit(made, result.truth):.3f}")
        lines.append((name, str(len(made.calls)), str(int(made.calls[-1])), *numbers))
    columns = ("", "gradients", "passes", "loss, median", "mean", "gradient's norm", "fit")
    table(f"{len(result.truth)} held-out digits, {STEPS} steps of the sampler", columns, lines)


def draw(result: Result, path: Path) -> None:
    """Losses and gradients' norms over the passes, and the digits below."""
    best = result.best
    n = len(result.truth)
    with figure(path, 9.0, 7.4) as made:
        parts: Any = made.subfigures(2, 1, height_ratios=(1.0, 1.35))
        for axis, title in zip(parts[0].subplots(1, 2), ("loss", "norm of the gradient"), strict=True):
            for colour, name in zip(COLOURS, result.courses, strict=False):
                each = result.courses[name]
                values = (each.losses if title == "loss" else each.slopes).median(1).values
                axis.semilogy(each.calls, values, color=colour, marker="o" if name == NEWTON else "", label=name, ms=4)
            axis.set_title(f"{title}, median of {n} digits")
            axis.set_xlabel("passes through the network")
        parts[0].axes[0].legend(frameon=False)
        parts[0].subplots_adjust(left=0.07, right=0.98, top=0.9, bottom=0.16, wspace=0.2)
        known = MEASUREMENT.transposed(MEASUREMENT.apply(result.truth)) / MEASUREMENT.gain
        rows = {"measured": known, NEWTON: result.courses[NEWTON].images, best: result.courses[best].images}
        place = {"left": 0.17, "right": 0.98, "top": 0.97, "bottom": 0.02, "wspace": 0.1, "hspace": 0.1}
        axes = parts[1].subplots(4, n, gridspec_kw=place)
        for line, (name, images) in zip(axes, (rows | {"truth": result.truth}).items(), strict=True):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
            for axis, image in zip(line, images, strict=True):
                show(axis, image)


if __name__ == "__main__":
    main(run, __doc__)
