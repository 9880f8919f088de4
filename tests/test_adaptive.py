"""Clocks that are chosen: the controller's formulas, closed forms of clocks, paths of noise, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.adaptive import Controller, Increments, choose_clock
from sdeadjoint.solvers import Drift, RungeKutta

PAIRS = [sa.Dopri5(), sa.BogackiShampine()]
EPS = torch.finfo(torch.float64).eps
each_pair = pytest.mark.parametrize("solver", PAIRS, ids=repr)


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solved(drift: Drift, y: Tensor, clock: Tensor, solver: sa.Solver, noise: Increments | None = None) -> Tensor:
    state = solver.initial_state
    for a, b in pairwise(clock.tolist()):
        y, state = solver.step(drift, sa.Interval(a, b, *(noise(a, b) if noise else ())), y, state)
    return y


class Counted:
    """A drift that remembers what it was asked."""

    def __init__(self, drift: Drift) -> None:
        self.drift, self.calls = drift, list[tuple[float, Tensor]]()

    def __call__(self, s: float, y: Tensor) -> Tensor:
        self.calls.append((s, y))
        return self.drift(s, y)


# ---------------------------------------------------------------- the controller


def test_the_next_step_is_that_of_a_pi_controller() -> None:
    controller = Controller(rtol=1e-3, atol=0.0, safety=0.8)
    assert controller.factor(0.5, 0.25, 3.0) == pytest.approx(0.8 * 0.5 ** (-0.7 / 3) * 0.25 ** (0.4 / 3))
    assert controller.factor(2.0, 0.25, 3.0) == pytest.approx(0.8 * 2.0 ** (-1 / 3))  # rejected: the last one alone
    assert controller.accepts(1.0)
    assert not controller.accepts(1.0001)
    assert not controller.accepts(math.nan)
    assert (controller.factor(0.0, 1.0, 3.0), controller.factor(1e9, 1.0, 3.0)) == (5.0, 0.2)
    assert (controller.factor(math.inf, 1.0, 3.0), controller.factor(math.nan, 1.0, 3.0)) == (0.2, 0.2)


def test_errors_are_in_units_of_what_is_allowed() -> None:
    y0, y1 = f64([[1.0, -4.0], [2.0, 0.0]]), f64([[2.0, 3.0], [-1.0, 0.0]])
    error = f64([[0.3, 0.0], [0.0, 0.2]])
    allowed = 0.1 + 0.5 * f64([[2.0, 4.0], [2.0, 0.0]])
    ratio = error / allowed
    batch, sample = (Controller(0.5, 0.1, norm=norm).size(error, y0, y1) for norm in ("batch", "sample"))
    assert batch == pytest.approx(float(ratio.square().mean().sqrt()), rel=4 * EPS)
    assert sample == pytest.approx(float(ratio.square().mean(1).sqrt().max()), rel=4 * EPS)
    assert sample > batch
    assert math.isnan(Controller(0.5, 0.1).size(f64([math.nan, 0.0]), y0[0], y1[0]))
    # Nothing is allowed where the state is 0 and atol is; no error is no error all the same.
    assert Controller(0.5, 0.0).size(f64([0.0]), f64([0.0]), f64([0.0])) == 0
    assert math.isinf(Controller(0.5, 0.0).size(f64([0.1]), f64([0.0]), f64([0.0])))


def test_controllers_are_values() -> None:
    controller = Controller(1e-3, 1e-6, norm="sample")
    assert eval(repr(controller), {"Controller": Controller, "inf": math.inf}) == controller
    assert controller == Controller(rtol=1e-3, atol=1e-6, safety=0.9, smallest=0.0, largest=math.inf, norm="sample")


# ---------------------------------------------------------------- clocks in closed form


@pytest.mark.parametrize(
    ("solver", "estimate"),
    [
        # R - R^ at z = -h: (1/6 - 3/16) z^3 - z^4/48, and the stability functions of Dormand and Prince.
        (sa.BogackiShampine(), lambda h: h**3 / 48 - h**4 / 48),
        (
            sa.Dopri5(),
            lambda h: abs(
                -(h**5) * (1 / 120 - 1097 / 120000) + h**6 * (1 / 600 - 161 / 120000) + h**7 / 24000
            ),
        ),
    ],
    ids=["BogackiShampine", "Dopri5"],
)
def test_steps_on_an_exponential_decay_settle_where_the_controller_stands_still(
    solver: RungeKutta, estimate: Callable[[float], float]
) -> None:
    """With atol = 0 the size of a step's error is R - R^ in units of rtol, whatever y is."""
    rtol, k = (1e-6 if solver.claims.ode == 3 else 1e-8), solver.claims.ode
    clock = choose_clock(lambda s, y: -y, f64([3.0]), 0.0, 12.0, solver=solver, rtol=rtol, atol=0.0)
    still = brentq(lambda h: estimate(h) - rtol * 0.9 ** (k / 0.3), 1e-4, 0.5)
    steps = clock.diff()
    # Rounding of the drifts, 1e-16, is 1e-8 of the estimate; its k-th root is a smaller part of the step.
    torch.testing.assert_close(steps[-20:-2], torch.full((18,), still).double(), rtol=1e-7, atol=0)
    assert steps[-1] == pytest.approx(float(steps[-2]), rel=1e-9)  # two even steps at the end


