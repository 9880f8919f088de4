"""Weak orders (W1 to W5, D4 of theory/) without sampling: finite sums for quadratic problems, quadrature for others."""

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


# That claimed ones hold is an item of ``check_solver``, which tests/test_checks.py runs on every solver.

# ---------------------------------------------------------------- mean gradients of any solver: D4


def taught(s: float, y: Tensor, leaves: list[Tensor]) -> Tensor:
    """The drift of ``Triangular`` with conditioning z and a weight v: the second equation's drift in v grows like y."""
    z, v = leaves
    a, c = torch.cos(FREQUENCIES_ * s + z), torch.sin(s + FREQUENCIES_)
    return torch.stack([v * a * y[..., 0], a * y[..., 1] + v * c * y[..., 0] ** 2], -1)


FREQUENCIES_ = torch.from_numpy(FREQUENCIES[::2].copy())  # each is a problem; ten of them leave slopes as they are
PROBLEMS = len(FREQUENCIES_)
AT = (torch.full((PROBLEMS,), 0.2).double(), torch.full((PROBLEMS,), 0.9).double())


def mean_gradients(solver: sa.Solver, case: Triangular, steps: int) -> Tensor:
    """Derivatives of ``E y1^2`` and ``E y2`` in the start, z and v: (numbers,), by automatic differentiation of the
    solver's steps, as ``moments`` finds the means."""
    s = case.nodes(steps)
    parts = (1.0, 1 / 12) if solver.claims.levy != "none" else (1.0,)
    points = 1 + 2 * len(parts) * steps
    start = torch.tensor(START).double().expand(PROBLEMS, 2)
    leaves = [torch.stack([leaf, leaf]).requires_grad_() for leaf in (start, *AT)]  # for a mean each: one backward pass
    y, state = leaves[0].expand(points, *leaves[0].shape), solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(s.tolist())):
        noise = torch.zeros(2, points, 1, 1, 2).double()
        for k, part in enumerate(parts):
            root = math.sqrt(part * float(np.diff(case.noise_clock(s[n : n + 2]))[0]))
            plus = 1 + 2 * (n * len(parts) + k)
            noise[k, plus, ..., 0], noise[k, plus + 1, ..., 0] = root, -root
        y, state = solver.step(lambda s, y: taught(s, y, leaves[1:]), sa.Interval(s0, s1, *noise), y, state)
    values = torch.stack([y[:, 0, :, 0] ** 2, y[:, 1, :, 1]], 1)
    means = values[0] + (values[1::2] + values[2::2] - 2 * values[:1]).sum(0) / 2
    found = torch.autograd.grad(means.sum(), leaves)
    return torch.cat([grad[k].flatten() for k in range(2) for grad in found])


@cache
def exact_mean_gradients(falling: bool) -> Tensor:
    """By RK4 with 256 steps on the equations of the two means, whose derivatives it takes along.

    It is off by 4e-9; the least error to be measured, of AdamsBashforth(4) on 128 steps, is 1e-5.
    """
    case = Triangular(falling)
    start = torch.tensor(START).double().expand(PROBLEMS, 2).clone()
    leaves = [leaf.clone().requires_grad_() for leaf in (start, *AT)]
    means = torch.stack([leaves[0][:, 0] ** 2, leaves[0][:, 1]])

    def right(s: float, means: Tensor) -> Tensor:
        z, v = leaves[1:]
        a, c = torch.cos(FREQUENCIES_ * s + z), torch.sin(s + FREQUENCIES_)
        slope = -s / 2 if falling else 1.0  # of the noise clock
        return torch.stack([2 * v * a * means[0] + slope, a * means[1] + v * c * means[0]])

    for s0, s1 in pairwise(case.nodes(256).tolist()):
        means, _ = sa.RK4().step(right, sa.Interval(s0, s1), means, ())
    found = [torch.autograd.grad(mean.sum(), leaves, retain_graph=True, allow_unused=True) for mean in means]
    return torch.cat([grad.flatten() for grads in found for grad in grads if grad is not None]).detach()


ONE_AND_NO_MORE = ("Euler()", "Midpoint()", "RK4()", "Coupled(base=RK4(), zeta=0.999)")


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_weak_order_of_mean_gradients_of_everything(solver: sa.Solver) -> None:
    """D4: of gradients in start, conditioning and weight of two functions; both directions of the clock together."""
    # The first steps of a method that another one starts weigh more on coarse clocks; and where no more than order 1 is
    # to be seen, terms of order 2 must have faded.
    started = isinstance(solver, sa.AdamsBashforth) and solver.start is not None
    coarsest = 32 if started else 16 if repr(solver) in ONE_AND_NO_MORE else 8
    errors = [
        torch.cat([mean_gradients(solver, Triangular(f), n) - exact_mean_gradients(f) for f in (False, True)])
        for n in (coarsest, 2 * coarsest, 4 * coarsest)
    ]
    before, last = slopes(errors)
    # A slope that still rises will rise about as much again, as in ``check_weak_order``.
    assert last + max(0.0, last - before) > PROVED[repr(solver)] - 0.15
    if repr(solver) in ONE_AND_NO_MORE:
        assert last < 1.5


# ---------------------------------------------------------------- one-step methods: any function, by quadrature


Y = np.linspace(-7.0, 7.0, 201)  # 501 points and 10 nodes change no slope on the last two grids by more than 0.01
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)


