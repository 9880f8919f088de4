"""The derivations of theory/ in numbers: clocks (O4, D3, B1, B2), gradients of the noise (N1 to N3), the end (F5).

Slopes are tested from one side, or from both where a statement says that no more is possible. Margins of 0.15 are twice
what 2000 paths leave open in a slope over three halvings (bootstrap), and cover terms of the next order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.noise.refinable import Piece, combine
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES

PATHS = 2000
ORDER = {(g.subject, g.quantity): g.order for g in GUARANTEES}
ONE_STEP = [solver for solver in SOLVERS if isinstance(solver, RungeKutta)]
LEVY = [solver for solver in ONE_STEP if solver.claims.levy != "none"]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drift(s: float, y: Tensor) -> Tensor:
    return torch.tanh(y) * math.cos(s) + 0.3 * torch.sin(2 * y)


def solve(
    solver: sa.Solver, F: Callable[[float, Tensor], Tensor], s: Sequence[float], y: Tensor, noise: Noise
) -> Tensor:
    state = solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(s)):
        y, state = solver.step(F, sa.Interval(s0, s1, noise[0][n], noise[1][n]), y, state)
    return y


Noise = tuple[Tensor, Tensor]  # increments and Levy areas, (N, paths)


def slopes(errors: Sequence[Tensor]) -> list[float]:
    """Of root mean squares, over grids that halve."""
    rms = [float(error.square().mean().sqrt()) for error in errors]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(rms)]


# ---------------------------------------------------------------- clocks: O4, D3, B1, B2


@dataclass(frozen=True)
class Clock:
    """A range of s and Brownian motion on a function of it; ``k`` is the root of d(nu)/d(tau) where that is another."""

    ends: tuple[float, float]
    tau: Callable[[Tensor], Tensor]


CLOCKS = {
    "data, eta = 0.5": Clock((0.5, 2.0), lambda s: s ** (2 / 3)),
    "data, eta = 2": Clock((0.5, 2.0), lambda s: s ** (4 / 3)),
    "noise, eta = 1": Clock((2.0, 0.5), lambda s: -(s**2) / 4),
}


@cache
def levels(name: str) -> list[tuple[Tensor, Tensor, Noise]]:
    """Nested geometric grids, coarse to fine: s, tau, and one set of paths on tau."""
    clock, steps = CLOCKS.get(name, SIGMA), 512
    s = torch.from_numpy(np.geomspace(*clock.ends, steps + 1))
    h = clock.tau(s).diff()[:, None]
    noise = randn(steps, PATHS, seed=1) * h.sqrt(), randn(steps, PATHS, seed=2) * (h / 12).sqrt()
    found = [(s, clock.tau(s), noise)]
    while len(s) > 17:
        h, (W, H) = clock.tau(s).diff()[:, None], noise
        left, right = (Piece(h[k::2], W[k::2], H[k::2]) for k in (0, 1))  # type: ignore[arg-type]
        s, noise = s[::2], combine(left, right)[1:]
        found.append((s, clock.tau(s), noise))
    return found[::-1]


def errors_of_state_and_gradient(
    solver: sa.Solver, name: str, driven: Callable[[Tensor, Noise], Noise], reference: Callable[[Tensor, Noise], Noise]
) -> tuple[list[Tensor], list[Tensor]]:
    """Against ShARK on the finest grid, 4 times finer than the last level."""

    def both(solver: sa.Solver, level: int, driven: Callable[[Tensor, Noise], Noise]) -> Tensor:
        s, tau, noise = levels(name)[level]
        y = randn(PATHS, seed=3).requires_grad_()
        out = solve(solver, drift, s.tolist(), y, driven(tau, noise))
        return torch.stack([out.detach(), torch.autograd.grad(out.sum(), y)[0]])

    exact = both(sa.ShARK(), -1, reference)
    state, gradient = zip(*(both(solver, level, driven) - exact for level in range(len(levels(name)) - 2)), strict=True)
    return list(state), list(gradient)


def own(tau: Tensor, noise: Noise) -> Noise:
    return noise


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("solver", LEVY, ids=repr)
def test_three_halves_on_every_noise_clock(solver: sa.Solver, name: str) -> None:
    state, gradient = errors_of_state_and_gradient(solver, name, own, own)
    # Over three halvings.
    assert sum(slopes(state)) / 3 > ORDER[repr(solver), "strong"] - 0.15
    assert sum(slopes(gradient)) / 3 > ORDER[repr(solver), "gradient"] - 0.15


# The data kind with eta = 1, driven by a path on sigma/alpha: nu = s, tau = -s^(-1/2), k^2 = d(nu)/d(tau).
SIGMA = Clock((0.25, 2.0), lambda s: -(s**-0.5))


def standardised(tau: Tensor, noise: Noise) -> Noise:
    factor = ((tau**-2).diff() / tau.diff()).sqrt()[:, None]
    return factor * noise[0], factor * noise[1]


def corrected(tau: Tensor, noise: Noise) -> Noise:
    dB, H = standardised(tau, noise)
    middle, h = (tau[1:] + tau[:-1]) / 2, tau.diff()
    slope = 1.5 * math.sqrt(2) * (-middle) ** -2.5  # of k = sqrt(2) (-tau)^(-3/2)
    return dB - (slope * h)[:, None] * noise[1], H


@pytest.mark.parametrize("solver", [sa.Euler(), *LEVY], ids=repr)
def test_noise_standardised_on_another_clock_caps_the_strong_order_at_one(solver: sa.Solver) -> None:
    state, gradient = errors_of_state_and_gradient(solver, "sigma", standardised, corrected)
    assert all(0.85 < slope < 1.15 for slope in slopes(state))
    assert sum(slopes(gradient)) / 3 > 0.85


def test_the_cap_has_the_stated_size() -> None:
    for _, tau, noise in levels("sigma")[2:]:
        error = (corrected(tau, noise)[0] - standardised(tau, noise)[0]).sum(0)
        h, k = tau.diff(), math.sqrt(2) * (-(tau[1:] + tau[:-1]) / 2) ** -1.5
        predicted = float((1 / 12 * (1.5 * k * 2 / -(tau[1:] + tau[:-1])) ** 2 * h**3).sum())
        bound = float((1.5 * k * 2 / -(tau[1:] + tau[:-1])).abs().pow(2 / 3) @ h) ** 3 / 12 / len(h) ** 2
        # The variance of PATHS normals is known to sqrt(2 / PATHS), here 3.2 %: five of these.
        assert float(error.square().mean()) == pytest.approx(predicted, rel=5 * math.sqrt(2 / PATHS))
        assert predicted >= bound * (1 - 1e-12)


@pytest.mark.parametrize("solver", LEVY, ids=repr)
def test_the_levy_area_of_the_other_clock_lifts_the_cap(solver: sa.Solver) -> None:
    state, gradient = errors_of_state_and_gradient(solver, "sigma", corrected, corrected)
    assert sum(slopes(state)) / 3 > 1.35
    assert sum(slopes(gradient)) / 3 > 1.35


# ---------------------------------------------------------------- noise gradients: N1, N2, N3


def noise_gradients(solver: sa.Solver, s: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states, their adjoints for L = sum sin(y_N), and the gradients in dB and H: (N + 1 or N, paths)."""
    noise = noise[0].clone().requires_grad_(), noise[1].clone().requires_grad_()
    states, state = [randn(PATHS, seed=3).requires_grad_()], solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(s.tolist())):
        y, state = solver.step(drift, sa.Interval(s0, s1, noise[0][n], noise[1][n]), states[-1], state)
        states.append(y)
    *a, by_dB, by_H = torch.autograd.grad(states[-1].sin().sum(), (*states, *noise), allow_unused=True)
    return torch.stack(states).detach(), torch.stack(a), by_dB, torch.zeros_like(by_dB) if by_H is None else by_H