@each_pair
def test_steps_without_error_grow_fivefold_up_to_the_largest(solver: RungeKutta) -> None:
    """Both rows integrate a linear function of s exactly; 2 is exact in binary, so errors are zero or round-off."""
    chosen = choose_clock(
        lambda s, y: torch.full_like(y, s), f64([0.0]), 0.0, 64.0, solver=solver, rtol=0.0, atol=1.0,
        first_step=0.125, largest=8.0,
    )  # fmt: skip
    starts = [0.0, 0.125, 0.75, 3.875]
    assert chosen.tolist() == [*starts, *(3.875 + 8.0 * n for n in range(1, 7)), 57.9375, 64.0]


@each_pair
def test_the_clock_of_the_mirrored_problem_is_mirrored(solver: RungeKutta) -> None:
    y0 = f64([1.0, 0.2])

    def drift(s: float, y: Tensor) -> Tensor:
        return y * (1 - y) * (0.5 + s * s)

    rising, falling = (
        choose_clock(
            lambda s, y, sign=sign: sign * drift(sign * s, y), y0, sign * 0.25, sign * 3.0,
            solver=solver, rtol=1e-5, atol=1e-7,
        )
        for sign in (1.0, -1.0)
    )  # fmt: skip
    assert len(rising) > 5
    assert torch.equal(rising, -falling)
    assert (falling.diff() < 0).all()


WIDTH = 0.02


def layer(s: float, y: Tensor) -> Tensor:
    """``y = tanh(s / WIDTH)``."""
    return torch.full_like(y, 1 / (WIDTH * math.cosh(s / WIDTH) ** 2))


def peak(s: float, y: Tensor) -> Tensor:
    """``y = 1 / (s^2 + WIDTH^2)``."""
    return -2 * s * y**2


def fall(s: float, y: Tensor) -> Tensor:
    """``y = (1 + s / 0.001)^(-3/2)``."""
    return -1.5 * y / (s + 1e-3)


def chirp(s: float, y: Tensor) -> Tensor:
    """``y = exp(sin(1 / s))``, on the way from a large s to a small one."""
    return -math.cos(1 / s) / s**2 * y


def orbit(s: float, y: Tensor) -> Tensor:
    """Kepler's ellipse: position and velocity come back after 2 pi."""
    r = y[:2].square().sum().sqrt()
    return torch.cat([y[2:], -y[:2] / r**3])


