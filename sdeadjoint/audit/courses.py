"""A sampler on its own grid, against the exact solution: errors of states and gradients, and laws without sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..adjoints import Direct
from ..comparison.truth import refined
from ..noise import FixedNoise
from ..noise.paths import Paths
from ..problems import Gaussian, Mixture
from ..problems.base import Problem
from ..sample import sample
from ..solvers.reference import reference_solver
from .subjects import Course

MIXTURE = Mixture([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3])
"""Scalar and mild: no path changes mode, and the ODE's solution is quantile transport."""

SPREAD = 0.5
GAUSSIAN = Gaussian(0.0, SPREAD**2)
FINE = 200  # steps of the reference with noise, at least


class Errors(NamedTuple):
    """Of each path: the state's error, and the gradient's with the gradient itself; float64 (paths,)."""

    state: Tensor
    gradient: Tensor
    true: Tensor

    @property
    def relative(self) -> float:
        """``|g - g_true| / |g_true|`` over all paths."""
        return float(self.gradient.norm() / self.true.norm())


def errors(course: Course, paths: int, seed: int) -> Errors:
    """Errors of ``x_0`` and of ``d(sum x_0^2 / 2) / d x_T`` of a course with the mixture's perfect network.

    Without noise against quantile transport; with noise against a method of strong order 1.5 on the same Brownian
    paths, each step cut into many. Starts are drawn from the mixture's own marginal at the grid's first time.
    """
    x_T = starts(course, paths, seed)
    if course.frame.eta == 0:
        times = float(course.grid[0]), float(course.grid[-1])
        state, gradient = _solved(course, x_T, None)
        true = _differentiated(x_T, lambda x: MIXTURE.ode_map(x, course.frame.schedule, *times))
    else:
        noises = _Noises.draw(course, paths, seed)
        state, gradient = _solved(course, x_T, noises.coarse)
        true = _solved(noises.reference, x_T, noises.fine)
    return Errors(state - true[0], gradient - true[1], true[1])


def starts(course: Course, paths: int, seed: int) -> Tensor:
    """Draw ``alpha x_0 + sigma eps`` at the first time."""
    schedule, t = course.frame.schedule, course.grid[0]
    eps = torch.randn(paths, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")
    return schedule.alpha(t) * MIXTURE.sample(paths, seed) + schedule.sigma(t) * eps


def _solved(course: Course, x_T: Tensor, noise: FixedNoise | None) -> tuple[Tensor, Tensor]:
    return _differentiated(x_T, lambda x: run(course, MIXTURE, x, noise))


def _differentiated(x_T: Tensor, solution: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    leaf = x_T.clone().requires_grad_()
    with torch.enable_grad():
        x = solution(leaf)
        (gradient,) = torch.autograd.grad(x.square().sum() / 2, leaf)
    return x.detach(), gradient


def run(course: Course, problem: Problem, x_T: Tensor, noise: FixedNoise | None) -> Tensor:
    """Sample with the problem's perfect network."""
    frame, grid, solver = course
    denoiser = problem.denoiser(frame.schedule)
    return sample(denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise, adjoint=Direct())


@dataclass(frozen=True, eq=False)
class _Noises:
    """One path on a course's grid and on a finer one, with the course that runs there."""

    reference: Course
    coarse: FixedNoise
    fine: FixedNoise

    @classmethod
    def draw(cls, course: Course, paths: int, seed: int) -> _Noises:
        frame, grid, solver = course
        factor = max(4, -(-FINE // (len(grid) - 1)))
        cut = refined(grid, frame.schedule, factor)
        clock = frame.noise_clock(cut)
        clean = bool(torch.isneginf(frame.schedule.log_sigma(grid[-1])))
        if clean:  # a last step to clean data is x_0, without noise, in any number of pieces
            cut = torch.cat([cut[:-factor], cut[-1:]])
            clock = torch.cat([clock[:-factor], clock[-factor - 1] + torch.arange(1, factor + 1).to(clock)])
        drawn = Paths.draw(clock, (paths,), seed)
        reference = Course(frame, cut, reference_solver(solver, noisy=True))
        return cls(reference, _without_last(drawn.coarsened(factor), clean, 1), _without_last(drawn, clean, factor))


def _without_last(paths: Paths, clean: bool, pieces: int) -> FixedNoise:
    """The noise, none in the last step where it ends in clean data; its pieces are one step."""
    if not clean:
        return paths.noise()
    dB, H = (torch.cat([value[:-pieces], torch.zeros_like(value[:1])]) for value in (paths.dB, paths.H))
    return FixedNoise(dB, H)


# ---------------------------------------------------------------- marginals


class Spread(NamedTuple):
    """The standard deviation of a sampler's law for Gaussian data, and the exact one at the same time."""

    sampled: float
    exact: float

    @property
    def excess(self) -> float:
        """``sampled / exact - 1``."""
        return self.sampled / self.exact - 1


def spread(course: Course) -> Spread:
    """The law of a course for data ``N(0, c^2)``, without sampling.

    Every step is affine in x_T, dB and H there, so ``x_0 = A x_T + sum_n (b_n dB_n + c_n H_n)`` and its variance is
    ``A^2 Var x_T + sum_n (b_n^2 + c_n^2 / 12) dnu_n``, of the gradients of one sample. x_T has the exact marginal.
    """
    frame, grid, _ = course
    x_T = torch.zeros(1, dtype=torch.float64, device="cpu", requires_grad=True)
    schedule = frame.schedule
    first, last = (schedule.alpha(t) ** 2 * SPREAD**2 + schedule.sigma(t) ** 2 for t in (grid[0], grid[-1]))
    if frame.eta == 0:
        (A,) = torch.autograd.grad(run(course, GAUSSIAN, x_T, None).sum(), x_T)
        return Spread(abs(float(A)) * math.sqrt(float(first)), math.sqrt(float(last)))
    dB, H = (torch.zeros(len(grid) - 1, 1, dtype=torch.float64, device="cpu", requires_grad=True) for _ in range(2))
    out = run(course, GAUSSIAN, x_T, FixedNoise(dB, H)).sum()
    A, b, c = torch.autograd.grad(out, (x_T, dB, H), allow_unused=True, materialize_grads=True)
    dnu = frame.noise_clock(grid).diff()
    noise = (b[:, 0] ** 2 + c[:, 0] ** 2 / 12)[dnu.isfinite()] @ dnu[dnu.isfinite()]
    return Spread(math.sqrt(float(A[0] ** 2 * first + noise)), math.sqrt(float(last)))
