"""Solvers: the contract of a step, the algebra of the coefficients, and the orders of convergence that are claimed.

Slopes are tested from one side: the claimed order must not exceed the measured one by more than what the measurement
leaves open, which is how far the slope still moves from one pair of levels to the next, and how far it moves when the
sample paths are drawn anew (bootstrap). Both together are capped, so that an order lost is an order noticed.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing import strategies
from sdeadjoint.testing.strategies import SOLVERS

from .measured_orders import MIXTURE, SCHEDULE, written_out

EPS = torch.finfo(torch.float64).eps
RUNGE_KUTTA = [solver for solver in SOLVERS if isinstance(solver, RungeKutta)]
ADAMS_BASHFORTH = [solver for solver in SOLVERS if isinstance(solver, sa.AdamsBashforth)]
MULTISTEP = [solver for solver in ADAMS_BASHFORTH if solver.start is None]
STARTED = [solver for solver in ADAMS_BASHFORTH if solver.start is not None]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(
    solver: sa.Solver,
    drift: Callable[[float, Tensor], Tensor],
    nodes: Sequence[float],
    y: Tensor,
    noise: Sequence[tuple[Any, Any]] | None = None,
) -> Tensor:
    state = solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(nodes)):
        y, state = solver.step(drift, sa.Interval(s0, s1, *(noise[n] if noise else ())), y, state)
    return y


@st.composite
def clocks(draw: st.DrawFn, steps: int | None = None, smallest: float = 0.05) -> list[float]:
    """Positive clocks with steps from ``smallest`` to 1 in log s, rising or falling."""
    count = draw(st.integers(1, 8)) if steps is None else steps
    logs = [draw(st.floats(-4.0, 4.0))]
    for step in draw(st.lists(st.floats(smallest, 1.0), min_size=count, max_size=count)):
        logs.append(logs[-1] + step)
    nodes = [math.exp(u) for u in logs]
    return nodes[::-1] if draw(st.booleans()) else nodes


def tangled(s: float, y: Tensor) -> Tensor:
    """A nonlinear drift that uses its clock."""
    return torch.sin(y) + math.cos(s) * 0.5


# ---------------------------------------------------------------- the contract


def test_every_exported_solver_is_tested() -> None:
    exported = {value for name in sa.__all__ if isinstance(value := getattr(sa, name), type)}
    assert {kind for kind in exported if issubclass(kind, sa.Solver)} - {sa.Solver} == {type(s) for s in SOLVERS}


@given(
    strategies.solvers(),
    clocks(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([(1,), (3,), (2, 3, 1)]),
)
def test_steps_are_pure_and_keep_shape_and_dtype(
    solver: sa.Solver, nodes: list[float], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    y0, noise = randn(*shape).to(dtype), [randn(2, *shape, seed=n).to(dtype) for n in range(len(nodes))]
    before, calls = y0.clone(), []

    def drift(s: float, y: Tensor) -> Tensor:
        assert isinstance(s, float)
        calls.append((s, y.clone()))
        return tangled(s, y)

    y, state, passed = y0, solver.initial_state, [y0]
    for n, (s0, s1) in enumerate(pairwise(nodes)):
        interval = sa.Interval(s0, s1, noise[n][0], noise[n][1])
        calls.clear()
        first, first_state = solver.step(drift, interval, y, state)
        claimed = (*solver.claims.starting, *[solver.claims.evaluations] * len(nodes))[n]
        assert 0 <= len(calls) - claimed <= (n == 0)  # at most one more in the first step
        assert (first.dtype, first.shape) == (dtype, torch.Size(shape))
        low, high = min(s0, s1), max(s0, s1)
        assert all(low <= s <= high for s, _ in calls)
        copy.copy(solver).step(tangled, sa.Interval(1.0, 2.0), y + 1, ())  # another solve in between
        again, again_state = solver.step(drift, interval, y, state)
        assert torch.equal(first, again)
        assert repr(first_state) == repr(again_state)
        y, state = first, first_state
        passed.append(y)
    assert torch.equal(y0, before)  # nothing was changed in place
    assert torch.equal(solve(solver, tangled, nodes, y0, noise), y)  # type: ignore[arg-type]
    assert y.isfinite().all()


@given(strategies.solvers(), clocks())
def test_constant_drifts_and_noise_are_integrated_exactly(solver: sa.Solver, nodes: list[float]) -> None:
    y0, F, dB = randn(3), randn(3, seed=1), randn(len(nodes) - 1, 3, seed=2)
    y = solve(solver, lambda s, y: F, nodes, y0, [(noise, 0.0) for noise in dB])
    # Weights sum to the step to round-off; their absolute values to at most some 1e4 steps (order 4, ratios up to 20).
    torch.testing.assert_close(y, y0 + F * (nodes[-1] - nodes[0]) + dB.sum(0), rtol=0, atol=1e5 * EPS * max(nodes))


@each_solver
def test_a_clock_may_start_at_zero(solver: sa.Solver) -> None:
    F = randn(3)
    y = solve(solver, lambda s, y: F, [0.0, 0.5, 1.0, 1.75, 3.0], torch.zeros(3).double())
    torch.testing.assert_close(y, 3.0 * F, rtol=100 * EPS, atol=0)


@each_solver
def test_steps_are_differentiable_in_state_and_noise(solver: sa.Solver) -> None:
    def step(y: Tensor, dB: Tensor, H: Tensor, c: Tensor) -> Tensor:
        return solve(solver, lambda s, y: torch.sin(c * y) + s, [0.5, 0.8, 1.3, 1.9], y, [(dB, H)] * 3)

    inputs = [randn(2, seed=n).requires_grad_() for n in range(4)]
    assert gradcheck(step, inputs)
    gradients = torch.autograd.grad(step(*inputs).sum(), inputs, allow_unused=True)
    uses = [gradient is not None for gradient in gradients]
    assert uses == [True, True, solver.claims.levy == "space-time", True]


@each_solver
def test_objects_are_values(solver: sa.Solver) -> None:
    for other in (eval(repr(solver), vars(sa).copy()), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert other == solver
        assert hash(other) == hash(solver)
    with pytest.raises(AttributeError):
        solver.claims = None  # type: ignore[misc]
    claims = solver.claims
    assert claims.levy in ("none", "space-time")
    assert claims.strong >= 1
    assert (claims.strong > 1) == (claims.levy == "space-time")


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_the_ends_of_an_interval_are_bitwise_its_own(s0: float, s1: float) -> None:
    interval = sa.Interval(s0, s1)
    assert (interval.at(0.0), interval.at(1.0), interval.at(0.5)) == (s0, s1, s0 + 0.5 * (s1 - s0))
    assert interval.ds == s1 - s0


@pytest.mark.parametrize("order", [0, 5, 2.5, True, "2", None])
def test_adams_bashforth_refuses_other_orders(order: Any) -> None:
    with pytest.raises(ValueError, match=f"order: got {order!r}; pass 1, 2, 3 or 4"):
        sa.AdamsBashforth(order)


def test_adams_bashforth_refuses_other_variables() -> None:
    with pytest.raises(ValueError, match=r"variable: got 'rho'; pass one of \('log', 'clock'\)"):
        sa.AdamsBashforth(2, "rho")


# ---------------------------------------------------------------- tableaus, in exact fractions


def fraction(x: float) -> Fraction:
    exact = Fraction(x).limit_denominator(20_000)
    assert float(exact) == x
    return exact


def coefficients(solver: RungeKutta) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """The matrix a, padded with zeros, and the rows b, c, noise, levy."""
    tableau, size = solver.tableau, len(solver.tableau.b)
    a = [[fraction(x) for x in row] + [Fraction(0)] * (size - len(row)) for row in tableau.a]
    levy = tableau.levy or (0.0,) * size
    return a, [[fraction(x) for x in row] for row in (tableau.b, tableau.c, tableau.noise, levy)]


@pytest.mark.parametrize("solver", RUNGE_KUTTA, ids=repr)
def test_tableaus_satisfy_the_order_conditions(solver: RungeKutta) -> None:
    a, (b, c, noise, levy) = coefficients(solver)
    stages = range(len(b))

    def of(row: list[Fraction]) -> list[Fraction]:
        return [sum((a[i][j] * row[j] for j in stages), Fraction(0)) for i in stages]

    def dot(*rows: list[Fraction]) -> Fraction:
        return sum((math.prod(column) for column in zip(*rows, strict=True)), Fraction(0))

    assert all(len(row) == i for i, row in enumerate(solver.tableau.a))  # explicit
    assert len(b) == solver.claims.evaluations
    assert of([Fraction(1) for _ in stages]) == c
    # Hairer, Norsett and Wanner, Table II.2.2: one condition for each rooted tree.
    Ac, Acc = of(c), of([x * x for x in c])
    trees = [
        (1, dot(b), 1),
        (2, dot(b, c), 2),
        (3, dot(b, c, c), 3),
        (3, dot(b, Ac), 6),
        (4, dot(b, c, c, c), 4),
        (4, dot(b, c, Ac), 8),
        (4, dot(b, Acc), 12),
        (4, dot(b, of(Ac)), 24),
        (5, dot(b, c, c, c, c), 5),
        (5, dot(b, c, c, Ac), 10),
        (5, dot(b, Ac, Ac), 20),
        (5, dot(b, c, Acc), 15),
        (5, dot(b, c, of(Ac)), 30),
        (5, dot(b, of([x**3 for x in c])), 20),
        (5, dot(b, of([x * y for x, y in zip(c, Ac, strict=True)])), 40),
        (5, dot(b, of(Acc)), 60),
        (5, dot(b, of(of(Ac))), 120),
    ]
    assert solver.claims.ode <= 5
    for order, weight, density in trees:
        if order <= solver.claims.ode:
            assert weight == Fraction(1, density), (order, weight, density)
    # Additive noise. Over a step f(y0 + B_r) expands to f' B_r + f''/2 B_r^2, with int B_r dr = h (dB/2 + H), dB and H
    # independent of variances h and h/12, and E int B_r^2 dr = h^2/2.
    if solver.claims.ode >= 2:
        assert dot(b, noise) == Fraction(1, 2)
    if solver.claims.strong == 1.5:
        assert dot(b, levy) == 1
        assert dot(b, noise, noise) + dot(b, levy, levy) / 12 == Fraction(1, 2)
        assert (solver.claims.ode, solver.claims.levy) == (2, "space-time")
    else:
        assert noise == c
        assert not any(levy)


# ---------------------------------------------------------------- embedded rows


PAIRS = [solver for solver in RUNGE_KUTTA if solver.tableau.embedded]


@pytest.mark.parametrize("h", [0.3, -0.3])
@pytest.mark.parametrize(
    ("solver", "stable", "embedded"),
    [
        # R(z) of both rows: 1 + z + ... + z^p/p!, and beyond p what Hairer, Norsett and Wanner have or the stages give.
        (sa.BogackiShampine(), [1, 1, 1 / 2, 1 / 6], [1, 1, 1 / 2, 3 / 16, 1 / 48]),
        (
            sa.Dopri5(),
            [1, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 600],
            [1, 1, 1 / 2, 1 / 6, 1 / 24, 1097 / 120000, 161 / 120000, 1 / 24000],
        ),
    ],
    ids=["BogackiShampine", "Dopri5"],
)
def test_a_step_with_an_error_on_a_linear_problem(
    solver: RungeKutta, stable: list[float], embedded: list[float], h: float
) -> None:
    rate, y0 = f64([1.0, -0.5, 2.0]), randn(3)
    y1, error = solver.step_with_error(lambda s, y: rate * y, sa.Interval(0.5, 0.5 + h), y0)

    def polynomial(row: list[float]) -> Tensor:
        return sum(weight * (h * rate) ** k for k, weight in enumerate(row))  # type: ignore[return-value]

    torch.testing.assert_close(y1, polynomial(stable) * y0, rtol=20 * EPS, atol=0)
    expected = (polynomial(stable) - polynomial(embedded)) * y0
    # Sums of drifts of the size of y, some ten of them, that nearly cancel.
    torch.testing.assert_close(error, expected, rtol=0, atol=20 * EPS * float((h * rate * y0).abs().max()))


@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_a_step_with_an_error_is_the_step(solver: RungeKutta) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        y0, dB = randn(2, 3).to(dtype), randn(2, 3, seed=1).to(dtype)
        interval, calls = sa.Interval(2.0, 1.7, dB), []

        def drift(s: float, y: Tensor, calls: list[tuple[float, Tensor]] = calls) -> Tensor:
            calls.append((s, y))
            return tangled(s, y)

        y1, error = solver.step_with_error(drift, interval, y0)
        assert torch.equal(y1, solver.step(tangled, interval, y0, ())[0])
        assert (error.dtype, error.shape) == (dtype, y0.shape)
        assert len(calls) == solver.claims.evaluations + 1
        # First same as last: with y0 and y1 themselves, so that a drift can tell that it was asked before.
        (first, start), (last, end) = calls[0], calls[-1]
        assert (first, last) == (2.0, 1.7)
        assert start is y0
        assert end is y1


@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_estimates_of_errors_can_be_differentiated(solver: RungeKutta) -> None:
    def both(y: Tensor, dB: Tensor) -> tuple[Tensor, Tensor]:
        return solver.step_with_error(tangled, sa.Interval(0.5, 0.9, dB), y)

    assert gradcheck(both, [randn(2).requires_grad_(), randn(2, seed=1).requires_grad_()])


@pytest.mark.parametrize("solver", [s for s in RUNGE_KUTTA if s not in PAIRS], ids=repr)
def test_methods_without_a_second_row_estimate_nothing(solver: RungeKutta) -> None:
    with pytest.raises(TypeError, match=r"solver: got .* has no second row of weights .*; pass Dopri5\(\) or Bogacki"):
        solver.step_with_error(tangled, sa.Interval(0.5, 0.9), randn(2))


# ---------------------------------------------------------------- multistep weights


def weights(solver: sa.Solver, nodes: Sequence[float]) -> Tensor:
    """What the last step adds per unit of the drift at each node but the last, oldest first."""
    units, state = torch.eye(len(nodes) - 1, dtype=torch.float64), solver.initial_state
    for unit, (s0, s1) in zip(units, pairwise(nodes), strict=True):
        y, state = solver.step(lambda s, y, F=unit: F, sa.Interval(s0, s1), torch.zeros_like(unit), state)
    return y


def lagrange_integrals(nodes: Sequence[float], s0: float, s1: float, variable: str) -> list[float]:
    """``int_{s0}^{s1} l_j(u(s)) ds`` to 30 digits."""
    with mp.workdps(30):
        u: Callable[[Any], Any] = mp.log if variable == "log" else mp.mpf
        places = [u(mp.mpf(s)) for s in nodes]

        def integrand(j: int) -> Callable[[Any], Any]:
            others = [place for k, place in enumerate(places) if k != j]
            return lambda s: mp.fprod((u(s) - other) / (places[j] - other) for other in others)

        return [float(mp.quad(integrand(j), [s0, s1])) for j in range(len(nodes))]


@settings(max_examples=25)
@given(st.sampled_from(MULTISTEP), st.data())
def test_adams_bashforth_weights_are_integrals_of_lagrange_polynomials(
    solver: sa.AdamsBashforth, data: st.DataObject
) -> None:
    nodes = data.draw(clocks(steps=data.draw(st.integers(1, 6))))
    known = nodes[-1 - solver.order : -1] if solver.order < len(nodes) else nodes[:-1]
    expected = f64(lagrange_integrals(known, nodes[-2], nodes[-1], solver.variable))
    got = weights(solver, nodes)
    assert (got[: -len(known)] == 0).all()
    # Differences of |log s| < 10 that are 0.05 or more apart lose 200 ulps, and there are up to six.
    torch.testing.assert_close(got[-len(known) :], expected, rtol=0, atol=2000 * EPS * float(expected.abs().sum()))


@pytest.mark.parametrize("step", [8.0, 32.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_adams_bashforth_weights_are_exact_on_steps_of_many_units(order: int, sign: int, step: float) -> None:
    nodes = [math.exp(sign * u) for u in [*[0.0, 1.0, 3.0, 4.0][-order:], 4.0 + step]]
    expected = f64(lagrange_integrals(nodes[:-1], *nodes[-2:], "log"))
    got = weights(sa.AdamsBashforth(order, "log"), nodes)
    # Logarithms of up to 36 are rounded, taken apart and raised to a power: four times 36 ulps, and as many again.
    torch.testing.assert_close(got, expected, rtol=0, atol=300 * EPS * float(expected.abs().sum()))


@pytest.mark.parametrize(
    ("order", "textbook"),
    [(1, [1.0]), (2, [-1 / 2, 3 / 2]), (3, [5 / 12, -16 / 12, 23 / 12]), (4, [-9 / 24, 37 / 24, -59 / 24, 55 / 24])],
)
@pytest.mark.parametrize("h", [0.25, -0.25])
def test_adams_bashforth_on_a_uniform_clock_is_the_textbooks(order: int, textbook: list[float], h: float) -> None:
    nodes = [2.0 + n * h for n in range(order + 3)]
    expected = f64([0.0] * (len(nodes) - 1 - order) + [h * weight for weight in textbook])
    torch.testing.assert_close(weights(sa.AdamsBashforth(order, "clock"), nodes), expected, rtol=0, atol=100 * EPS)


@given(clocks(), st.sampled_from(["log", "clock"]))
def test_adams_bashforth_of_order_one_is_euler_bitwise(nodes: list[float], variable: str) -> None:
    noise = [(dB, 0.0) for dB in randn(len(nodes), 3)]
    y = randn(3, seed=1)
    euler = solve(sa.Euler(), tangled, nodes, y, noise)
    assert torch.equal(solve(sa.AdamsBashforth(1, variable), tangled, nodes, y, noise), euler)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_node_at_zero_is_infinitely_far_away_in_the_logarithm(order: int) -> None:
    nodes = [0.0, 0.5, 0.8, 1.5, 1.9]
    solver = sa.AdamsBashforth(order, "log")
    for count in range(3, 6):
        got = weights(solver, nodes[:count])
        assert got[0] == 0
        torch.testing.assert_close(got[1:], weights(solver, nodes[1:count]), rtol=0, atol=0)
    # It is the limit: weights differ by order 1 / |log s0|.
    errors = [
        float((weights(solver, [s0, *nodes[1:]]) - weights(solver, nodes)).abs().max()) for s0 in (1e-100, 1e-300)
    ]
    assert errors[1] <= 0.5 * errors[0] + 10 * EPS
    by_clock = lagrange_integrals(nodes[-1 - order : -1], nodes[-2], nodes[-1], "clock")
    got = weights(sa.AdamsBashforth(order, "clock"), nodes)[-order:]
    torch.testing.assert_close(got, f64(by_clock), rtol=0, atol=1000 * EPS)


# ---------------------------------------------------------------- multistep methods that another one starts


@given(st.sampled_from(STARTED), clocks(), st.sampled_from([torch.float64, torch.float32]))
def test_a_start_makes_the_first_steps_and_the_method_the_others(
    solver: sa.AdamsBashforth, nodes: list[float], dtype: torch.dtype
) -> None:
    plain, start = sa.AdamsBashforth(solver.order, solver.variable), solver.start
    assert start is not None
    y, state = randn(3).to(dtype), solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(nodes)):
        interval = sa.Interval(s0, s1, randn(3, seed=n + 1).to(dtype))
        expected = start.step(tangled, interval, y, ())[0] if n < solver.order - 1 else None
        if expected is None:
            expected = plain.step(tangled, interval, y, state)[0]  # given the same past
        before, (y, state) = y, solver.step(tangled, interval, y, state)
        assert torch.equal(y, expected)
        assert state[0][0] == s0
        assert torch.equal(state[0][1], tangled(s0, before))
        assert len(state) == min(n + 1, solver.order - 1)


@pytest.mark.parametrize("variable", ["log", "clock"])
@pytest.mark.parametrize(
    ("order", "start", "ode", "starting"),
    [
        (1, sa.RK4(), 1, ()),
        (2, sa.RK4(), 2, (4,)),
        (3, sa.Heun(), 3, (2, 2)),
        (4, sa.Heun(), 3, (2, 2, 2)),
        (4, sa.BogackiShampine(), 4, (3, 3, 3)),
        (4, sa.Euler(), 2, ()),
        (3, sa.AdamsBashforth(1), 2, ()),
    ],
    ids=str,
)
def test_the_order_is_that_of_the_start_and_one_more(
    order: int, start: sa.Solver, ode: int, starting: tuple[int, ...], variable: str
) -> None:
    solver = sa.AdamsBashforth(order, variable, start)
    assert solver.claims == sa.Claims(ode, 1.0, 1, weak=min(order, 2), starting=starting)
    assert solver.claims.calls(10) == sum(starting) + 10 - len(starting)
    assert solver.claims.calls(2) == sum(starting[:2]) + 2 - len(starting[:2])
    errors = []
    for steps in (64, 128, 256):
        nodes = [0.5 * 4.0 ** (n / steps) for n in range(steps + 1)]
        errors.append(error(solver, nodes))
    check_order(torch.stack(errors), ode)
    if ode < order:  # and no more, once the error of the start is the largest
        coarse = 512 if order == 4 and variable == "clock" else 256  # polynomials of the clock through four nodes
        grids = ([0.5 * 4.0 ** (n / steps) for n in range(steps + 1)] for steps in (coarse, 2 * coarse))
        rms = torch.stack([error(solver, nodes) for nodes in grids]).square().mean(1).sqrt()
        assert float((rms[0] / rms[1]).log2()) < ode + 0.5


def test_without_a_start_nothing_has_changed() -> None:
    assert repr(sa.AdamsBashforth(3, "clock")) == "AdamsBashforth(order=3, variable='clock')"
    assert repr(sa.AdamsBashforth(3, start=sa.RK4())) == "AdamsBashforth(order=3, variable='log', start=RK4())"
    assert sa.AdamsBashforth(3).claims == sa.Claims(ode=2, strong=1.0, evaluations=1, weak=2.0)
    y, nodes = randn(3), [0.5, 0.8, 1.5, 1.9, 2.0]
    ends = [solve(sa.AdamsBashforth(4, start=start), tangled, nodes, y) for start in (None, sa.Euler(), sa.RK4())]
    assert not torch.equal(ends[0], ends[1])  # on two and three nodes the method itself is better than Euler's
    assert not torch.equal(ends[0], ends[2])


def test_a_node_at_zero_is_dropped_after_a_start_too() -> None:
    nodes = [0.0, 0.5, 0.8, 1.5, 1.9]
    solver = sa.AdamsBashforth(3, "log", sa.RK4())
    started = solve(solver, tangled, nodes[:3], randn(3))
    by_hand = solve(sa.RK4(), tangled, nodes[:3], randn(3))
    assert torch.equal(started, by_hand)
    assert solve(solver, tangled, nodes, randn(3)).isfinite().all()


@pytest.mark.parametrize(
    ("start", "kind", "says"),
    [
        (sa.RK4, TypeError, r"start: got the class RK4; pass a one-step solver such as RK4\(\), or None"),
        ("rk4", TypeError, "start: got str; pass a one-step solver"),
        (sa.DPMSolverPP2M(), ValueError, r"start: got DPMSolverPP2M\(\), which remembers earlier steps"),
        (sa.Coupled(sa.Heun()), ValueError, r"start: got Coupled\(.*, which remembers earlier steps"),
        (sa.ShARK(), ValueError, r"start: got ShARK\(\), which asks for Levy areas"),
    ],
    ids=str,
)
def test_other_starts_are_refused(start: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        sa.AdamsBashforth(3, start=start)


@given(clocks(steps=3))
def test_dpm_solver_pp_2m_extrapolates_in_the_logarithm(nodes: list[float]) -> None:
    u = [math.log(s) for s in nodes]
    r, ds = (u[2] - u[1]) / (u[3] - u[2]), nodes[3] - nodes[2]
    expected = f64([0.0, -ds / (2 * r), ds * (1 + 1 / (2 * r))])
    torch.testing.assert_close(weights(sa.DPMSolverPP2M(), nodes), expected, rtol=0, atol=1e-12 * abs(ds))
    first = weights(sa.DPMSolverPP2M(), nodes[:2])
    assert first.tolist() == [nodes[1] - nodes[0]]
    assert weights(sa.DPMSolverPP2M(), [0.0, 0.5, 0.75]).tolist() == [0.0, 0.25]


# ---------------------------------------------------------------- orders of convergence


def check_order(errors: Tensor, claimed: float, cap: float = 0.3) -> None:
    """``errors``: (levels, samples) on grids that halve. The claim must not exceed the slope by what is left open."""

    def slopes(squares: Tensor) -> Tensor:
        return -squares.log2().diff(dim=0) / 2

    squares = errors**2
    slope = slopes(squares.mean(1))
    # Of each slope's remaining drift, c h, the last difference has shown half.
    left_open = 0.01 + 2 * float((slope[-1] - slope[-2]).abs())
    if (count := squares.shape[1]) >= 50:
        draws = torch.multinomial(torch.ones(2000, count), count, True, generator=torch.Generator().manual_seed(0))
        resampled = slopes(squares[-2:, draws].mean(2))[0]
        left_open += float((slope[-1] - resampled.quantile(0.001)).clamp(min=0))
    assert float(slope[-1]) >= claimed - min(left_open, cap), (slope, left_open)


OMEGA, C = f64([1.0, 2.0, 1.5, 0.5, 1.2, 0.7]), f64([1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
STRETCHES = {
    "uniform": lambda u: 0.5 + 1.5 * u,
    "geometric": lambda u: 0.5 * 4.0**u,
    "stretched": lambda u: 0.5 + 1.5 * math.expm1(u) / math.expm1(1),
}


def solution(s: float) -> Tensor:
    """Six solutions of ``y' = y^2 omega cos(omega s)``."""
    return 1 / (C - torch.sin(OMEGA * s))