PROBLEMS: dict[str, tuple[Drift, Tensor, Tensor, float, float]] = {
    "fall": (fall, f64([1.0]), f64([1001**-1.5]), 0.0, 1.0),
    "chirp": (chirp, f64([math.exp(math.sin(1 / 2))]), f64([math.exp(math.sin(1 / 0.05))]), 2.0, 0.05),
    "orbit": (orbit, *[f64([0.1, 0.0, 0.0, math.sqrt(19.0)])] * 2, 0.0, 2 * math.pi),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@each_pair
def test_a_chosen_clock_takes_fewer_calls_than_an_even_one(solver: RungeKutta, problem: str) -> None:
    drift, y0, exact, s0, s1 = PROBLEMS[problem]
    counted = Counted(drift)
    clock = choose_clock(counted, y0, s0, s1, solver=solver, rtol=1e-6, atol=1e-6)
    # Even steps, for three times the calls that the choice took in all, rejected steps and the first ones included.
    steps = 3 * len(counted.calls) // solver.claims.evaluations
    even = torch.linspace(s0, s1, steps + 1, dtype=torch.float64)
    chosen, other = (float((solved(drift, y0, times, solver) - exact).norm()) for times in (clock, even))
    assert chosen < other


@each_pair
def test_steps_crowd_where_the_solution_turns(solver: RungeKutta) -> None:
    clock = choose_clock(layer, f64([-1.0]), -1.0, 1.0, solver=solver, rtol=0.0, atol=1e-6, largest=0.1)
    steps, middle = clock.diff(), (clock[1:] + clock[:-1]) / 2
    assert steps[middle.abs() < 2 * WIDTH].max() < WIDTH
    assert steps.max() > 4.9 * WIDTH
    assert (clock.abs() < 5 * WIDTH).sum() > 0.35 * len(clock)  # on a tenth of the way


def test_what_no_stage_sees_is_stepped_over() -> None:
    """As documented: the reason for ``largest``."""
    clock = choose_clock(layer, f64([-1.0]), -1.0, 1.0, solver=sa.Dopri5(), rtol=0.0, atol=1e-6, first_step=0.01)
    assert abs(float(solved(layer, f64([-1.0]), clock, sa.Dopri5())) - 1) > 0.1


@each_pair
@settings(max_examples=12)
@given(rate=st.floats(-3.0, 3.0), tolerance=st.sampled_from([1e-3, 1e-5, 1e-7]), falling=st.booleans())
def test_linear_problems_are_solved_to_the_tolerance(
    solver: RungeKutta, rate: float, tolerance: float, falling: bool
) -> None:
    s1 = -1.5 if falling else 1.5
    clock = choose_clock(lambda s, y: rate * y, f64([2.0]), 0.0, s1, solver=solver, rtol=tolerance, atol=0.0)
    error = float(solved(lambda s, y: rate * y, f64([2.0]), clock, solver)) / (2 * math.exp(rate * s1)) - 1
    # Each step adds at most what is allowed of its larger end, here the smaller one if it decays by less than e.
    assert abs(error) <= math.e * tolerance * len(clock)
    assert (clock[0], clock[-1]) == (0.0, s1)
    assert ((clock.diff() < 0) == falling).all()


# ---------------------------------------------------------------- what it asks, and what it gives


@each_pair
def test_a_solve_on_the_clock_makes_the_accepted_steps(solver: RungeKutta) -> None:
    counted, y0 = Counted(peak), f64([1 / (1 + WIDTH**2)]).requires_grad_()
    clock = choose_clock(counted, y0, -1.0, 1.0, solver=solver, rtol=1e-5, atol=1e-6)
    last, end = counted.calls[-1]
    assert last == 1.0
    assert torch.equal(end, solved(peak, y0, clock, solver))
    assert (clock.dtype, clock.device.type, clock.requires_grad, y0.grad) == (torch.float64, "cpu", False, None)
    assert not any(y.requires_grad for _, y in counted.calls)
    again = choose_clock(peak, y0, -1.0, 1.0, solver=solver, rtol=1e-5, atol=1e-6)
    assert torch.equal(clock, again)


@each_pair
def test_a_step_costs_what_the_solver_claims(solver: RungeKutta) -> None:
    """The drift at a step's end is the next one's first stage; where a step is rejected its start is known too."""
    smooth = Counted(lambda s, y: -y)
    clock = choose_clock(smooth, f64([1.0]), 0.0, 5.0, solver=solver, rtol=1e-6, atol=0.0)
    assert len(smooth.calls) == solver.claims.evaluations * (len(clock) - 1) + 2
    rejected = Counted(lambda s, y: -y)
    clock = choose_clock(rejected, f64([1.0]), 0.0, 5.0, solver=solver, rtol=1e-6, atol=0.0, first_step=5.0)
    tried, rest = divmod(len(rejected.calls) - 1, solver.claims.evaluations)
    assert rest == 0
    assert tried > len(clock) - 1


def test_the_clock_of_a_sample_does_not_depend_on_calmer_ones() -> None:
    def drift(s: float, y: Tensor) -> Tensor:
        return -y * y * (1 + s)

    wild, calm = f64([[4.0, 2.0]]), f64([[0.01, 0.02]])
    options: dict[str, Any] = {"solver": sa.BogackiShampine(), "rtol": 0.0, "atol": 1e-5}
    alone, together = (
        choose_clock(drift, y, 0.0, 2.0, **options, norm="sample", first_step=0.01)
        for y in (wild, torch.cat([wild, calm, calm]))
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    mean = choose_clock(drift, torch.cat([wild, calm, calm]), 0.0, 2.0, **options, first_step=0.01)
    assert len(mean) < len(alone)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.bfloat16, 0.1)]
)
def test_states_of_other_kinds(dtype: torch.dtype, rtol: float, shape: tuple[int, ...]) -> None:
    y0 = torch.ones(*shape, 2, dtype=dtype)[..., 0] / 2  # not contiguous

    def drift(s: float, y: Tensor) -> Tensor:
        assert (y.dtype, y.shape, isinstance(s, float)) == (dtype, y0.shape, True)
        return y * math.cos(s)

    for norm in ("batch",) if shape == () else ("batch", "sample"):
        clock = choose_clock(drift, y0, 0.0, 3.0, solver=sa.BogackiShampine(), rtol=rtol, atol=0.0, norm=norm)
        assert clock.dtype == torch.float64
        wide = choose_clock(
            lambda s, y: y * math.cos(s), y0.double(), 0.0, 3.0, solver=sa.BogackiShampine(), rtol=rtol, atol=0.0
        )
        assert len(clock) <= 2 * len(wide) + 2  # rounding is below the tolerance, and no reason for small steps
        end = solved(drift, y0, clock, sa.BogackiShampine())
        assert (end.double() / math.exp(math.sin(3.0)) * 2 - 1).abs().max() < 2 * rtol * len(clock)


