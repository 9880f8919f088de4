"""Reversible solvers: steps that are undone to round-off, the algebra of the pair map, and how round-off grows.

Orders of convergence, purity and gradients of these solvers are tested with those of all others in ``test_solvers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.recursion import Carry, Recursion
from sdeadjoint.solvers import Drift, ReversibleSolver, RungeKutta, State
from sdeadjoint.testing import strategies
from sdeadjoint.testing.strategies import SOLVERS

from .predicted import predictor

EPS = torch.finfo(torch.float64).eps
ONE_STEP = [solver for solver in SOLVERS if isinstance(solver, RungeKutta)]
SCHEDULE = sa.VPLinear()
MIXTURE = sa.problems.Mixture([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3])


def reversible() -> st.SearchStrategy[ReversibleSolver]:
    zetas = st.one_of(st.sampled_from([0.999, 1.0]), st.floats(0.1, 1.0))
    return st.one_of(st.just(sa.ReversibleHeun()), st.builds(sa.Coupled, st.sampled_from(ONE_STEP), zetas))


each_reversible = pytest.mark.parametrize(
    "solver", [solver for solver in SOLVERS if isinstance(solver, ReversibleSolver)], ids=repr
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tangled(s: float, y: Tensor) -> Tensor:
    """A nonlinear drift that uses its clock; its derivative is at most 1."""
    return torch.sin(y) + 0.5 * math.cos(s)


def written_out(solver: ReversibleSolver, drift: Drift, s: float, y: Tensor, gap: Tensor) -> State:
    """The state at y in which ``y - yh`` or ``v - y`` is ``gap``."""
    return (gap,) if isinstance(solver, sa.Coupled) else (gap, drift(s, y + gap))


# ---------------------------------------------------------------- steps are undone


@given(
    reversible(),
    st.tuples(st.floats(-2.0, 2.0), st.floats(0.01, 1.0), st.sampled_from([1, -1])),
    st.sampled_from([torch.float64, torch.float32]),
    st.sampled_from([(1,), (3,), (2, 3, 1)]),
    st.sampled_from([0.0, 1e-3, 0.1]),
    st.booleans(),
)
def test_inverting_a_step_returns_to_its_beginning(
    solver: ReversibleSolver,
    clock: tuple[float, float, int],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    apart: float,
    noisy: bool,
) -> None:
    s0, h, sign = clock
    y, gap = 10 * randn(*shape).to(dtype), apart * randn(*shape, seed=1).to(dtype)
    noise = [x.to(dtype) for x in randn(2, *shape, seed=2)] if noisy else []
    interval = sa.Interval(s0, s0 + sign * h, *noise)
    state = written_out(solver, tangled, s0, y, gap)
    end = solver.step(tangled, interval, y, state)
    back, state_back = solver.invert(tangled, interval, *end)
    assert len(state_back) == len(state)
    # Some twenty operations on numbers of size |y|, each of whose errors goes through two increments, which multiply it
    # by (1 + h)^k at most as the drift's derivative is 1, and through a division by zeta.
    size = float(max(x.abs().max() for x in (y, end[0], *noise)))
    zeta = solver.zeta if isinstance(solver, sa.Coupled) else 1.0
    bound = 50 * torch.finfo(dtype).eps * size * (1 + h) ** solver.claims.evaluations / zeta
    for got, want in zip((back, *state_back), (y, *state), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=bound)


@each_reversible
def test_the_first_step_is_undone_to_the_state_written_out(solver: ReversibleSolver) -> None:
    assert solver.initial_state == ()
    y, interval = randn(3), sa.Interval(1.0, 1.25, randn(3, seed=1), randn(3, seed=2))
    end = solver.step(tangled, interval, y, ())
    explicit = written_out(solver, tangled, interval.s0, y, torch.zeros(3).double())
    for got, want in zip(end[1], solver.step(tangled, interval, y, explicit)[1], strict=True):
        assert torch.equal(got, want)
    back, state = solver.invert(tangled, interval, *end)
    for got, want in zip((back, *state), (y, *explicit), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=100 * EPS)


def round_trip(solver: ReversibleSolver, drift: Drift, steps: int) -> tuple[Tensor, Tensor]:
    """Errors in y, 1e6 in size, and in the difference, 1e-3 in size, after steps over a unit of clock and back."""
    y, gap, noise = 1e6 + randn(20), 1e-3 * randn(20, seed=1), randn(steps, 20, seed=2) / math.sqrt(steps)
    intervals = [sa.Interval(1 + n / steps, 1 + (n + 1) / steps, dB) for n, dB in enumerate(noise)]
    end = (y, written_out(solver, drift, 1.0, y, gap))
    for interval in intervals:
        end = solver.step(drift, interval, *end)
    for interval in intervals[::-1]:
        end = solver.invert(drift, interval, *end)
    return end[0] - y, end[1][0] - gap


@each_reversible
def test_where_increments_are_small_the_way_back_is_the_way_there(solver: ReversibleSolver) -> None:
    y, gap = round_trip(solver, tangled, 50)
    # The difference rounds by parts of the increments: ten roundings per step, forward and back, of numbers up to 4.
    # That is far less than half an ulp of y, so that Coupled's y - d is bitwise yh again. The reversible Heun method
    # makes v from both sides by different sums, some ulps of y apart, which the drift (of derivative 1) sees.
    coupled = isinstance(solver, sa.Coupled)
    assert (gap.abs() <= 2 * 50 * 10 * 4 * EPS + (0 if coupled else 4 * EPS * 1e6)).all()
    assert (y.abs() <= (0 if coupled else 50 * EPS * 1e6)).all()


@dataclass(frozen=True)
class Subtracting(sa.Coupled):
    def _increment(self, drift: Drift, interval: sa.Interval, y: Tensor) -> Tensor:
        return self.base.step(drift, interval, y, ())[0] - y


def test_increments_are_more_accurate_than_differences_of_states() -> None:
    def drift(s: float, y: Tensor) -> Tensor:
        return 0.5 * y

    errors = [round_trip(kind(sa.Euler()), drift, 1000)[1].norm() for kind in (sa.Coupled, Subtracting)]
    assert errors[0] < 0.1 * errors[1]  # increments are 1e-3 of y here; both errors are random


@each_reversible
def test_undoing_a_step_calls_the_network_as_often_as_a_step(solver: ReversibleSolver) -> None:
    calls: list[float] = []

    def drift(s: float, y: Tensor) -> Tensor:
        calls.append(s)
        return tangled(s, y)

    interval = sa.Interval(1.0, 1.25)
    end = solver.step(drift, interval, randn(3), ())
    calls.clear()
    again = solver.step(drift, interval, *end)
    assert len(calls) == solver.claims.evaluations
    calls.clear()
    solver.invert(drift, interval, *again)
    assert len(calls) == solver.claims.evaluations
    assert all(1.0 <= s <= 1.25 for s in calls)


@each_reversible
def test_samples_of_a_batch_and_memory_layouts_do_not_matter(solver: ReversibleSolver) -> None:
    y, gap, dB, H = randn(4, 5, 3, 2)
    interval = sa.Interval(1.0, 0.75, dB, H)

    def both(y: Tensor, gap: Tensor, interval: sa.Interval) -> list[Tensor]:
        ends = [
            way(tangled, interval, y, written_out(solver, tangled, interval.s0, y, gap))
            for way in (solver.step, solver.invert)
        ]
        return [x for end in ends for x in (end[0], *end[1])]

    whole = both(y, gap, interval)
    one = both(y[2:3], gap[2:3], sa.Interval(1.0, 0.75, dB[2:3], H[2:3]))
    turned = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in (y, gap, dB, H)]
    assert not turned[0].is_contiguous()
    other = both(*turned[:2], sa.Interval(1.0, 0.75, *turned[2:]))
    for a, b, c in zip(whole, one, other, strict=True):
        assert torch.equal(a[2:3], b)
        assert torch.equal(a, c)
        assert c.stride() == turned[0].stride()


# ---------------------------------------------------------------- the formulas, written out


def plain_increment(base: sa.Solver, interval: sa.Interval, y: Tensor) -> Tensor:
    return base.step(tangled, interval, y, ())[0] - y


@settings(max_examples=30)
@given(st.sampled_from(ONE_STEP), st.floats(0.1, 1.0), st.booleans())
def test_coupled_is_the_published_pair(base: sa.Solver, zeta: float, falling: bool) -> None:
    """McCallum and Foster's two lines, in the variables y and yh; the code keeps y - yh."""
    nodes = [0.5, 0.8, 1.0, 1.5]
    nodes = nodes[::-1] if falling else nodes
    solver, (dB, H) = sa.Coupled(base, zeta), randn(2, 3, 2, seed=3)
    y = y_code = yh = randn(2)
    state: State = ()
    for n, (s0, s1) in enumerate(pairwise(nodes)):
        interval = sa.Interval(s0, s1, dB[n], H[n])
        y = zeta * y + (1 - zeta) * yh + plain_increment(base, interval, yh)
        yh = yh - plain_increment(base, sa.Interval(s1, s0, -dB[n], H[n]), y)
        y_code, state = solver.step(tangled, interval, y_code, state)
        # Differences of order 1, a few dozen operations each.
        torch.testing.assert_close(y_code, y, rtol=0, atol=500 * EPS)
        torch.testing.assert_close(y_code - state[0], yh, rtol=0, atol=500 * EPS)


