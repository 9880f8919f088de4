"""Ends where alpha = 0 or sigma = 0: F2 and F5 of theory/ in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

from .driven import PATHS, coarser, paths, randn, rms, slope
from .predicted import predictor

MARGIN = 0.15  # see test_derivations.py

FLOW, DATA = sa.RectifiedFlow(), sa.problems.Mixture([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3])
PREDICTION = sa.Denoiser(predictor(FLOW, [0.4, 0.6], [[-1.0], [1.0]], [0.5, 0.3]), FLOW, "sample")


@dataclass(frozen=True)
class Ending:
    """Data, their noisy versions at t, and what is predicted there."""

    t: float
    samples: int = PATHS

    @property
    def r(self) -> float:
        return float(FLOW.sigma(self.t) / FLOW.alpha(self.t))

    @property
    def x_0(self) -> Tensor:
        return DATA.sample(self.samples, 1)

    @property
    def x_t(self) -> Tensor:
        return float(FLOW.alpha(self.t)) * self.x_0 + float(FLOW.sigma(self.t)) * randn(self.samples, seed=2)

    def projected(self, kind: str = "data", eta: float = 0.0) -> Tensor:
        """By the sampler's own last step."""
        noise = sa.BrownianPath(0) if eta else None
        return sa.sample(
            DATA.denoiser(FLOW), self.x_t, frame=sa.Frame(FLOW, eta, kind), grid=[self.t, 0.0], solver=sa.Heun(),
            noise=noise,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
def test_an_euler_step_to_sigma_zero_in_each_kind(kind: str, eta: float) -> None:
    """F2: what it tends to; only without noise, or in the data kind, it is the projection."""
    ending, last = Ending(0.3), 1e-9
    frame, grid, normal = sa.Frame(FLOW, eta, kind), torch.tensor([0.3, last]).double(), randn(PATHS, seed=4)
    dnu = float(frame.noise_clock(grid).diff())
    noise = sa.FixedNoise((math.sqrt(dnu) * normal)[None]) if eta else None
    got = sa.sample(
        DATA.denoiser(FLOW), ending.x_t, frame=frame, grid=grid, solver=sa.Euler(), noise=noise
    )  # fmt: skip
    r, xhat = ending.r, DATA.posterior_mean(ending.x_t, 0.3, FLOW)
    eps = (ending.x_t / float(FLOW.alpha(0.3)) - xhat) / r
    share, fresh = {
        "data": (0.0, 0.0),
        "noise": (eta * r, math.sqrt(eta) * r),
        "flow": (1 - (1 + r) ** -eta, math.sqrt(dnu)),
    }[kind]
    # What is left of the noise at t = 1e-9 is 1e-9 times numbers below 100; clocks differ by 1e9 and keep 7 digits.
    torch.testing.assert_close(got, xhat - share * eps + fresh * normal, rtol=0, atol=1e-6)
    torch.testing.assert_close(ending.projected(kind, eta), xhat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_the_projection_errs_by_what_is_stated(t: float) -> None:
    """F5, 2, eta = 1: ``E tr Cov(x_0 | x_t)``, less than ``r^2``, which is what the state itself is off by."""
    ending = Ending(t, samples=20_000)
    r, y = ending.r, ending.x_t / float(FLOW.alpha(t))
    weights, means, variances = (torch.tensor(v).double() for v in ([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3]))
    total = variances + r**2
    shares = torch.softmax(weights.log() - total.log() / 2 - (y[:, None] - means) ** 2 / (2 * total), 1)
    parts = means + variances / total * (y[:, None] - means)
    within = (shares * (variances * r**2 / total + parts**2)).sum(1) - (shares * parts).sum(1) ** 2
    for kind in ("data", "flow"):
        surplus = (ending.projected(kind, 1.0) - ending.x_0).square() - within
        assert abs(float(surplus.mean())) < 5 * float(surplus.std()) / math.sqrt(len(surplus))
    unprojected = (y - ending.x_0).square() - within
    assert float(unprojected.mean()) > 10 * float(unprojected.std()) / math.sqrt(len(unprojected))
    assert float(within.mean()) < r**2


def score(x: Tensor) -> Tensor:
    """The derivative of the logarithm of the data's density."""
    weights, means, variances = (torch.tensor(v).double() for v in ([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3]))
    shares = torch.softmax(weights.log() - variances.log() / 2 - (x[:, None] - means) ** 2 / (2 * variances), 1)
    return (shares * (means - x[:, None]) / variances).sum(1)


def test_the_projection_of_the_ode_is_of_second_order() -> None:
    """F5, 2, eta = 0: ``xhat - x_0`` is half of ``r^2`` times the score, up to ``O(r^4)``, and not minus that."""
    errors, misses = [], []
    for t in (0.2, 0.1, 0.05):
        ending = Ending(t)
        end = DATA.ode_map(ending.x_t, FLOW, t_max=t, t_min=0.0)
        errors.append((ending.projected("flow") - end) / ending.r**2)
        misses.append(rms(errors[-1] - score(end) / 2))
        information = float(score(ending.x_0).square().mean())
        assert rms(errors[-1]) < 1.5 * math.sqrt(information)
    # Divided by r^2: misses of size r^2, where r halves, but for (1 - t).
    assert misses[0] / misses[1] > 4
    assert misses[1] / misses[2] > 4
    assert misses[2] < 0.02 * rms(errors[-1])


@pytest.mark.parametrize(("kind", "eta"), [("flow", 0.5), ("noise", 2.0), ("data", 0.5)])
def test_what_the_projection_leaves_with_noise(kind: str, eta: float) -> None:
    """F5, 2, any eta: between ``sqrt(eta) r`` and the bound for data with a density."""
    t, last = 0.05, 1e-5
    ending, frame = Ending(t), sa.Frame(FLOW, eta, kind)
    grid = torch.from_numpy(np.geomspace(t, last, 65))
    end = sa.sample(
        DATA.denoiser(FLOW), ending.x_t, frame=frame, grid=grid, solver=sa.Heun(), noise=sa.BrownianPath(7)
    )  # fmt: skip
    found, r = rms(end - ending.projected(kind, eta)), ending.r
    information = float(score(ending.x_0).square().mean())
    sampling = 5 / math.sqrt(2 * PATHS)  # relative, of a root mean square of normals
    assert found < (math.sqrt(eta) * r + (3 + eta) / 2 * r**2 * math.sqrt(information)) * (1 + sampling)
    assert found > math.sqrt(eta) * r * (1 - sampling) - (3 + eta) / 2 * r**2 * math.sqrt(information)


@cache
def transported() -> tuple[Tensor, Tensor]:
    x_T = randn(200, seed=0)
    return x_T, DATA.ode_map(x_T, FLOW, t_max=1.0, t_min=0.3)


@pytest.mark.parametrize("kind", ["data", "flow"])
@pytest.mark.parametrize(
    "solver", [sa.Euler(), sa.Heun(), sa.RK4(), sa.AdamsBashforth(2, "clock"), sa.ReversibleHeun()], ids=repr
)
def test_orders_hold_from_alpha_zero(solver: sa.Solver, kind: str) -> None:
    """F5, 1, without noise: a rectified flow from t = 1, against quantile transport."""
    x_T, exact = transported()
    errors = []
    for steps in (16, 32, 64):
        grid = sa.uniform_time(FLOW, steps, t_max=1.0, t_min=0.3)
        errors.append(sa.sample(PREDICTION, x_T, frame=sa.Frame(FLOW, 0.0, kind), grid=grid, solver=solver) - exact)
    assert slope(errors) > solver.claims.ode - MARGIN


@pytest.mark.parametrize("solver", [sa.Heun(), sa.SRA1(), sa.ShARK()], ids=repr)
def test_strong_orders_hold_from_alpha_zero(solver: sa.Solver) -> None:
    """F5, 1: the data kind with eta = 1, where x_T does not enter the solution."""
    reference = from_alpha_zero(sa.ShARK(), 256)
    errors = [from_alpha_zero(solver, steps) - reference for steps in (16, 32, 64)]
    assert slope(errors) > solver.claims.strong - MARGIN


@cache
def from_alpha_zero(solver: sa.Solver, steps: int) -> Tensor:
    frame, grid = sa.Frame(FLOW, 1.0, "data"), sa.uniform_time(FLOW, 256, t_max=1.0, t_min=0.4)
    noise = paths(frame.noise_clock(grid).diff())
    while len(grid) - 1 > steps:
        noise = coarser(frame.noise_clock(grid).diff(), noise)
        grid = grid[::2]
    return sa.sample(
        PREDICTION, randn(PATHS, seed=3), frame=frame, grid=grid, solver=solver, noise=sa.FixedNoise(*noise)
    )  # fmt: skip
