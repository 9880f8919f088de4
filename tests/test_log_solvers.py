"""DPMSolver3 and UniPC: published formulas, coefficients in closed form, diffusers' schedulers, and what is refused.

Both sides of a comparison do the same few float64 operations a step in another order: samples agree to 1e-12 relative.
diffusers' schedulers have their tables widened to float64; its UniPC solves a linear system for its weights, which
loses some digits: 1e-10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import diffusers
import mpmath as mp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers.interpolation import integrals
from theory import logarithmic
from theory import order_conditions as oc

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning"),  # the noise kind
]

EPS = torch.finfo(torch.float64).eps
VARIANTS = ("dpmsolver", "heun", "midpoint")
SCHEDULE = sa.VPLinear()
MIX = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x @ MIX + torch.sin(3 * t)[:, None])


def agree(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    assert float((got - want).norm() / want.norm()) <= tolerance


def uneven(steps: int) -> Tensor:
    """Times whose steps in lambda alternate in length."""
    lengths = f64([1.0 + 0.6 * (-1) ** n * math.cos(n) for n in range(steps)])
    places = torch.cat([f64([0.0]), lengths.cumsum(0) / lengths.sum()])
    lam0, lam1 = SCHEDULE.lam(f64([0.95, 0.02])).tolist()
    return SCHEDULE.time(lam0 + (lam1 - lam0) * places)


def even(steps: int) -> Tensor:
    return sa.uniform_logsnr(SCHEDULE, steps, t_max=0.95, t_min=0.02)


# ---------------------------------------------------------------- DPMSolver3: published, and in closed form


@pytest.mark.parametrize("kind", ["noise", "data"])
def test_dpm_solver_3_is_its_published_formula(kind: str) -> None:
    """Lu et al. (2022a), Algorithm 2, in x-space, and its form for the data prediction."""
    grid, x_T = uneven(5), randn(3, 4)
    denoiser = sa.Denoiser(network, SCHEDULE, "epsilon" if kind == "noise" else "sample")

    def out(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t.expand(3))

    x, sign = x_T, 1.0 if kind == "noise" else -1.0
    for t0, t1 in pairwise(grid):
        lam0, h = SCHEDULE.lam(t0), SCHEDULE.lam(t1) - SCHEDULE.lam(t0)
        ta, tb = (SCHEDULE.time(lam0 + r * h) for r in (1 / 3, 2 / 3))

        def linear(t: Tensor, x: Tensor = x, t0: Tensor = t0) -> Tensor:
            part = SCHEDULE.alpha if kind == "noise" else SCHEDULE.sigma
            return part(t) / part(t0) * x

        def factor(t: Tensor) -> Tensor:
            """sigma(t) of the noise kind, alpha(t) of the data kind, with the sign of its formula."""
            return SCHEDULE.sigma(t) if kind == "noise" else SCHEDULE.alpha(t)

        z = sign * h
        F1 = out(x, t0)
        F2 = out(linear(ta) - factor(ta) * torch.expm1(z / 3) * F1, ta)
        phi = torch.expm1(2 * z / 3) / (2 * z / 3) - 1
        F3 = out(linear(tb) - factor(tb) * torch.expm1(2 * z / 3) * F1 - 2 * factor(tb) * phi * (F2 - F1), tb)
        last = torch.expm1(z) / z - 1
        x = linear(t1) - factor(t1) * torch.expm1(z) * F1 - 1.5 * factor(t1) * last * (F3 - F1)
    got = sa.sample(denoiser, x_T, frame=sa.Frame(SCHEDULE, kind=kind), grid=grid, solver=sa.DPMSolver3())
    agree(got, x)


Rows = tuple[list[list[float]], list[float], list[float]]  # a, b and c


def read_off(solver: sa.Solver, s0: float, s1: float, stages: int) -> Rows:
    """``a``, ``b`` and ``c`` of a step, in units of ds: drifts that are unit vectors show their weights."""
    ds, asked = s1 - s0, list[tuple[float, Tensor]]()

    def drift(s: float, y: Tensor) -> Tensor:
        asked.append((s, y))
        return torch.eye(stages, dtype=torch.float64)[len(asked) - 1]

    y, _ = solver.step(drift, sa.Interval(s0, s1), torch.zeros(stages, dtype=torch.float64), ())
    return [(y / ds).tolist() for _, y in asked], (y / ds).tolist(), [(s - s0) / ds for s, _ in asked]


def exact_tableau(variant: str, h: float) -> Rows:
    """The same to 30 digits, by quadrature."""
    with mp.workdps(30):
        third, ds = mp.mpf(1) / 3, mp.expm1(mp.mpf(h))

        def lagrange(places: Sequence[Any], j: int, end: Any) -> Any:
            others = [place for k, place in enumerate(places) if k != j]
            return (
                mp.quad(lambda v: mp.exp(h * v) * h * mp.fprod((v - o) / (places[j] - o) for o in others), [0, end])
                / ds
            )

        c = [mp.mpf(0), mp.expm1(h * third) / ds, mp.expm1(2 * h * third) / ds]
        slope = c[2] if variant == "midpoint" else lagrange([0, third], 1, 2 * third)
        if variant == "heun":
            b = [lagrange([0, third, 2 * third], j, 1) for j in range(3)]
        else:
            last = lagrange([0, 2 * third], 1, 1)
            b = [1 - last, mp.mpf(0), last]
        a = [[0, 0, 0], [c[1], 0, 0], [c[2] - slope, slope, 0]]
        return [[float(x) for x in row] for row in a], [float(x) for x in b], [float(x) for x in c]


@each_variant
@pytest.mark.parametrize("h", [1e-3, 0.3, 2.0, 8.0, -0.3, -2.0, -8.0])
def test_coefficients_are_integrals_of_interpolated_drifts(variant: str, h: float) -> None:
    # Sums of 40 terms, polynomials of up to 3, each rounded a few times; small steps lose digits in s1 - s0, 1e-16 / h.
    for found, exact in zip(
        read_off(sa.DPMSolver3(variant), 1.0, math.exp(h), 3), exact_tableau(variant, h), strict=True
    ):
        torch.testing.assert_close(f64(found), f64(exact), rtol=0, atol=400 * EPS * max(1, 1 / abs(h)))


@each_variant
def test_the_theorys_series_are_the_solvers_coefficients(variant: str) -> None:
    method = logarithmic.dpm_solver_3(variant)
    for h in (0.1, -0.1):
        a, b, c = read_off(sa.DPMSolver3(variant), 2.0, 2.0 * math.exp(h), 3)
        for found, series in zip((*a, b, c), (*method.a, method.b, method.c), strict=True):
            # Cut off after h^7 or so, by the quotients' loss of a term.
            assert found == pytest.approx([entry.at(h) for entry in series], abs=1e-8)  # type: ignore[attr-defined]


@each_variant
def test_the_order_is_computed_from_the_series(variant: str) -> None:
    third = Fraction(1, 3)
    assert logarithmic.ode_order(logarithmic.dpm_solver_3(variant)) == sa.DPMSolver3(variant).claims.ode == 3
    # The third stage stands at 2/3 or the order is 2; the second one is free.
    assert logarithmic.ode_order(logarithmic.dpm_solver_3(variant, third, Fraction(3, 5))) == 2
    assert logarithmic.ode_order(logarithmic.dpm_solver_3(variant, Fraction(1, 4))) == 3
    # To lowest order it is Heun's method of order 3, and so has weak order 1.
    nodes = (0.0, 1 / 3, 2 / 3)
    lowest = oc.Coefficients.of(((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75), nodes, nodes)
    method = logarithmic.dpm_solver_3(variant)
    assert tuple(entry.terms[0] for entry in method.b) == lowest.b  # type: ignore[attr-defined]
    assert tuple(entry.terms[0] for entry in method.c) == lowest.c  # type: ignore[attr-defined]
    assert oc.weak_order(lowest) == sa.DPMSolver3(variant).claims.weak == 1


@each_variant
def test_one_wrong_coefficient_is_seen_in_the_order(variant: str) -> None:
    """The series of every coefficient, 1 % off in its first term."""
    method, wrong = logarithmic.dpm_solver_3(variant), Fraction(101, 100)
    changed = []
    for j in range(3):
        b = (*method.b[:j], method.b[j] * wrong, *method.b[j + 1 :])
        c = (*method.c[:j], method.c[j] * wrong, *method.c[j + 1 :])
        changed += [(method.b[j], {"b": b}), (method.c[j], {"c": c})]
        for i in range(3):
            row = (*method.a[i][:j], method.a[i][j] * wrong, *method.a[i][j + 1 :])
            changed.append((method.a[i][j], {"a": (*method.a[:i], row, *method.a[i + 1 :])}))
    for entry, change in changed:
        if entry.terms[0]:  # type: ignore[attr-defined]
            parts = {name: getattr(method, name) for name in ("a", "b", "c", "noise", "levy")}
            assert logarithmic.ode_order(oc.Coefficients(**(parts | change))) < 3


@each_variant
def test_steps_from_zero_are_eulers(variant: str) -> None:
    y, interval = randn(3), sa.Interval(0.0, 0.5, randn(3, seed=1))
    got = sa.DPMSolver3(variant).step(lambda s, y: torch.sin(y) + s, interval, y, ())[0]
    assert torch.equal(got, sa.Euler().step(lambda s, y: torch.sin(y) + s, interval, y, ())[0])


# ---------------------------------------------------------------- UniPC in closed form


def weights(solver: sa.Solver, nodes: Sequence[float]) -> list[float]:
    """What the last step adds to the state that the step before it returned, per unit of each drift, newest first."""
    units, state = torch.eye(len(nodes) - 1, dtype=torch.float64), solver.initial_state
    y = torch.zeros(len(nodes) - 1, dtype=torch.float64)
    for unit, (s0, s1) in zip(units, pairwise(nodes), strict=True):
        before = y
        y, state = solver.step(lambda s, y, F=unit: F, sa.Interval(s0, s1), y, state)
    return (y - before).flip(0).tolist()


def lagrange(nodes: Sequence[float], s0: float, s1: float) -> list[float]:
    """``int_{s0}^{s1} l_j(log s) ds`` to 30 digits."""
    with mp.workdps(30):
        u = [mp.log(mp.mpf(s)) for s in nodes]

        def integrand(j: int) -> Callable[[Any], Any]:
            return lambda s: mp.fprod((mp.log(s) - o) / (u[j] - o) for k, o in enumerate(u) if k != j)

        return [float(mp.quad(integrand(j), [s0, s1])) for j in range(len(u))]


@pytest.mark.parametrize("nodes", [[0.5, 0.8, 1.1, 1.7, 2.0], [4.0, 2.5, 2.0, 1.1, 0.9]], ids=["rising", "falling"])
@pytest.mark.parametrize("variant", ["bh2", "bh1"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_step_corrects_and_predicts(order: int, variant: str, nodes: list[float]) -> None:
    solver, newest = sa.UniPC(order, variant), list(reversed(nodes[:-1]))  # the last is where the step goes
    s_past, s0, s1 = nodes[-3:]

    def scale(a: float, b: float) -> float:
        return b - a if variant == "bh2" else b * math.log(b / a)

    def predicted(past: list[float], a: float, b: float) -> list[float]:
        if order == 1:
            return [b - a]
        if order == 2:
            slope = 0.5 * scale(a, b) * math.log(b / a) / math.log(past[0] / past[1])
            return [b - a + slope, -slope]
        return lagrange(past[:3], a, b)

    half = 0.5 * scale(s_past, s0)
    corrected = [half, s0 - s_past - half] if order == 1 else lagrange(newest[: order + 1], s_past, s0)
    expected = dict.fromkeys(range(len(newest)), 0.0)
    for j, weight in enumerate(predicted(newest, s0, s1)):
        expected[j] += weight
    for j, weight in enumerate(corrected):
        expected[j] += weight
    for j, weight in enumerate(predicted(newest[1:], s_past, s0)):
        expected[j + 1] -= weight
    assert weights(solver, nodes) == pytest.approx([*expected.values()], abs=1e-13)


@pytest.mark.parametrize("variant", ["bh2", "bh1"])
def test_lower_orders_start(variant: str) -> None:
    nodes = [0.5, 0.8, 1.1, 1.7]
    for steps in (1, 2, 3):
        orders = [weights(sa.UniPC(order, variant), nodes[: steps + 1]) for order in (1, 2, 3)]
        assert orders[steps - 1 :] == [orders[steps - 1]] * (4 - steps)
    assert weights(sa.UniPC(3, variant), nodes[:2]) == [0.8 - 0.5]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh2", "bh1"])
def test_a_node_at_zero_is_infinitely_far_away(variant: str, order: int) -> None:
    solver = sa.UniPC(order, variant)
    assert weights(solver, [0.0, 0.5]) == [0.5]
    # The first step is corrected by the mean of its ends; a second drift is not there to predict from.
    assert weights(solver, [0.0, 0.5, 0.8]) == pytest.approx([0.3 + 0.25, -0.25], abs=1e-15)
    assert weights(solver, [0.0, 0.5, 0.8, 1.2, 1.5])[3] == 0


@pytest.mark.parametrize("variant", ["bh2", "bh1"])
@pytest.mark.parametrize("places", [(0,), (0, -1), (0, -2), (0, -1, -2), (0, -1, -4), (0, -3, -4)], ids=str)
def test_the_corrector_has_one_order_more(places: tuple[int, ...], variant: str) -> None:
    past = [Fraction(place, 2) for place in places]
    for corrects in (False, True):
        nodes = [Fraction(1), *past] if corrects else past
        found = logarithmic.uni_pc_weights(nodes, variant, corrects)
        assert logarithmic.multistep_order(found, nodes) == len(nodes)
        # And they are the solver's, whose private methods these are: with s0 = 1.
        h, solver = 0.1, sa.UniPC(len(past), variant)
        clocks = [math.exp(h * float(place)) for place in past]
        method = solver._corrector if corrects else solver._predictor
        assert method(clocks, math.exp(h)) == pytest.approx([h * w.at(h) for w in found], abs=1e-10)


def test_a_wrong_weight_has_a_lower_order() -> None:
    places = [Fraction(1), Fraction(0), Fraction(-1)]
    right = logarithmic.uni_pc_weights(places, "bh2", True)
    for j in range(3):
        wrong = [w * Fraction(101, 100) if k == j else w for k, w in enumerate(right)]
        assert logarithmic.multistep_order(wrong, places) == 0


@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4), st.booleans())
def test_the_integrals_of_a_partition_add_up_to_the_step(lengths: list[float], falling: bool) -> None:
    u = [0.0]
    for length in lengths:
        u.append(u[-1] - length if falling else u[-1] + length)
    found = integrals(u[:-1], u[-2], u[-1], logarithmic=True)
    assert math.fsum(found) == pytest.approx(math.exp(u[-1]) - math.exp(u[-2]), abs=1e-11 * sum(map(abs, found)))


# ---------------------------------------------------------------- diffusers


def widened(scheduler: Any, nodes: Tensor) -> Any:
    """A scheduler on these nodes, its table of levels in float64."""
    scheduler.set_timesteps(len(nodes) - 1)
    ratio = (SCHEDULE.sigma(nodes) / SCHEDULE.alpha(nodes)).clone()
    assert len(scheduler.sigmas) == len(ratio)
    scheduler.sigmas = ratio
    return scheduler


def through(scheduler: Any, x: Tensor, nodes: Tensor) -> Tensor:
    """A pipeline's loop; the model sees the node's own time, in float64."""
    for n, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, nodes[n].expand(3)), t, x).prev_sample
    return x


def both(
    scheduler: Any, nodes: Tensor, kind: str, prediction: str, grid: Tensor, solver: sa.Solver
) -> list[tuple[Tensor, Tensor]]:
    """Samples and gradients in the start, theirs and ours."""
    found = []
    denoiser, frame = sa.Denoiser(network, SCHEDULE, prediction), sa.Frame(SCHEDULE, kind=kind)
    for ours in (False, True):
        x_T = randn(3, 4).requires_grad_()
        if ours:
            x = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=solver)
        else:
            x = through(widened(scheduler, nodes), x_T, nodes)
        found.append((x.detach(), torch.autograd.grad(x.square().sum(), x_T)[0]))
    return list(zip(*found, strict=True))


each_kind = pytest.mark.parametrize("kind", ["data", "noise"])
each_prediction = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])


@each_kind
@each_prediction
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_singlestep_scheduler_of_order_3(solver_type: str, prediction: str, kind: str) -> None:
    """Its stages are nodes of its grid: every third one of ours is a step."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=3,
        solver_type=solver_type,
        algorithm_type="dpmsolver++" if kind == "data" else "dpmsolver",
        prediction_type=prediction,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    nodes = even(12)
    for theirs, ours in both(scheduler, nodes, kind, prediction, nodes[::3], sa.DPMSolver3(solver_type)):
        agree(ours, theirs)


