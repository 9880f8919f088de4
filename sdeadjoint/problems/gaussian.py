"""Gaussian data: every quantity of its diffusion has a closed form, including the path itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sdeadjoint.diffusion.schedules import Schedule
from sdeadjoint.noise import Noise
from sdeadjoint.problems.base import Cond, Numbers, Problem, call, constant, generator, no_cond, positive
from sdeadjoint.problems.rewards import Reward, coefficients, tilt

NODES = 100  # Gauss-Legendre nodes per step: see Gaussian.pathwise


class Coordinates(Protocol):
    """What the pathwise solution reads of a ``Frame``."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def eta(self) -> float: ...
    def weight(self, t: Tensor) -> Tensor: ...
    def noise_clock(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Gaussian(Problem):
    """``x_0 ~ N(mean, diag(variance))``, so ``x_t ~ N(alpha mean, P)`` with ``P = alpha^2 variance + sigma^2``.

    Args:
        mean: a number, or a tensor of the event's shape.
        variance: a positive number, or a tensor that broadcasts to the event's shape.

    The event's shape is what ``mean`` and ``variance`` broadcast to; where events of ``x`` have more
    dimensions (two numbers fit any event) the components are independent and alike. Everything is linear in
    ``x``, which hides errors of adjoints: the gradient of a solver's result does not depend on the state. Use
    ``Mixture`` for those.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Numbers, variance: Numbers) -> None:
        object.__setattr__(self, "mean", constant(mean, "mean"))
        object.__setattr__(self, "variance", positive(variance, "variance"))
        try:
            _ = self.event_shape
        except RuntimeError:
            shapes = [tuple(value.shape) for value in self._constants]
            raise ValueError(f"mean, variance: shapes {shapes[0]} and {shapes[1]} do not broadcast") from None

    @property
    def event_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(value.shape for value in self._constants))

    def sample(self, n: int, seed: int, cond: Cond = None) -> Tensor:
        no_cond(cond)
        m, v = self._constants
        draws = torch.randn(n, *self.event_shape, generator=generator(n, seed), dtype=torch.float64, device="cpu")
        return m + v.sqrt() * draws

    def tilted(self, reward: Reward, cond: Cond = None) -> Gaussian:
        """See ``Problem``: ``N((m + k v) / d, v / d)`` with ``d = 1 - h v``, of slope k and curvature h."""
        no_cond(cond)
        m, v = self._constants
        slope, curvature = coefficients(reward, self.event_shape)
        mean, variance, _ = tilt(m, v, slope, curvature)
        return Gaussian(mean, variance)

    def ode_map(
        self, x_T: Tensor, schedule: Schedule, t_max: float | None = None, t_min: float | None = None
    ) -> Tensor:
        """The probability-flow ODE from ``t_max`` to ``t_min``: ``alpha_0 m + sqrt(P_0 / P_T) (x_T - alpha_T m)``.

        Because ``d log(x - alpha m) / dlambda = dlog alpha / dlambda - sigma^2 / P = d log sqrt(P) /
        dlambda``. The times default to the schedule's own; alpha = 0 and sigma = 0 are allowed.
        """
        x, alpha, _ = self._door(x_T, schedule.t_max if t_max is None else t_max, schedule)
        alpha0 = schedule.alpha(schedule.t_min if t_min is None else t_min).to(x.device)
        m, _ = self._on(x.device)
        ratio = self.ode_gradient(x, schedule, t_max, t_min)
        return (alpha0 * m + ratio * (x - alpha * m)).to(x_T.dtype)

    def ode_gradient(
        self, x_T: Tensor, schedule: Schedule, t_max: float | None = None, t_min: float | None = None
    ) -> Tensor:
        """``ode_map``'s Jacobian is diagonal: its entries ``sqrt(P_0 / P_T)``, of the shape and dtype of ``x_T``."""
        x, alpha, sigma = self._door(x_T, schedule.t_max if t_max is None else t_max, schedule)
        _, alpha0, sigma0 = self._door(x_T, schedule.t_min if t_min is None else t_min, schedule)
        _, v = self._on(x.device)
        ratio = (_variance(alpha0, sigma0, v) / _variance(alpha, sigma, v)).sqrt()
        return ratio.expand_as(x).to(x_T.dtype)

    def pathwise(self, x_T: Tensor, frame: Coordinates, grid: Tensor, noise: Noise | None = None) -> Tensor:
        r"""The reverse SDE's own solution at the end of ``grid``, on the Brownian path that ``noise`` replays there.

        In lambda, with ``z = x - alpha m``, ``u = e^(2 lambda)`` and ``P = sigma^2 (1 + u v)``, the reverse
        equation is ``dz = [dlog alpha - (1 + eta) sigma^2 / P dlambda] z + w dB_nu`` with ``w =
        frame.weight``. The bracket is ``d log Phi``, ``Phi = sqrt(P) ((1 + u v) / u)^(eta/2) = sigma e^(-eta
        lambda) (1 + u v)^((1 + eta)/2)``, so, counting the grid's nodes from x_T at 0 to N,

            x_N = alpha_N m + Phi_N / Phi_0 (x_T - alpha_0 m) + Phi_N int f dB_nu,     f = w / Phi.

        (Data kind, eta = 1: ``f = 1 / (1 + u v)`` on the clock ``nu = u``.) The integral is not a function of
        the increments W and space-time Levy areas H of the steps. What is returned is its conditional
        expectation given these, the best that any solver fed with them can do. Over a step of length h and
        midpoint c, W = int dB and ``H = -int (nu - c) / h dB`` are independent with variances h and h/12, so
        by regression

            E[int f dB | W, H] = (1/h) int f dnu W - (12 / h^2) int f (nu - c) dnu H.

        What is left is ``int (f - its L2 projection on the linear functions) dB``, of variance ``h^5 f''^2 /
        720`` to leading order (the quadratic ``f'' (nu - c)^2 / 2`` minus its mean), independent from step to
        step. The rms error of x_N is therefore ``Phi_N sqrt(sum_n h_n^5 f''_n^2 / 720)``: O(h^2), half an
        order beyond the strong order 1.5 that it serves to measure.

        Args:
            x_T: state at ``grid[0]``, (batch, *event).
            frame: a ``Frame`` of any kind and eta.
            grid: float64 (steps + 1,), decreasing, with finite lambda (neither alpha = 0 nor sigma = 0).
            noise: anything that supplies Levy areas, such as ``BrownianPath``; differentiable if it is. Not
                needed for eta = 0, where this is ``ode_map``.

        The two integrals are Gauss-Legendre sums in lambda (``dnu/dlambda = 2 eta sigma^2 / w^2``), whose
        integrand is analytic up to distance pi/2 from the real axis: 100 nodes leave 1e-12 for steps
        of up to 20 in lambda. Cost: 100 evaluations of f per step, each of the shape of ``variance``.
        """
        schedule, eta = frame.schedule, frame.eta
        if eta == 0:
            return self.ode_map(x_T, schedule, float(grid[0]), float(grid[-1]))
        if noise is None:
            raise ValueError(f"noise: got None, but eta = {eta} > 0 injects noise; pass noise=BrownianPath(seed=0)")
        grid = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
        if not torch.isfinite(schedule.lam(grid)).all():
            raise ValueError("grid: alpha = 0 or sigma = 0 on it; the pathwise solution needs a grid between the two")
        x, alpha, _ = self._door(x_T, float(grid[0]), schedule)
        m, v = self._on(x.device)
        bound = noise.bind(frame.noise_clock(grid), x_T, levy=True)
        z = (_log_phi(frame, v, grid[-1]) - _log_phi(frame, v, grid[0])).exp() * (x - alpha * m)
        for n, (mean, slope) in enumerate(_regression(frame, grid, v)):
            dB, H = bound.increment(n)
            z = z + mean * dB.to(z) - slope * (0.0 if H is None else H.to(z))
        return (schedule.alpha(grid[-1]).to(x.device) * m + z).to(x_T.dtype)

    @property
    def _constants(self) -> tuple[Tensor, ...]:
        return self.mean, self.variance

    def _fits(self, shape: torch.Size) -> bool:
        try:
            return torch.broadcast_shapes(self.event_shape, shape) == shape
        except RuntimeError:
            return False

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        no_cond(cond)
        m, v = self._on(x.device)
        P = _variance(alpha, sigma, v)
        return sigma**2 / P * m + alpha * v / P * x

    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        no_cond(cond)
        m, v = self._on(x.device)
        return -(x - alpha * m) / _variance(alpha, sigma, v)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        no_cond(cond)
        m, v = self._on(x.device)
        P = _variance(alpha, sigma, v)
        return -((x - alpha * m) ** 2 / P + (2 * math.pi * P).log()).reshape(x.shape[0], -1).sum(1) / 2

    def __repr__(self) -> str:
        return call("Gaussian", *self._constants)


def _variance(alpha: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
    return alpha**2 * v + sigma**2


def _log_phi(frame: Coordinates, v: Tensor, t: Tensor) -> Tensor:
    """The logarithm of the fundamental solution at times (k,) or 0-d: (k, *v.shape) or of v's shape."""
    shape = (*t.shape, *[1] * v.ndim)
    lam, log_sigma = (f(t).to(v.device).reshape(shape) for f in (frame.schedule.lam, frame.schedule.log_sigma))
    return log_sigma - frame.eta * lam + (1 + frame.eta) / 2 * (v * (2 * lam).exp()).log1p()


def _regression(frame: Coordinates, grid: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step, the coefficients of W and -H in ``E[Phi_N int f dB | W, H]``, of the shape of ``v``."""
    points, weights = _gauss_legendre()
    lam, clock = frame.schedule.lam(grid), frame.noise_clock(grid)
    half = lam.diff()[:, None] / 2
    times = frame.schedule.time(lam[:-1, None] + half * (1 + points))
    w, nu = frame.weight(times), frame.noise_clock(times)
    dnu = weights * half * 2 * frame.eta * (frame.schedule.sigma(times) / w) ** 2
    h, offset = clock.diff(), nu - (clock[:-1, None] + clock[1:, None]) / 2
    end = _log_phi(frame, v, grid[-1])
    for n in range(len(times)):
        ratio = (end - _log_phi(frame, v, times[n])).exp()
        moments = torch.stack([w[n] * dnu[n] / h[n], 12 * w[n] * dnu[n] * offset[n] / h[n] ** 2]).to(v.device)
        mean, slope = torch.tensordot(moments, ratio, dims=1)
        yield mean, slope


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        points, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(NODES))
    return points, weights