def test_bounds_of_a_step_hold() -> None:
    def chosen(**bounds: Any) -> Tensor:
        return choose_clock(lambda s, y: -y, f64([1.0]), 0.0, 4.0, solver=sa.Dopri5(), rtol=1e-6, atol=0.0, **bounds)

    assert chosen(largest=0.1).diff().max() <= 0.1 * (1 + 8 * EPS)
    assert chosen(smallest=0.05).diff()[:-1].min() >= 0.05
    assert float(chosen(first_step=1e-3)[1]) == 1e-3
    assert chosen(first_step=100.0)[1] < 4.0  # no further than s1, and rejected


def test_a_step_that_was_too_long_is_not_tried_again_at_once() -> None:
    """On a kink: steps up to it and beyond it have no error, those across it a large one."""
    tried: list[tuple[float, float]] = []

    def silent(a: float, b: float) -> tuple[Tensor, Tensor]:
        tried.append((a, b))
        return f64([0.0]), f64([0.0])

    clock = choose_clock(
        lambda s, y: torch.full_like(y, 1e3 * max(0.0, s - 1)), f64([0.0]), 0.0, 3.0,
        solver=sa.BogackiShampine(), rtol=0.0, atol=1e-3, first_step=0.25, noise=silent,
    ).tolist()  # fmt: skip
    accepted = set(pairwise(clock))
    after = [n for n in range(1, len(tried) - 1) if tried[n] in accepted and tried[n - 1] not in accepted]
    assert len(after) > 2
    lengths = [b - a for a, b in tried]
    assert all(lengths[n + 1] <= lengths[n] * (1 + 1e-12) for n in after)