def test_coupled_euler_with_zeta_one_is_the_symplectic_pair() -> None:
    y, h, dB = randn(3), 0.25, randn(3, seed=1)
    end, (d,) = sa.Coupled(sa.Euler(), 1).step(tangled, sa.Interval(1.0, 1.0 + h, dB), y, (0.1 * y,))
    yh = 0.9 * y
    want = y + h * tangled(1.0, yh) + dB
    torch.testing.assert_close(end, want, rtol=0, atol=20 * EPS)
    torch.testing.assert_close(end - d, yh + h * tangled(1.0 + h, want) + dB, rtol=0, atol=20 * EPS)


def test_reversible_heun_is_the_published_algorithm() -> None:
    """Kidger, Foster, Li and Lyons (2021), Algorithm 1, in the variables y and v; the code keeps v - y."""
    dB = randn(4, 3, seed=1)
    y = y_code = v = randn(3)
    F, state = tangled(2.0, v), ()
    for n, (s0, s1) in enumerate(pairwise([2.0, 1.5, 1.25, 0.5, 0.25])):
        h = s1 - s0
        v = 2 * y - v + F * h + dB[n]
        F_new = tangled(s1, v)
        y = y + 0.5 * (F + F_new) * h + dB[n]
        F = F_new
        y_code, state = sa.ReversibleHeun().step(tangled, sa.Interval(s0, s1, dB[n]), y_code, state)
        u, F_code = state
        for got, want in ((y_code, y), (y_code + u, v), (F_code, F)):
            torch.testing.assert_close(got, want, rtol=0, atol=200 * EPS)


