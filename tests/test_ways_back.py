"""There and back along a path, pairs of copies, and steps that depend on their neighbours: C5, C6, R5, R8, E2, O2 of
theory/ in numbers. Margins are those of ``test_derivations.py``.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing.strategies import SOLVERS
from theory import order_conditions as oc
from theory.guarantees import GUARANTEES

from .driven import drift, randn, slope, trajectory
from .measured_paths import (
    FRAMES,
    beside_heun,
    of_copies,
    of_mixed_differences,
    of_reconstructions,
    of_returns,
)

MARGIN = 0.15
STRONG = {g.subject: g.order for g in GUARANTEES if g.quantity == "strong"}
ONE_STEP = [solver for solver in SOLVERS if isinstance(solver, RungeKutta)]


def return_order(solver: RungeKutta) -> float:
    tableau = solver.tableau
    return oc.return_order(oc.Coefficients.of(tableau.a, tableau.b, tableau.c, tableau.noise, tableau.levy))


# ---------------------------------------------------------------- there and back, and pairs: C5, C6, R5, R8


@pytest.mark.parametrize("name", FRAMES)
def test_mixed_second_differences_of_the_adjoint(name: str) -> None:
    """C5: without the noise of a step the adjoint changes by ``O(h^(1/2))``; without that of two, jointly, by O(h)."""
    first, second = of_mixed_differences(name)
    assert 0.5 - MARGIN < slope(first) < 0.5 + MARGIN
    assert slope(second) > 1 - MARGIN


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("solver", [*ONE_STEP, sa.DPMSolverPP2M(), sa.AdamsBashforth(3)], ids=repr)
def test_a_reconstruction_has_the_strong_order(solver: sa.Solver, name: str) -> None:
    """C6, 1: against the solution, at the node in the middle."""
    assert slope(of_reconstructions(solver, name)) > STRONG[repr(solver)] - MARGIN


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
def test_the_way_back_along_a_path_misses_by_no_more_than_its_order(solver: RungeKutta, name: str) -> None:
    """C6, 2, and R8: 1, 1.5 or 2, by the coefficients; and no more."""
    order, errors = return_order(solver), of_returns(solver, name)
    assert slope(errors) > order - MARGIN
    if solver not in (sa.RK4(), sa.Dopri5()):  # whose terms of size h^(5/2) cancel too
        assert slope(errors) < order + 2 * MARGIN


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("base", ONE_STEP, ids=repr)
def test_the_copies_of_a_coupled_method_stay_together(base: RungeKutta, name: str) -> None:
    """R8: their difference is as small as what the base's way back misses by."""
    for zeta in (1.0, 0.5):
        assert slope(of_copies(base, zeta, name)) > return_order(base) - MARGIN


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("name", FRAMES)
def test_reversible_heun_stays_beside_heun(name: str, uneven: bool) -> None:
    """R5: ``v - y`` is O(h), and y is within ``O(h^2)`` of Heun's method, on steps that alternate as well."""
    gaps, errors = beside_heun(name, uneven)
    assert 1 - MARGIN < slope(gaps) < 1 + MARGIN
    assert slope(errors) > 2 - MARGIN


# ---------------------------------------------------------------- sweeps: E2


def swept(solver: sa.Solver, s: list[float], states: Tensor) -> Tensor:
    """The trajectory after a sweep, with Euler's method as the base."""
    found, memory, defects = [states[-1]], solver.initial_state, []
    for n, (s0, s1) in enumerate(pairwise(s)):
        out, memory = solver.step(drift, sa.Interval(s0, s1), states[n], memory)
        defects.append(out - states[n] - (s1 - s0) * drift(s0, states[n]))
    for n in reversed(range(len(defects))):
        y, target = states[n], found[0] - defects[n]
        for _ in range(16):  # |ds F_y| < 0.12: to round-off, which finer steps reach sooner
            y, before = target - (s[n + 1] - s[n]) * drift(s[n], y), y
            if float((y - before).abs().max()) < 1e-15:
                break
        found.insert(0, y)
    return torch.stack(found)