def test_a_drift_that_is_not_finite_too_far_ahead_is_approached_by_shorter_steps() -> None:
    def drift(s: float, y: Tensor) -> Tensor:
        return -2 * torch.sqrt(y)  # y = (1 - s)^2, which an overlong step leaves

    clock = choose_clock(drift, f64([1.0]), 0.0, 0.9, solver=sa.Dopri5(), rtol=1e-5, atol=1e-7, first_step=0.9)
    assert float(solved(drift, f64([1.0]), clock, sa.Dopri5())) == pytest.approx(0.01, rel=1e-3)


# ---------------------------------------------------------------- along a path


def path(seed: int, like: Tensor) -> Increments:
    """A path that depends on its seed alone, between any two values, in the direction of the solve."""
    whole = sa.BrownianPath(seed, refinable=True)

    def noise(a: float, b: float) -> tuple[Tensor, Tensor]:
        drawn = whole.bind(f64(sorted((a, b))), like, True).increment(0)
        assert drawn.H is not None
        return (drawn.dB, drawn.H) if a < b else (-drawn.dB, drawn.H)

    return noise


def stiffer(s: float, y: Tensor) -> Tensor:
    """Noise matters twenty times as much near s = 1."""
    return -(1 + 20 * math.exp(-(((s - 1) / 0.05) ** 2))) * torch.tanh(y)


@pytest.mark.parametrize("ends", [(0.25, 2.25), (2.25, 0.25)], ids=["rising", "falling"])
def test_rejected_steps_change_nothing_of_the_path(ends: tuple[float, float]) -> None:
    y0, asked = torch.zeros(8, dtype=torch.float64), list[tuple[float, float]]()
    fixed, counted = path(3, y0), Counted(stiffer)

    def noise(a: float, b: float) -> tuple[Tensor, Tensor]:
        asked.append((a, b))
        return fixed(a, b)

    solver = sa.BogackiShampine()
    clock = choose_clock(counted, y0, *ends, solver=solver, rtol=0.0, atol=0.05, noise=noise, first_step=1.0)
    steps = set(pairwise(clock.tolist()))
    assert steps < set(asked)  # some were rejected
    end = [y for s, y in counted.calls if s == ends[1]][-1]
    assert torch.equal(end, solved(stiffer, y0, clock, solver, fixed))
    total = torch.stack([fixed(a, b)[0] for a, b in pairwise(clock.tolist())]).sum(0)
    # A hundred sums of numbers of size 1.
    torch.testing.assert_close(total, fixed(*ends)[0], rtol=0, atol=1000 * EPS)


def test_tighter_tolerances_are_closer_to_the_solution_of_the_path() -> None:
    y0 = torch.full((16,), 0.5, dtype=torch.float64)
    noise = path(5, y0)
    fine = torch.linspace(0.25, 2.25, 513, dtype=torch.float64)
    exact, errors, widths = solved(stiffer, y0, fine, sa.ShARK(), noise), [], []
    for atol in (0.1, 0.01):
        clock = choose_clock(stiffer, y0, 0.25, 2.25, solver=sa.BogackiShampine(), rtol=0.0, atol=atol, noise=noise)
        errors.append(float((solved(stiffer, y0, clock, sa.BogackiShampine(), noise) - exact).square().mean().sqrt()))
        near = (clock[1:] - 1).abs() < 0.05
        widths.append(float(clock.diff()[near].mean() / clock.diff()[~near].mean()))
    assert errors[1] < errors[0] / 2
    assert widths[1] < 0.5