# ---------------------------------------------------------------- the determinant, stability, growth of round-off


@settings(max_examples=30)
@given(reversible(), st.integers(1, 3), st.booleans())
def test_determinant_of_the_pair_map(solver: ReversibleSolver, dim: int, noisy: bool) -> None:
    mix = randn(dim, dim, seed=5)
    interval = sa.Interval(0.7, 1.2, *(randn(2, dim, seed=6) if noisy else ()))

    def drift(s: float, y: Tensor) -> Tensor:
        return torch.tanh(mix @ y) + s

    def pair(both: Tensor) -> Tensor:
        y, gap = both.split(dim)
        y, state = solver.step(drift, interval, y, written_out(solver, drift, interval.s0, y, gap))
        return torch.cat([y, state[0]])

    jacobian = torch.autograd.functional.jacobian(pair, randn(2 * dim, seed=7))
    determinant = float(torch.linalg.det(jacobian))
    # An LU factorisation of at most 6 x 6: its error is below n eps cond |det|, of entries of order 10.
    expected = solver.zeta**dim if isinstance(solver, sa.Coupled) else (-1.0) ** dim
    assert determinant == pytest.approx(expected, rel=0, abs=1e-11 * float(torch.linalg.matrix_norm(jacobian, 2)) ** 2)