@each_kind
@each_prediction
@pytest.mark.parametrize("solver_type", ["bh2", "bh1"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_uni_pc_scheduler(order: int, solver_type: str, prediction: str, kind: str) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type=solver_type,
        predict_x0=kind == "data",
        prediction_type=prediction,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    nodes = uneven(6)  # the last two of the steps between them have a whole past
    for theirs, ours in both(scheduler, nodes, kind, prediction, nodes, sa.UniPC(order, solver_type)):
        agree(ours, theirs, 1e-10)


def test_uni_pc_scheduler_to_sigma_zero() -> None:
    """Its last step there is the prediction of the data, from the predicted state: so is ours."""
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=2, prediction_type="sample")  # final_sigmas_type="zero"
    nodes = torch.cat([uneven(6), f64([0.0])])
    assert float(SCHEDULE.sigma(nodes[-1])) == 0
    x_T = randn(3, 4)
    theirs = through(widened(scheduler, nodes), x_T, nodes)
    denoiser = sa.Denoiser(network, SCHEDULE, "sample")
    ours = sa.sample(denoiser, x_T, frame=sa.Frame(SCHEDULE), grid=nodes, solver=sa.UniPC(2))
    agree(ours, theirs, 1e-10)


MIXTURE = sa.problems.Mixture([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3])


def test_nodes_that_are_no_thirds_cost_the_singlestep_scheduler_an_order() -> None:
    """O6: on steps of alternating lengths diffusers' has order 2, ours 3; on even ones both have 3."""
    t_max, t_min = SCHEDULE.time(f64([-1.0, 1.0])).tolist()
    x_T = torch.linspace(-2.0, 2.0, 30).double()
    exact, denoiser = MIXTURE.ode_map(x_T, SCHEDULE, t_max=t_max, t_min=t_min), MIXTURE.denoiser(SCHEDULE)

    def orders(lengths: Sequence[float]) -> tuple[float, float]:
        errors: list[list[float]] = [[], []]
        for steps in (16, 32):
            pattern = f64(list(lengths) * steps)
            places = torch.cat([f64([0.0]), pattern.cumsum(0) / pattern.sum()])
            nodes = SCHEDULE.time(-1 + 2 * places)
            scheduler = diffusers.DPMSolverSinglestepScheduler(
                solver_order=3, prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min"
            )
            widened(scheduler, nodes)
            x = x_T
            for n, t in enumerate(scheduler.timesteps):
                x = scheduler.step(MIXTURE.posterior_mean(x, nodes[n], SCHEDULE), t, x).prev_sample
            ours = sa.sample(denoiser, x_T, frame=sa.Frame(SCHEDULE), grid=nodes[::3], solver=sa.DPMSolver3("midpoint"))
            for found, y in zip(errors, (x, ours), strict=True):
                found.append(float((y - exact).square().mean().sqrt()))
        theirs, own = (math.log2(coarse / fine) for coarse, fine in errors)
        return theirs, own

    assert orders((1.0, 1.0, 1.0)) == pytest.approx((3.0, 3.0), abs=0.1)
    assert orders((1.0, 1.0, 2.0)) == pytest.approx((2.0, 3.0), abs=0.15)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("order", [0, 4, 2.0, True, None])
def test_other_orders_are_refused(order: Any) -> None:
    with pytest.raises(ValueError, match=f"order: got {order!r}; pass 1, 2 or 3"):
        sa.UniPC(order)


def test_other_variants_are_refused() -> None:
    with pytest.raises(ValueError, match=r"variant: got 'bh3'; pass one of \('bh2', 'bh1'\)"):
        sa.UniPC(2, "bh3")
    with pytest.raises(ValueError, match=r"variant: got 'taylor'; pass one of \('dpmsolver', 'heun', 'midpoint'\)"):
        sa.DPMSolver3("taylor")


@pytest.mark.parametrize("solver", [sa.DPMSolver3(), sa.DPMSolver3("heun"), sa.UniPC(1), sa.UniPC(3, "bh1")], ids=repr)
@pytest.mark.parametrize("clock", [[0.5, 0.2, 0.0], [0.5, 0.2, -0.1], [-0.5, -0.2]], ids=str)
def test_clocks_without_a_log_are_refused(solver: sa.Solver, clock: list[float]) -> None:
    with pytest.raises(ValueError, match=r"interpolates in log s, and a step from s = .* has no log; pass a clock"):
        sa.solve(lambda s, y: y, randn(2), clock=clock, solver=solver)