def derivative(s: float, y: Tensor) -> Tensor:
    return y**2 * OMEGA * torch.cos(OMEGA * s)


def error(solver: sa.Solver, nodes: Sequence[float]) -> Tensor:
    return solve(solver, derivative, nodes, solution(nodes[0])) - solution(nodes[-1])


# The claimed order of every solver is an item of ``check_solver``, on clocks that rise and fall, uniform and uneven;
# tests/test_checks.py runs it on every solver.


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("solver", MULTISTEP, ids=repr)
def test_adams_bashforth_steps_have_their_full_order_once_the_past_is_exact(
    solver: sa.AdamsBashforth, stretch: str
) -> None:
    errors = []
    for steps in (32, 64, 128, 256):
        nodes = [STRETCHES[stretch](n / steps) for n in range(steps // 2 - solver.order, steps // 2 + 1)]
        exact = torch.stack([derivative(s, solution(s)) for s in nodes[:-1]])
        errors.append(weights(solver, nodes) @ exact - solution(nodes[-1]) + solution(nodes[-2]))
    check_order(torch.stack(errors), solver.order + 1)


@pytest.mark.parametrize("solver", MULTISTEP, ids=repr)
def test_adams_bashforth_has_its_full_order_after_a_graded_start(solver: sa.AdamsBashforth) -> None:
    errors = []
    for steps in (32, 64, 128):
        h = 1.5 / steps
        nodes, step = [0.5], h ** max(solver.order / 2, 1)
        while nodes[-1] + step < 2.0:
            nodes.append(nodes[-1] + step)
            step = min(2 * step, h)
        errors.append(error(solver, [*nodes, 2.0]))
    check_order(torch.stack(errors), solver.order)


def test_what_a_start_by_rk4_is_worth() -> None:
    """The numbers of theory/orders.md, O2: against quantile transport, from 60 starting points."""
    t_max, t_min = SCHEDULE.time(f64([-1.0, 1.0])).tolist()
    grid, x_T = sa.uniform_logsnr(SCHEDULE, 256, t_max=t_max, t_min=t_min), torch.linspace(-2.5, 2.5, 60).double()
    exact = MIXTURE.ode_map(x_T, SCHEDULE, t_max=t_max, t_min=t_min)
    rms = []
    for start in (None, sa.RK4()):
        solver = sa.AdamsBashforth(4, "log", start)
        x = sa.sample(MIXTURE.denoiser(SCHEDULE), x_T, frame=sa.Frame(SCHEDULE), grid=grid, solver=solver)
        rms.append(float((x - exact).square().mean().sqrt()))
    assert rms == pytest.approx([5.0e-6, 6.3e-10], rel=0.02)
    assert sa.AdamsBashforth(4, start=sa.RK4()).claims.calls(256) - sa.AdamsBashforth(4).claims.calls(256) == 9


def levels_of_gradients(solver: sa.Solver) -> tuple[int, int, int]:
    """Coarse enough for errors above 1e-11, to which the exact gradient is known. Polynomials through three nodes and
    more need finer grids. On these each solver but UniPC(3) fails with an order more than it claims."""
    if solver == sa.UniPC(3):
        return (32, 64, 128)
    if isinstance(solver, sa.AdamsBashforth) and solver.order >= 3:
        return (16, 32, 64)
    return (4, 8, 16) if solver.claims.ode == 5 else (8, 16, 32)


@cache
def start_and_gradient() -> tuple[list[float], Tensor, Tensor]:
    """The ends of the grids, x_T, and the exact gradient there."""
    t_max, t_min = SCHEDULE.time(f64([-1.5, 1.0])).tolist()
    x_T = SCHEDULE.alpha(t_max) * MIXTURE.sample(64, 1) + SCHEDULE.sigma(t_max) * randn(64)
    return [t_max, t_min], x_T, MIXTURE.ode_gradient(x_T, SCHEDULE, t_max, t_min)  # p_T(x_T) / p_0(x_0)


@each_solver
def test_order_of_the_gradient_in_x_T(solver: sa.Solver) -> None:
    # Each is measured in the data kind too, for GUARANTEES. In the others the clock falls; a solver sees no more of
    # them than the clock and a drift. Both variables of a method of Adams and Bashforth are in the same one.
    kind = ("noise", "flow")[SOLVERS.index(solver) // 2 % 2]
    (t_max, t_min), start, exact = start_and_gradient()
    x_T = start.clone().requires_grad_()
    frame, errors = sa.Frame(SCHEDULE, kind=kind), []
    for steps in levels_of_gradients(solver):
        grid = sa.uniform_logsnr(SCHEDULE, steps, t_max=t_max, t_min=t_min)
        # The sampler's equation, written out; test_guarantees.py holds it against ``sample``.
        weights, clock = frame.weight(grid), frame.clock(grid).tolist()
        x = weights[-1] * solve(solver, written_out(kind, 0.0), clock, x_T / weights[0])
        errors.append(torch.autograd.grad(x.sum(), x_T)[0] - exact)
    check_order(torch.stack(errors), solver.claims.ode)