def amplification(solver: ReversibleSolver, z: float, a: float) -> list[float]:
    """Moduli of the eigenvalues of one step on ``y' = a y`` with ``a ds = z``, the larger first."""

    def pair(both: Tensor) -> Tensor:
        y, state = solver.step(
            drift, sa.Interval(1.0, 1.0 + z / a), both[:1], written_out(solver, drift, 1.0, *both.split(1))
        )
        return torch.cat([y, state[0]])

    def drift(s: float, y: Tensor) -> Tensor:
        return a * y

    jacobian = torch.autograd.functional.jacobian(pair, torch.ones(2).double())
    return sorted(torch.linalg.eigvals(jacobian).abs().tolist(), reverse=True)


@dataclass(frozen=True)
class Exact(sa.Solver):
    """The exact increment of ``y' = a y``: the exponential Euler method."""

    a: float
    claims: ClassVar[sa.Claims] = sa.Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        z = self.a * interval.ds
        return y + (math.expm1(z) / self.a) * drift(interval.s0, y) + interval.dB, state


@given(st.floats(0.01, 3.0), st.floats(0.1, 1.0), st.sampled_from([-2.0, 0.5]))
def test_the_difference_of_the_copies_is_carried_by_the_inverse_flow(z: float, zeta: float, a: float) -> None:
    """R7: with an exact base the eigenvalues are e^z and zeta e^-z."""
    z = math.copysign(z, a)
    expected = sorted([math.exp(z), zeta * math.exp(-z)], reverse=True)
    assume(expected[0] > 1.01 * expected[1])  # nearly equal eigenvalues are ill conditioned
    got = amplification(sa.Coupled(Exact(a), zeta), z, a)
    # e^3 in the entries, and eigenvalues apart by 1 %: a condition of some thousands.
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("z", [-2.0, -0.5, -0.01, 0.01, 0.5])
def test_stability_on_the_real_axis(z: float) -> None:
    a = math.copysign(1.0, z)
    root = math.hypot(1, z)
    assert amplification(sa.ReversibleHeun(), z, a) == pytest.approx([root + abs(z), root - abs(z)], rel=1e-12)
    # Euler's pair is stable for -(1 - zeta) <= z <= 0: |trace| <= 1 + det.
    zeta = 0.75
    stable = amplification(sa.Coupled(sa.Euler(), zeta), z, a)[0] <= 1
    assert stable == (-(1 - zeta) <= z <= 0)