def slope_of_drift(s: Tensor, y: Tensor) -> Tensor:
    return torch.cos(s)[:, None] / torch.cosh(y) ** 2 + 0.6 * torch.cos(2 * y)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.AdamsBashforth(3), sa.DPMSolverPP2M()], ids=repr)
def test_the_noise_gradient_is_the_adjoint_after_the_step(solver: sa.Solver) -> None:
    s, _, noise = levels("noise, eta = 1")[0]
    _, a, by_dB, by_H = noise_gradients(solver, s, noise)
    torch.testing.assert_close(by_dB, a[1:], rtol=0, atol=0)
    assert not by_H.any()


@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
def test_the_noise_gradient_of_a_runge_kutta_step(solver: RungeKutta) -> None:
    tableau, errors = solver.tableau, []
    seen = [
        sum(b * x for b, x in zip(tableau.b, row or (0.0,) * 9, strict=False)) for row in (tableau.noise, tableau.levy)
    ]
    for s, _, noise in levels("noise, eta = 1")[:4]:
        y, a, by_dB, by_H = noise_gradients(solver, s, noise)
        turned = s.diff()[:, None] * slope_of_drift(s[:-1], y[:-1]) * a[1:]
        errors.append(torch.cat([by_dB - a[1:] - seen[0] * turned, by_H - seen[1] * turned]))
    if float(errors[0].abs().max()) > 0:  # Euler's are exact
        assert slopes(errors)[-1] > 1.5 - 0.1


@cache
def fine_adjoint(name: str) -> tuple[Tensor, Tensor]:
    """The finest grid's lengths on the noise clock, and the adjoint's means over its steps."""
    s, nu, noise = levels(name)[-1]
    _, a, *_ = noise_gradients(sa.ShARK(), s, noise)
    return nu.diff()[:, None], (a[1:] + a[:-1]) / 2


@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
def test_noise_gradients_converge_to_the_average_of_the_adjoint(solver: RungeKutta) -> None:
    name, errors = "noise, eta = 1", []
    weights, means = fine_adjoint(name)
    for s, _, noise in levels(name)[:4]:
        parts = (len(s) - 1, -1, 1)
        average = (weights * means).reshape(len(s) - 1, -1, PATHS).sum(1) / weights.reshape(parts).sum(1)
        errors.append(noise_gradients(solver, s, noise)[2] - average)
    order = 1.5 if solver in LEVY else 1.0
    assert sum(slopes(errors)) / 3 > order - 0.15


# ---------------------------------------------------------------- singular ends: F5


@pytest.mark.parametrize("t", [0.01, 0.1, 0.3])
def test_the_projection_errs_by_no_more_than_stated(t: float) -> None:
    schedule, data = sa.RectifiedFlow(), sa.problems.Mixture([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3])
    x_0, r = data.sample(PATHS, 1), float(schedule.sigma(t) / schedule.alpha(t))
    x_t = schedule.alpha(t) * x_0 + schedule.sigma(t) * randn(PATHS, seed=2)
    projected = data.posterior_mean(x_t, t, schedule)
    # eta = 1 is the time reversal, so (x_0, x_t) is its law; eta = 0 is the ODE map.
    for eta, end in ((1, x_0), (0, data.ode_map(x_t, schedule, t_max=t, t_min=0.0))):
        assert float((projected - end).square().mean().sqrt()) <= (2 + eta + math.sqrt(eta)) * r
