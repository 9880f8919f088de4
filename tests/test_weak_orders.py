"""Weak orders (W1 to W3, D4 of theory/) without sampling: finite sums for quadratic problems, quadrature for others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import Drift, RungeKutta, State, Tableau
from sdeadjoint.testing.contract import ViolationError
from sdeadjoint.testing.strategies import SOLVERS
from sdeadjoint.testing.weak import FREQUENCIES, START, Triangular, check_weak_order, moments
from theory.guarantees import GUARANTEES

PROVED = {g.subject: g.order for g in GUARANTEES if g.quantity == "weak"}


def drift(s: float, y: Tensor) -> Tensor:
    return torch.tanh(y) * math.cos(s) + 0.3 * torch.sin(2 * y)


def slopes(errors: Sequence[Tensor]) -> list[float]:
    """Of root mean squares, over grids that halve."""
    rms = [float(error.square().mean().sqrt()) for error in errors]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(rms)]


# ---------------------------------------------------------------- any solver: quadratic polynomials of the noise


@pytest.mark.parametrize("case", [Triangular(), Triangular(falling=True)], ids=str)
def test_expectations_of_quadratic_polynomials_are_finite_sums(case: Triangular) -> None:
    """Of Euler's method the moments have a recursion of their own."""
    s, w = case.nodes(12), FREQUENCIES
    square, mean = START[0] ** 2, START[1]
    for s0, ds, dnu in zip(s, np.diff(s), np.diff(case.noise_clock(s)), strict=False):
        a, c = np.cos(w * s0), np.sin(s0 + w)
        square, mean = (1 + ds * a) ** 2 * square + dnu, mean + ds * (a * mean + c * square)
    # Sums of some tens of numbers of size 1, each of which rounds in the 16th place.
    np.testing.assert_allclose(moments(sa.Euler(), case, 12), [square, mean], rtol=0, atol=1e-13)


def test_moments_see_levy_areas() -> None:
    """In one step of SRA1, ``Y_2 = y + 3/4 ds F + 3/4 dB + 3/2 H``, the square of H adds ``2/3 ds c 9/4 dnu/12``."""
    case = Triangular()
    s0, s1 = case.nodes(1)
    with_areas = moments(sa.SRA1(), case, 1)[1]
    without = moments(Deaf(sa.SRA1()), case, 1)[1]
    c = np.sin(s0 + 0.75 * (s1 - s0) + FREQUENCIES)
    np.testing.assert_allclose(with_areas - without, 2 / 3 * (s1 - s0) * c * 9 / 4 * (s1 - s0) / 12, rtol=1e-12)


@dataclass(frozen=True)
class Deaf(RungeKutta):
    """A method that is not told the Levy areas."""

    base: RungeKutta

    @property
    def claims(self) -> sa.Claims:
        return replace(self.base.claims, levy="none")

    @property
    def tableau(self) -> Tableau:
        return self.base.tableau


@dataclass(frozen=True)
class Claiming(sa.Solver):
    """A method that claims weak order 2."""

    base: sa.Solver

    @property
    def claims(self) -> sa.Claims:
        return replace(self.base.claims, weak=2.0)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        return self.base.step(drift, interval, y, state)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Midpoint(), sa.RK4(), sa.Coupled(sa.Euler())], ids=repr)
def test_a_weak_order_that_is_not_there_is_seen(solver: sa.Solver) -> None:
    says = r"weak order 2 is claimed, and on 32, 64, 128 steps the errors of E y1\^2"
    with pytest.raises(ViolationError, match=says):
        check_weak_order(Claiming(solver), Triangular())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_claimed_weak_orders_hold(solver: sa.Solver) -> None:
    check_weak_order(solver, Triangular())


# ---------------------------------------------------------------- one-step methods: any function, by quadrature


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