class Trip:
    """A sampler's steps forward, with the Jacobian of each pair map, for a batch of scalars."""

    def __init__(self, solver: ReversibleSolver, recursion: Recursion, x_T: Tensor) -> None:
        self.solver, self.recursion, self.x_T = solver, recursion, x_T
        self.y = recursion.equation.enter(x_T)
        self.gaps, self.jacobians, self.sizes = torch.zeros_like(x_T), [], []  # type: ignore[var-annotated]
        y, gap = self.y, self.gaps
        for n in range(recursion.steps):
            y, gap, size = self._forward(n, y.detach(), gap.detach())
            self.sizes.append(size)
        end = recursion.equation.clocks[-1]
        self.end = Carry(y.detach(), written_out(solver, self.drift(recursion.steps - 1), end, y, gap))

    def drift(self, n: int) -> Drift:
        return self.recursion.equation.drift(n)

    def _forward(self, n: int, y: Tensor, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pair = [y.requires_grad_(), gap.requires_grad_()]
        interval = self.recursion.interval(n, self.recursion.increment(n), y)
        state = written_out(self.solver, self.drift(n), interval.s0, *pair)
        y1, (gap1, *_) = self.solver.step(self.drift(n), interval, y, state)
        rows = [torch.stack(torch.autograd.grad(out.sum(), pair, retain_graph=True), -1) for out in (y1, gap1)]
        self.jacobians.append(torch.stack(rows, -2))
        noise = interval.dB if isinstance(interval.dB, Tensor) else torch.zeros(())
        return y1, gap1, torch.stack([x.detach().abs().expand_as(y) for x in (y, y1, gap, gap1, noise)]).amax(0)

    def back(self) -> Tensor:
        carry = self.end
        with torch.no_grad():
            for n in reversed(range(self.recursion.steps)):
                interval = self.recursion.interval(n, self.recursion.increment(n), carry.y)
                carry = Carry(*self.solver.invert(self.drift(n), interval, *carry))
        return carry.y

    def bound(self) -> Tensor:
        """What 50 roundings in each step become on the way back to the start, to first order."""
        total, inverses = torch.zeros_like(self.x_T), torch.eye(2).double().expand(len(self.x_T), 2, 2)
        for jacobian, size in zip(self.jacobians, self.sizes, strict=True):
            inverse = torch.linalg.inv(jacobian)
            norms = [torch.linalg.matrix_norm(x, 2) for x in (inverses, jacobian, inverse)]
            total = total + 50 * EPS * size * math.prod(norms)
            inverses = inverses @ inverse
        return total.detach()


def recursion(solver: sa.Solver, frame: sa.Frame, grid: Tensor, like: Tensor, problem: Any = MIXTURE) -> Recursion:
    equation = Diffusion.create(problem.denoiser(frame.schedule), frame, grid, {})
    return Recursion.create(equation, solver, sa.BrownianPath(seed=3) if frame.eta > 0 else None, like)


@settings(max_examples=25)
@given(reversible(), st.data())
def test_samplers_are_undone_to_the_round_off_that_their_jacobians_predict(
    solver: ReversibleSolver, data: st.DataObject
) -> None:
    schedule = data.draw(strategies.schedules())
    frame = data.draw(strategies.frames(schedule))
    grid = data.draw(strategies.grids(schedule, max_steps=12, logsnr=(-2.0, 2.0)))
    x_T = schedule.alpha(grid[0]) * MIXTURE.sample(3, 1) + schedule.sigma(grid[0]) * randn(3, seed=2)
    trip = Trip(solver, recursion(solver, frame, grid, x_T), x_T)
    bound = trip.bound()
    assume(bool((bound < 1e-6 * trip.y.abs()).all()))  # else first order says nothing
    assert ((trip.back() - trip.y).abs() <= bound).all()


def growth(frame: sa.Frame, variance: float, t0: float, t1: float) -> float:
    """R7: ``G = int dF/dy ds`` for Gaussian data, in closed form."""

    def primitive(t: float) -> float:
        r, v = math.exp(-float(frame.schedule.lam(t))), variance
        return {
            "data": 0.5 * math.log(1 + v / r**2),
            "noise": 0.5 * math.log(v + r**2),
            "flow": 0.5 * math.log(v + r**2) - math.log(1 + r),
        }[frame.kind]

    return (1 + frame.eta) * (primitive(t1) - primitive(t0))


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("variance", [0.3, 4.0])
def test_the_growth_of_round_off_in_closed_form(kind: str, eta: float, variance: float) -> None:
    frame, count = sa.Frame(SCHEDULE, eta, kind), 300
    lam = torch.linspace(-3, 3, count + 1).double()
    t, middle = SCHEDULE.time(lam), SCHEDULE.time(0.5 * (lam[1:] + lam[:-1]))
    denoiser, x = sa.problems.Gaussian(0.0, variance).denoiser(SCHEDULE), randn(count).requires_grad_()
    predicted = denoiser(x, middle, prediction=frame.prediction)  # sample n at the middle of step n
    slopes = torch.autograd.grad(predicted.sum(), x)[0] * frame.weight(middle)
    numeric = float((slopes * frame.clock(t).diff()).sum())
    # The midpoint rule: 6 h^2/24, h = 0.02, times second derivatives of the integrand, of order 10.
    assert growth(frame, variance, float(t[0]), float(t[-1])) == pytest.approx(numeric, abs=1e-3)


def largest_growth(eta: float, variance: float) -> float:
    """R7, the flow kind: the bound of ``|G|`` over all ranges of noise levels."""
    return (1 + eta) / 2 * max(math.log((1 + variance) / variance), math.log(1 + variance))


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("variance", [0.05, 0.3, 1.0, 4.0, 30.0])
def test_growth_in_the_flow_kind_has_a_bound_that_is_reached(variance: float, eta: float) -> None:
    schedule = sa.VE(1e-3, 1e3)  # r is sigma
    frame, times = sa.Frame(schedule, eta, "flow"), sa.uniform_logsnr(schedule, 60).tolist()
    # On both sides of r = v, where the primitive is least.
    times = sorted({*times, float(schedule.time(-math.log(variance)))}, reverse=True)
    found = [growth(frame, variance, t0, t1) for i, t0 in enumerate(times) for t1 in times[i + 1 :]]
    bound = largest_growth(eta, variance)
    assert max(map(abs, found)) <= bound
    # The ends are at r = 1e-3 and 1e3, where the primitive is 1e-3 (1 + v) from its limits.
    assert max(map(abs, found)) >= bound - 3e-3 * (1 + eta) * (1 + variance)


@cache
def gaussian(variance: float) -> Callable[..., Tensor]:
    """The exact prediction for ``N(0, variance)``."""
    return predictor(SCHEDULE, [1.0], [[0.0]], [variance])


# The bound is a product of what eta and the variance make of it and what the solver does: each has two of either.
@pytest.mark.parametrize(
    ("solver", "steps", "eta", "variance"),
    [
        (sa.Coupled(sa.Euler()), 1000, 0.0, 0.3),
        (sa.Coupled(sa.Euler(), zeta=0.995), 200, 1.0, 0.3),  # 0.995^200 is 0.999^1000
        (sa.ReversibleHeun(), 200, 1.0, 0.3),
        (sa.ReversibleHeun(), 200, 0.5, 4.0),
    ],
    ids=str,
)
def test_in_the_flow_kind_a_thousand_steps_over_all_noise_levels_are_undone(
    solver: ReversibleSolver, steps: int, eta: float, variance: float
) -> None:
    x_T = randn(8)
    grid = sa.uniform_logsnr(SCHEDULE, steps)
    denoiser = sa.Denoiser(gaussian(variance), SCHEDULE, "sample", time_dtype=torch.float64)
    equation = Diffusion.create(denoiser, sa.Frame(SCHEDULE, eta, "flow"), grid, {})
    built = Recursion.create(equation, solver, sa.BrownianPath(seed=3) if eta > 0 else None, x_T)
    with torch.no_grad():
        carry, largest = built.start(built.equation.enter(x_T)), torch.zeros(())
        for n in range(steps):
            carry = built.step(n, carry, built.increment(n))
            largest = torch.maximum(largest, carry.y.abs().max())
        for n in reversed(range(steps)):
            carry = built.invert(n, carry, built.increment(n))
    # R7: at most ten ulps of the largest |y| in each step grow by e^|G| zeta^-N.
    zeta = solver.zeta if isinstance(solver, sa.Coupled) else 1.0
    factor = math.exp(largest_growth(eta, variance)) * zeta**-steps
    error = (carry.y - built.equation.enter(x_T)).abs().max()
    assert float(error) <= 10 * EPS * steps * factor * float(largest)


# ---------------------------------------------------------------- refusals


class Counting(sa.Euler):
    """A method that starts with something to remember."""

    initial_state = (0,)  # type: ignore[assignment]

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        (count,) = state
        return super().step(drift, interval, y, ())[0], (count + 1,)


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        (sa.Euler, TypeError, r"base: got the class Euler; pass a one-step solver such as Heun\(\)"),
        ("heun", TypeError, r"base: got str; pass a one-step solver such as Heun\(\)"),
        (sa.ReversibleHeun(), ValueError, r"base: got ReversibleHeun\(\), which is reversible already"),
        (sa.Coupled(sa.Euler()), ValueError, r"base: got Coupled\(base=Euler\(\), zeta=0.999\), which is reversible"),
        (
            sa.DPMSolverPP2M(),
            ValueError,
            r"base: got DPMSolverPP2M\(\), which remembers earlier steps; pass a one-step",
        ),
        (sa.AdamsBashforth(2), ValueError, r"base: got AdamsBashforth\(order=2, .*which remembers earlier steps"),
        (Counting(), ValueError, r"base: got Counting\(\), which remembers earlier steps"),
    ],
)
def test_coupled_refuses_other_bases(base: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sa.Coupled(base)


def test_an_adams_bashforth_method_of_order_one_is_a_one_step_method() -> None:
    y, interval = randn(3), sa.Interval(1.0, 1.5)
    got = sa.Coupled(sa.AdamsBashforth(1)).step(tangled, interval, y, ())[0]
    assert torch.equal(got, sa.Coupled(sa.Euler()).step(tangled, interval, y, ())[0])


@pytest.mark.parametrize("zeta", [0.0, -0.5, 1.0000001, math.nan, math.inf])
def test_coupled_refuses_zeta_out_of_range(zeta: float) -> None:
    with pytest.raises(ValueError, match=f"zeta: got {zeta}; pass a number with 0 < zeta <= 1, such as 0.999"):
        sa.Coupled(sa.Heun(), zeta)


@pytest.mark.parametrize("zeta", [True, "0.9", None, torch.tensor(0.5)])
def test_coupled_refuses_what_is_no_number(zeta: Any) -> None:
    with pytest.raises(TypeError, match=r"zeta: got .*; pass a number with 0 < zeta <= 1, such as 0\.999"):
        sa.Coupled(sa.Heun(), zeta)


@dataclass(frozen=True)
class NoTableau(sa.Solver):
    """A one-step method of which it is not known to be a Runge-Kutta method, with the claims of one."""

    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.0, evaluations=2, weak=2.0)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        return sa.Heun().step(drift, interval, y, ())


def test_the_weak_order_of_a_coupled_method_is_claimed_where_it_is_proved() -> None:
    """W4 is on Runge-Kutta bases; of others the strong order is what is known."""
    weak = {repr(base): sa.Coupled(base).claims.weak for base in ONE_STEP}
    new = {"BogackiShampine()": 1, "Dopri5()": 1}
    assert weak == {"Euler()": 1, "Heun()": 2, "Midpoint()": 1, "RK4()": 1, "SRA1()": 2, "ShARK()": 2} | new
    assert sa.Coupled(NoTableau()).claims.weak == 1


def test_coupled_is_its_call_and_claims_what_its_base_does() -> None:
    assert repr(sa.Coupled(sa.Heun(), 1)) == "Coupled(base=Heun(), zeta=1.0)"
    assert sa.Coupled(sa.Heun(), 1) == sa.Coupled(sa.Heun(), 1.0)
    assert sa.Coupled(sa.ShARK()).claims == sa.Claims(ode=2, strong=1.5, evaluations=4, levy="space-time", weak=2.0)