def expectation(solver: sa.Solver, steps: int, drift: Drift = drift) -> np.ndarray:
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


def mean_gradient(solver: sa.Solver, steps: int, of: str, eps: float = 1e-3) -> np.ndarray:
    """A central difference of the mean in the conditioning or the weight."""

    def mean(p: float) -> np.ndarray:
        z, v = (p, 1.0) if of == "conditioning" else (0.0, 1.0 + p)
        return expectation(solver, steps, lambda s, y: drift(s, v * y + z))

    return (mean(eps) - mean(-eps)) / (2 * eps)


@cache
def exact_mean_gradient(of: str) -> np.ndarray:
    fine, coarse = (mean_gradient(sa.Heun(), steps, of) for steps in (128, 64))
    return fine + (fine - coarse) / 3


@pytest.mark.parametrize("of", ["conditioning", "weight"])
@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.RK4(), sa.ShARK()], ids=repr)
def test_weak_order_of_the_mean_gradient_in_a_parameter(solver: RungeKutta, of: str) -> None:
    """D4 with a nonlinear drift: the mean gradient is the derivative of the mean."""
    errors = [torch.from_numpy(mean_gradient(solver, steps, of) - exact_mean_gradient(of)) for steps in (8, 16, 32)]
    assert slopes(errors)[-1] > PROVED[repr(solver)] - 0.25


# ---------------------------------------------------------------- pairs: any function, by quadrature in two variables

COARSE_Y = np.linspace(-7.0, 7.0, 101)  # 201 points change no slope by more than 0.02
FEW, FEW_WEIGHTS = np.polynomial.hermite_e.hermegauss(6)
GAPS = 0.3 * np.cos(np.pi * (2 * np.arange(5) + 1) / 10)  # of the copies; they are of size h and smaller


def at_gaps(gaps: np.ndarray) -> list[np.ndarray]:
    """Lagrange's polynomials of the nodes ``GAPS``."""
    return [np.prod([(gaps - other) / (node - other) for other in GAPS if other != node], axis=0) for node in GAPS]


def pair_expectation(solver: sa.Solver, steps: int) -> np.ndarray:
    """``E phi(y_N)`` of a solver whose memory is the distance of a second copy, for every start of both together.

    As ``expectation``, with polynomials of degree 4 in the distance, in which it is smooth.
    """
    s = np.geomspace(2.0, 0.5, steps + 1)
    nu, values = -(s**2) / 4, [np.tanh(1.3 * COARSE_Y + 0.4)] * len(GAPS)
    levy = solver.claims.levy != "none"
    normals = np.array([(x, z) for x in FEW for z in (FEW if levy else [0.0])])
    weights = np.array([p * q for p in FEW_WEIGHTS for q in (FEW_WEIGHTS if levy else [1.0])])
    y = torch.from_numpy(np.broadcast_to(COARSE_Y, (len(GAPS), len(weights), len(COARSE_Y))).copy())
    gap = torch.from_numpy(GAPS)[:, None, None].expand_as(y)
    for n in reversed(range(steps)):
        root = math.sqrt(nu[n + 1] - nu[n])
        dB, H = (torch.from_numpy(size * normals[:, k])[:, None] for k, size in enumerate((root, root / math.sqrt(12))))
        state = (gap, drift(float(s[n]), y + gap)) if isinstance(solver, sa.ReversibleHeun) else (gap,)
        end, (gap_end, *_) = solver.step(drift, sa.Interval(float(s[n]), float(s[n + 1]), dB, H), y, state)
        inside = np.clip(end.numpy(), COARSE_Y[0], COARSE_Y[-1])
        splines = make_interp_spline(COARSE_Y, np.stack(values, axis=1), k=5)  # at once: they share points and basis
        means = np.einsum("k...,...k->...", np.stack(at_gaps(gap_end.numpy())), splines(inside))
        values = [*np.einsum("w,gwy->gy", weights / weights.sum(), means)]
    together = np.stack(at_gaps(np.zeros(1))).T @ np.stack(values)
    return together[0, np.abs(COARSE_Y) < 2]


@cache
def exact_pair_expectation() -> np.ndarray:
    """Of the solution, by Heun's method: no reversible method has a part in it."""
    starts = Y[np.abs(Y) < 2]
    return make_interp_spline(starts, exact_expectation(), k=5)(COARSE_Y[np.abs(COARSE_Y) < 2])


PAIRS = [sa.Coupled(base, zeta) for base in (sa.Heun(), sa.SRA1(), sa.ShARK()) for zeta in (1.0, 0.5)]
CONTROLS = [sa.Coupled(base, zeta) for base in (sa.Midpoint(), sa.RK4(), sa.Euler()) for zeta in (1.0, 0.5)]


@pytest.mark.parametrize("solver", [*PAIRS, sa.ReversibleHeun(), *CONTROLS], ids=repr)
def test_weak_order_of_pairs_with_a_nonlinear_drift(solver: sa.Solver) -> None:
    """W4, W5 for every zeta; the controls, whose bases miss a condition of W1, have weak order 1 and no more."""
    errors = [torch.from_numpy(pair_expectation(solver, n) - exact_pair_expectation()) for n in (8, 16, 32)]
    before, last = slopes(errors)
    if solver in CONTROLS:
        assert 0.85 < last < 1.15
    else:
        assert solver.claims.weak == 2
        assert last + max(0.0, last - before) > 2 - 0.15