def contraction(solver: sa.Solver, lengths: Tensor) -> float:
    """The largest error of a trajectory after a sweep, of errors of size 1 before: three random ones, and one that
    alternates from node to node."""
    steps, silent = len(lengths), torch.zeros(len(lengths)).double()
    s = (torch.cat([torch.zeros(1).double(), lengths.cumsum(0)]) / lengths.sum() * 1.5 + 0.5).tolist()
    start = torch.linspace(-2, 2, 20).double().repeat(4)
    states = torch.stack(trajectory(solver, drift, s, start, (silent, silent))[0])
    e = randn(steps + 1, 80, seed=0)
    e[:, :20] = (-1.0) ** torch.arange(steps + 1.0).double()[:, None]
    e = e / e.abs().amax(0)
    e[-1] = 0.0
    still, moved = swept(solver, s, torch.cat([states, states + 1e-6 * e], 1)).chunk(2, 1)  # paths do not mix
    torch.testing.assert_close(still, states, rtol=0, atol=1e-12)
    return float((moved - states).abs().max()) / 1e-6


MULTISTEP = [solver for solver in SOLVERS if isinstance(solver, sa.DPMSolverPP2M | sa.AdamsBashforth)]


@pytest.mark.parametrize("solver", MULTISTEP, ids=repr)
def test_sweeps_contract_with_the_step(solver: sa.Solver) -> None:
    """By O(h) where steps are of bounded variation. Where they alternate there is no contraction."""
    even = [contraction(solver, torch.ones(steps).double()) for steps in (24, 48, 96)]
    alternating = [contraction(solver, 1.0 + 2.0 * (torch.arange(steps).double() % 2)) for steps in (24, 48)]
    if solver == sa.AdamsBashforth(1, solver.variable if isinstance(solver, sa.AdamsBashforth) else "log"):
        assert max(even) < 1e-6  # Euler's method has no defect
    else:
        assert all(math.log2(coarse / fine) > 1 - MARGIN for coarse, fine in pairwise(even))
        assert min(alternating) > 1


# ---------------------------------------------------------------- slots: O2


SCHEDULE = sa.VPLinear()
START = randn(40, 1, seed=0)


def even_grid(steps: int) -> Tensor:
    t_max, t_min = SCHEDULE.time(torch.tensor([-1.0, 1.0]).double()).tolist()
    return sa.uniform_logsnr(SCHEDULE, steps, t_max=t_max, t_min=t_min)


def with_slots(solver: sa.Solver, values: Tensor) -> Tensor:
    """A solve whose conditioning changes from step to step."""
    slots = sa.Scheduled(values[:, None, None].expand(-1, 40, 1))
    denoiser = sa.Denoiser(lambda x, t, shift: torch.tanh(x + shift), SCHEDULE, "sample", time_dtype=torch.float64)
    return sa.sample(
        denoiser, START, frame=sa.Frame(SCHEDULE), grid=even_grid(len(values)), solver=solver, cond={"shift": slots}
    )


@cache
def with_a_smooth_function() -> Tensor:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + torch.sin(2 * SCHEDULE.lam(t))[:, None])

    denoiser = sa.Denoiser(network, SCHEDULE, "sample", time_dtype=torch.float64)
    return sa.sample(denoiser, START, frame=sa.Frame(SCHEDULE), grid=even_grid(128), solver=sa.RK4())


def alternating(steps: int) -> Tensor:
    return (-1.0) ** torch.arange(steps).double()


@cache
def with_slots_on_finer_steps(steps: int) -> Tensor:
    """The solution of the equation whose drift is constant in its slot on each step.

    Its error is a sixteenth of RK4's on the steps themselves: that changes no slope, and is nothing beside the others'.
    """
    return with_slots(sa.RK4(), alternating(steps).repeat_interleave(2))


@pytest.mark.parametrize(
    ("solver", "smooth", "jumping"),
    [
        (sa.DPMSolverPP2M(), 2, 1),
        (sa.AdamsBashforth(2), 2, 1),
        (sa.AdamsBashforth(3), 2, 1),
        (sa.Heun(), 1, 2),
        (sa.RK4(), 1, 4),
        (sa.ReversibleHeun(), 1, 0),
    ],
    ids=repr,
)
def test_orders_with_slots_that_sample_a_smooth_function_and_with_slots_that_jump(
    solver: sa.Solver, smooth: int, jumping: int
) -> None:
    sampled = (torch.sin(2 * SCHEDULE.lam(even_grid(steps)[:-1])) for steps in (16, 32, 64))
    errors = [with_slots(solver, values) - with_a_smooth_function() for values in sampled]
    assert smooth - MARGIN < slope(errors) < smooth + 3 * MARGIN
    errors = [with_slots(solver, alternating(n)) - with_slots_on_finer_steps(n) for n in (16, 32, 64)]
    assert jumping - MARGIN < slope(errors) < jumping + MARGIN
