"""Weak orders (W1, W2, D4 of theory/) without sampling: exact moments for linear drifts, quadrature for others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES

PROVED = {g.subject: g.order for g in GUARANTEES if g.quantity == "weak"}


def drift(s: float, y: Tensor) -> Tensor:
    return torch.tanh(y) * math.cos(s) + 0.3 * torch.sin(2 * y)


def slopes(errors: Sequence[Tensor]) -> list[float]:
    """Of root mean squares, over grids that halve."""
    rms = [float(error.square().mean().sqrt()) for error in errors]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(rms)]


def law(solver: sa.Solver, steps: int) -> Tensor:
    """Variance and covariance with y_0 of the solver's y_N for a linear drift, exactly: sums of squared derivatives."""
    s = torch.from_numpy(np.geomspace(2.0, 0.5, steps + 1))
    dnu = (-(s**2) / 4).diff()
    y, dB, H = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (1, steps, steps))
    out, state = y, solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(s.tolist())):
        out, state = solver.step(lambda s, y: math.cos(2 * s) * y, sa.Interval(s0, s1, dB[n], H[n]), out, state)
    by_y, by_dB, by_H = (
        torch.zeros(1, dtype=torch.float64) if g is None else g
        for g in torch.autograd.grad(out.sum(), (y, dB, H), allow_unused=True)
    )
    return torch.stack([by_y[0], (by_dB**2 * dnu).sum() + (by_H**2 * dnu / 12).sum()])


@cache
def exact_law() -> Tensor:
    fine, coarse = law(sa.ShARK(), 2048), law(sa.ShARK(), 1024)
    return fine + (fine - coarse) / 3


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if repr(solver) in PROVED], ids=repr)
def test_weak_order_of_second_moments(solver: sa.Solver) -> None:
    found = slopes([law(solver, steps) - exact_law() for steps in (64, 128, 256)])
    # Of what is left of the slope's drift the last halving has shown half.
    assert found[-1] > PROVED[repr(solver)] - 0.01 - min(2 * abs(found[-1] - found[-2]), 0.2)


Y = np.linspace(-7.0, 7.0, 501)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(10)


def expectation(solver: sa.Solver, steps: int) -> np.ndarray:
    """``E phi(y_N)`` for every start, without sampling: backwards, by Gauss-Hermite sums and quintic splines."""
    s = np.geomspace(2.0, 0.5, steps + 1)
    nu, value = -(s**2) / 4, np.tanh(1.3 * Y + 0.4)
    levy = solver.claims.levy != "none"
    normals = np.array([(x, z) for x in NODES for z in (NODES if levy else [0.0])])
    weights = np.array([p * q for p in WEIGHTS for q in (WEIGHTS if levy else [1.0])])
    grid = torch.from_numpy(np.broadcast_to(Y, (len(weights), len(Y))).copy())
    for n in reversed(range(steps)):
        root = math.sqrt(nu[n + 1] - nu[n])
        dB, H = (torch.from_numpy(size * normals[:, k : k + 1]) for k, size in enumerate((root, root / math.sqrt(12))))
        step, _ = solver.step(drift, sa.Interval(float(s[n]), float(s[n + 1]), dB, H), grid, ())
        spline = make_interp_spline(Y, value, k=5)
        value = weights @ spline(np.clip(step.numpy(), Y[0], Y[-1])) / weights.sum()
    return value[np.abs(Y) < 2]  # far from the ends of the interval


@cache
def exact_expectation() -> np.ndarray:
    fine, coarse = (expectation(sa.Heun(), steps) for steps in (128, 64))
    return fine + (fine - coarse) / 3


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if isinstance(solver, RungeKutta)], ids=repr)
def test_weak_order_with_a_nonlinear_drift(solver: sa.Solver) -> None:
    errors = [torch.from_numpy(expectation(solver, steps) - exact_expectation()) for steps in (8, 16, 32)]
    order, found = PROVED[repr(solver)], slopes(errors)
    assert order - 0.25 < found[-1] < order + 0.5  # the midpoint method and RK4 have weak order 1 and no more


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.RK4(), sa.ShARK()], ids=repr)
def test_weak_order_of_the_mean_gradient(solver: RungeKutta) -> None:
    """D4: the mean of ``dphi(y_N)/dy_0`` is the derivative of the mean."""
    starts, errors = Y[np.abs(Y) < 2], []
    for steps in (8, 16, 32):
        error = make_interp_spline(starts, expectation(solver, steps) - exact_expectation(), k=5)
        errors.append(torch.from_numpy(error.derivative()(starts)))
    assert slopes(errors)[-1] > PROVED[repr(solver)] - 0.25
