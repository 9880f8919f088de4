"""The derivations of theory/ in numbers: clocks (O4, D3, B1, B2) and gradients of the noise (N1 to N3, C7).

Slopes are tested from one side, or from both where a statement says that no more is possible. 2000 paths leave 0.09
open in a slope over two halvings, and less in most (bootstrap); margins of 0.15 cover terms of the next order too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from statistics import mean

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES

from .driven import CLOCKS, PATHS, Noise, drift, levels, randn, slope, slope_of_drift, slopes, solve
from .measured_paths import FRAMES, averages, noise_gradients, of_gradients, of_means_and_falls

MARGIN = 0.15
ORDER = {(g.subject, g.quantity): g.order for g in GUARANTEES}
ONE_STEP = [solver for solver in SOLVERS if isinstance(solver, RungeKutta)]
LEVY = [solver for solver in ONE_STEP if solver.claims.levy != "none"]


# ---------------------------------------------------------------- clocks: O4, D3, B1, B2


def errors_of_state_and_gradient(
    solver: sa.Solver, name: str, driven: Callable[[Tensor, Noise], Noise], reference: Callable[[Tensor, Noise], Noise]
) -> tuple[list[Tensor], list[Tensor]]:
    """On 16 to 64 steps, against ShARK on the finest grid of 512."""
    exact, coarser = fine_state_and_gradient(name, reference), range(3)
    found = (state_and_gradient(solver, name, level, driven) - exact for level in coarser)
    state, gradient = zip(*found, strict=True)
    return list(state), list(gradient)


def state_and_gradient(solver: sa.Solver, name: str, level: int, driven: Callable[[Tensor, Noise], Noise]) -> Tensor:
    s, tau, noise = levels(name)[level]
    y = randn(PATHS, seed=3).requires_grad_()
    out = solve(solver, drift, s.tolist(), y, driven(tau, noise))
    return torch.stack([out.detach(), torch.autograd.grad(out.sum(), y)[0]])


@cache
def fine_state_and_gradient(name: str, driven: Callable[[Tensor, Noise], Noise]) -> Tensor:
    return state_and_gradient(sa.ShARK(), name, -1, driven)


def own(tau: Tensor, noise: Noise) -> Noise:
    return noise


@pytest.mark.parametrize("name", [name for name in CLOCKS if "eta" in name])
@pytest.mark.parametrize("solver", LEVY, ids=repr)
def test_three_halves_on_every_noise_clock(solver: sa.Solver, name: str) -> None:
    state, gradient = errors_of_state_and_gradient(solver, name, own, own)
    assert slope(state) > ORDER[repr(solver), "strong"] - MARGIN
    assert slope(gradient) > ORDER[repr(solver), "gradient"] - MARGIN


@pytest.mark.parametrize(
    ("solver", "name"),
    [(solver, "flow, eta = 0.5") for solver in SOLVERS] + [(solver, "noise, eta = 0.5") for solver in LEVY],
    ids=str,
)
def test_gradients_of_everything_converge_on_every_noise_clock(solver: sa.Solver, name: str) -> None:
    """D3: in x_T, conditioning and weights, for every solver, where the two clocks differ."""
    found = of_gradients(solver, name, grids=3)
    assert all(slope(errors) > ORDER[repr(solver), "gradient"] - MARGIN for errors in found)


# The data kind with eta = 1, driven by a path on sigma/alpha: nu = s, tau = -s^(-1/2), k^2 = d(nu)/d(tau).


def standardised(tau: Tensor, noise: Noise) -> Noise:
    factor = ((tau**-2).diff() / tau.diff()).sqrt()[:, None]
    return factor * noise[0], factor * noise[1]


def corrected(tau: Tensor, noise: Noise) -> Noise:
    dB, H = standardised(tau, noise)
    middle, h = (tau[1:] + tau[:-1]) / 2, tau.diff()
    steepness = 1.5 * math.sqrt(2) * (-middle) ** -2.5  # of k = sqrt(2) (-tau)^(-3/2)
    return dB - (steepness * h)[:, None] * noise[1], H


@pytest.mark.parametrize("solver", [sa.Euler(), *LEVY], ids=repr)
def test_noise_standardised_on_another_clock_caps_the_strong_order_at_one(solver: sa.Solver) -> None:
    state, gradient = errors_of_state_and_gradient(solver, "sigma", standardised, corrected)
    assert all(1 - MARGIN < found < 1 + MARGIN for found in slopes(state))
    assert slope(gradient) > 1 - MARGIN


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
    assert slope(state) > 1.5 - MARGIN
    assert slope(gradient) > 1.5 - MARGIN


# ---------------------------------------------------------------- noise gradients: N1, N2, N3, C7


@pytest.mark.parametrize("solver", [sa.Euler(), sa.AdamsBashforth(3), sa.DPMSolverPP2M()], ids=repr)
def test_the_noise_gradient_is_the_adjoint_after_the_step(solver: sa.Solver) -> None:
    s, _, noise = levels("flow, eta = 0.5")[0]
    _, a, by_dB, by_H = noise_gradients(solver, s, noise)
    torch.testing.assert_close(by_dB, a[1:], rtol=0, atol=0)
    assert not by_H.any()


@cache
def slopes_of_noise_gradients(solver: RungeKutta, name: str) -> tuple[list[float], list[float], list[float]]:
    """On 16 to 64 steps, of the gradients in increments and in areas against their limits (see ``of_noise_gradients``),
    and of both together against what a step makes of the adjoint after it: empty where that is exact."""
    tableau, limits, steps = solver.tableau, of_limits(name), []
    seen = [
        sum(b * x for b, x in zip(tableau.b, row or (0.0,) * 9, strict=False)) for row in (tableau.noise, tableau.levy)
    ]
    by_dB, by_H = [], []
    for (s, _, noise), (average, moment) in zip(levels(name), limits, strict=False):
        y, a, found_dB, found_H = noise_gradients(solver, s, noise)
        by_dB.append(found_dB - average)
        by_H.append(found_H - moment)
        turned = s.diff()[:, None] * slope_of_drift(s[:-1], y[:-1]) * a[1:]
        steps.append(torch.cat([found_dB - a[1:] - seen[0] * turned, found_H - seen[1] * turned]))
    exact = float(steps[0].abs().max()) == 0
    return slopes(by_dB), slopes(by_H), [] if exact else slopes(steps)


def of_limits(name: str) -> list[tuple[Tensor, Tensor]]:
    return [averages(name, n)[:2] for n in (16, 32, 64)]


@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
def test_the_noise_gradient_of_a_runge_kutta_step(solver: RungeKutta) -> None:
    found = slopes_of_noise_gradients(solver, "flow, eta = 0.5")[2]
    assert found[-1] > 1.5 - 0.1 if found else solver == sa.Euler()


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
def test_noise_gradients_converge_to_averages_of_the_adjoint(solver: RungeKutta, name: str) -> None:
    """N3, both limits; that of Levy areas is itself of size h, and is reached with order 3/2."""
    by_dB, by_H = map(mean, slopes_of_noise_gradients(solver, name)[:2])
    assert by_dB > (1.5 if solver in LEVY else 1.0) - MARGIN
    if solver in LEVY:
        assert by_H > 1.5 - MARGIN
    else:  # they have none, and the limit is what is missing
        assert 1 - MARGIN < by_H < 1 + MARGIN


@pytest.mark.parametrize("name", FRAMES)
def test_means_and_falls_of_the_adjoint(name: str) -> None:
    """C7: ``(a_n + a_{n+1})/2`` and ``a_n - a_{n+1}`` are the averages up to ``O(h^(3/2))``, and no better."""
    means, falls = of_means_and_falls(name)
    assert 1.5 - MARGIN < slope(means) < 1.5 + 2 * MARGIN
    assert 1.5 - MARGIN < slope(falls) < 1.5 + 2 * MARGIN