def test_the_noise_that_no_stage_sees_is_in_the_estimate() -> None:
    """dB = 0 and a constant H: the error of a step of ``F = c y`` from 0 is ``c h H``, and settles at 0.9^5."""
    c, H, atol = 3.0, 0.01, 1e-3

    def noise(a: float, b: float) -> tuple[Tensor, Tensor]:
        return f64([0.0]), f64([H])

    clock = choose_clock(
        lambda s, y: c * y, f64([0.0]), 0.0, 2.0, solver=sa.Dopri5(), rtol=0.0, atol=atol, noise=noise, first_step=0.1
    )
    # The steps settle by a factor 1 - 0.3/1.5 at a time.
    assert clock.diff()[60:-2].tolist() == pytest.approx([atol * 0.9**5 / (c * H)] * (len(clock) - 63), rel=1e-4)


# ---------------------------------------------------------------- what is refused


def decay(s: float, y: Tensor) -> Tensor:
    return -y


REFUSED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, r"solver: got RK4\(\), which has no embedded row .* pass Dopri5\(\)", {"solver": sa.RK4()}),
    (TypeError, r"solver: got AdamsBashforth\(.*, which has no embedded row", {"solver": sa.AdamsBashforth()}),
    (TypeError, "solver: got the class Dopri5", {"solver": sa.Dopri5}),
    (TypeError, r"drift: got float; pass a function F\(s, y\)", {"drift": 1.0}),
    (TypeError, "noise: got int; pass a function noise", {"noise": 3}),
    (TypeError, "y0: got list", {"y0": [1.0]}),
    (TypeError, "y0: got torch.int64; pass a tensor of float64", {"y0": torch.ones(2, dtype=torch.int64)}),
    (TypeError, "y0: got torch.float16", {"y0": torch.ones(2, dtype=torch.float16)}),
    (ValueError, r"y0: got shape \(0,\)", {"y0": torch.ones(0)}),
    (ValueError, r"y0: got shape \(\) for norm='sample'", {"y0": torch.tensor(1.0), "norm": "sample"}),
    (ValueError, "y0: it holds NaN", {"y0": f64([math.nan])}),
    (ValueError, "norm: got 'max'; pass one of", {"norm": "max"}),
    (ValueError, "rtol: got -1.0; pass a finite number >= 0", {"rtol": -1.0}),
    (ValueError, "atol: got inf; pass a finite", {"atol": math.inf}),
    (ValueError, "rtol, atol: got 0 for both", {"rtol": 0, "atol": 0}),
    (TypeError, "rtol: got '1e-3'; pass a number", {"rtol": "1e-3"}),
    (TypeError, "atol: got True; pass a number", {"atol": True}),
    (
        ValueError,
        r"rtol, atol: got 1e-09 and 0.0 for a state of torch.float32, which rounds by 1.2e-07 .* pass rtol=1e-06",
        {"y0": torch.ones(2), "rtol": 1e-9, "atol": 0.0},
    ),
    (ValueError, "smallest: got -0.1", {"smallest": -0.1}),
    (ValueError, "largest: got 0.1 for smallest=0.2", {"smallest": 0.2, "largest": 0.1}),
    (ValueError, "first_step: got 0.0; pass a positive length", {"first_step": 0}),
    (ValueError, "first_step: got 2.0; pass a positive length from smallest=0.0 to largest=1.0",
     {"first_step": 2.0, "largest": 1.0}),
    (ValueError, "s1: got 0.0, which is s0 too", {"s1": 0.0}),
    (ValueError, "s0: got inf; pass a finite clock value", {"s0": math.inf}),
    (TypeError, "s1: got None; pass a number", {"s1": None}),
    (ValueError, "max_steps: got 0; pass an integer >= 1", {"max_steps": 0}),
    (ValueError, "max_steps: got 2.5; pass an integer >= 1", {"max_steps": 2.5}),
    (ValueError, r"max_steps: 3 steps reach s = .* on the way from 0.0 to 4.0, 3 of them accepted", {"max_steps": 3}),
    (ValueError, r"drift: returned torch.float64 \(1,\) at s = 0.0 for a state of torch.float64 \(2,\)",
     {"drift": lambda s, y: y[:1]}),
    (ValueError, r"drift: returned torch.float32 \(2,\) at s", {"drift": lambda s, y: y.float()}),
    (ValueError, "drift: returned float at s = 0.0", {"drift": lambda s, y: 1.0}),
    (ValueError, "drift: it is not finite .* at s = 0.0, the start", {"drift": lambda s, y: y / 0}),
    (ValueError, "drift: at s = 1.9.* even a step of .* meets values that are not finite",
     {"drift": lambda s, y: y if s < 2 else y / 0}),
    (ValueError, r"rtol, atol: at s = 0.0 even a step of 0.5 has .* times the error that rtol=1e-06 and atol=0.0 "
     "allow, and it is the smallest that was asked for", {"smallest": 0.5}),
    (ValueError, r"rtol, atol: at s = 1.9.* even a step of .* has .* times the error.* as float64 resolves",
     {"drift": lambda s, y: 1 / (2 - s) ** 2 * torch.ones_like(y), "atol": 1e-6}),
    (ValueError, r"noise: returned H of shape \(1,\) from 0.0 to .*; return the state's, \(2,\)",
     {"noise": lambda a, b: (torch.zeros(2), torch.zeros(1))}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "says", "changes"), REFUSED, ids=[says[:40] for _, says, _ in REFUSED])
