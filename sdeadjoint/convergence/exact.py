"""Equations with exact solutions: drifts, and what is known of their paths in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..diffusion.frames import Frame
from ..diffusion.schedules import Schedule
from ..noise import Noise
from ..problems import Gaussian, Mixture
from .dynamics import Driven

NODES = 16  # of the Gauss-Legendre rule on each step; for steps of length 2 and rates of 3 its error is below 1e-24

Exact = Callable[[Tensor, Tensor, Noise | None], Tensor]
"""``exact(start, grid, noise)``: the solution at the end of the grid, differentiable like ``solve``."""


@dataclass(frozen=True)
class Pathwise:
    """The exact solution for Gaussian data, see ``Gaussian.pathwise``."""

    problem: Gaussian
    frame: Frame

    def __call__(self, x_T: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        return self.problem.pathwise(x_T, self.frame, grid, noise)


@dataclass(frozen=True)
class Transport:
    """The exact probability-flow ODE of scalar data: quantile transport, see ``Mixture.ode_map``."""

    problem: Mixture
    schedule: Schedule

    def __call__(self, x_T: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        return self.problem.ode_map(x_T, self.schedule, float(grid[0]), float(grid[-1]))


# ---------------------------------------------------------------- linear equations


@dataclass(frozen=True)
class Linear:
    """The drift ``F(s, y) = matrix y + cos(frequency s) push`` for y of shape (paths, d)."""

    matrix: tuple[tuple[float, ...], ...]
    push: tuple[float, ...]
    frequency: float = 0.0

    def __call__(self, s: Tensor, y: Tensor) -> Tensor:
        return y @ self.rates.to(y).T + torch.cos(self.frequency * s).to(y) * self.forcing.to(y)

    @property
    def rates(self) -> Tensor:
        return torch.tensor(self.matrix, dtype=torch.float64, device="cpu")

    @property
    def forcing(self) -> Tensor:
        return torch.tensor(self.push, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class LinearSolution:
    """The solution of a ``Driven`` with a ``Linear`` drift and a constant diffusion, by variation of constants.

    With ``P(s) = exp((s_N - s) matrix)`` it is ``P(s_0) y_0 + int P cos(frequency s) push ds + int P dB``. The last
    integral is not a function of the increments W and the space-time Levy areas H of the steps. As in
    ``Gaussian.pathwise``, what is returned is its conditional expectation given these: over a step of length h and
    midpoint c of the noise clock ``(1/h) int P dnu W - (12/h^2) int P (nu - c) dnu H``. What is left has an rms of
    ``O(h^2)``, half an order beyond the strong order 1.5 that it serves to measure.

    Cost: 16 matrix exponentials a step.
    """

    equation: Driven

    def __call__(self, start: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        drift, nu = self.equation.drift, self.equation.noise_clock(grid)
        assert isinstance(drift, Linear)
        steps, points, weights = grid.diff()[:, None], *_gauss_legendre()
        s = grid[:-1, None] + steps * (1 + points) / 2
        flow = torch.linalg.matrix_exp((grid[-1] - s)[..., None, None] * drift.rates)
        forced = (flow @ drift.forcing) * (torch.cos(drift.frequency * s) * steps * weights / 2)[..., None]
        whole = torch.linalg.matrix_exp((grid[-1] - grid[0]) * drift.rates).to(start)
        y = start @ whole.T + forced.sum((0, 1)).to(start)
        if noise is None or nu is None:
            return y
        bound = noise.bind(nu, start, True)
        mean = torch.einsum("k,nkij->nij", weights / 2, flow).to(start)
        slope = torch.einsum("k,nkij->nij", 3 * weights * points, flow).to(start)
        for n in range(len(steps)):
            dB, H = bound.increment(n)
            y = y + dB @ mean[n].T - (0.0 if H is None else H @ slope[n].T)
        return y


def _gauss_legendre() -> Iterator[Tensor]:
    """Points and weights on [-1, 1]."""
    return map(torch.from_numpy, np.polynomial.legendre.leggauss(NODES))


# ---------------------------------------------------------------- the double well


def downhill(s: Tensor, y: Tensor) -> Tensor:
    """``y - y^3``: down the slope of ``(1 - y^2)^2 / 4``, whose minima are at 1 and -1."""
    return y - y**3


@dataclass(frozen=True)
class DoubleWellFlow:
    """The solution of ``dy = (y - y^3) ds``: ``y_0 e^T / sqrt(1 + y_0^2 (e^(2T) - 1))`` after the time T."""

    def __call__(self, start: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        T = float(grid[-1] - grid[0])
        return start * math.exp(T) / (1 + start**2 * math.expm1(2 * T)).sqrt()