def test_what_is_refused(kind: type[Exception], says: str, changes: dict[str, Any]) -> None:
    call: dict[str, Any] = {
        "drift": decay, "y0": f64([1.0, 2.0]), "s0": 0.0, "s1": 4.0, "solver": sa.Dopri5(), "rtol": 1e-6, "atol": 0.0,
    }  # fmt: skip
    call |= changes
    positional = [call.pop(name) for name in ("drift", "y0", "s0", "s1")]
    with pytest.raises(kind, match=says):
        choose_clock(*positional, **call)


@pytest.mark.parametrize("safety", [0.0, 1.0, math.nan])
def test_safety_is_below_one(safety: float) -> None:
    with pytest.raises(ValueError, match="safety: got"):
        Controller(1e-3, 1e-6, safety=safety)


def test_errors_of_a_drift_are_its_own() -> None:
    def drift(s: float, y: Tensor) -> Tensor:
        raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        choose_clock(drift, f64([1.0]), 0.0, 1.0, solver=sa.Dopri5(), rtol=1e-3, atol=0.0)


def test_the_suggested_first_step_is_small_against_the_solution() -> None:
    """For y' = c y on a span of 2 / c, in units of the span: d1 = 2e6 and d2 = 4e6 of what is allowed."""
    for rate in (1.0, 100.0):
        clock = choose_clock(
            lambda s, y, r=rate: r * y, f64([1.0]), 0.0, 2 / rate, solver=sa.Dopri5(), rtol=1e-6, atol=0.0
        )
        first = float(clock[1])
        assert first * rate == pytest.approx(2 * (0.01 / 4e6) ** 0.2, rel=1e-9)
    still = choose_clock(lambda s, y: 0 * y, f64([1.0]), 0.0, 2.0, solver=sa.Dopri5(), rtol=1e-6, atol=0.0)
    assert float(still[1]) == 2e-6
    assert np.all(np.diff(still.numpy()) > 0)
