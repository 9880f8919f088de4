"""gradient_error and goal_grid: against closed forms, fine references, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.accuracy.goal_grid import Array, equidistributed
from sdeadjoint.accuracy.refine import split

from .predicted import predictor

SCHEDULE = sa.VPLinear()
ENDS = {"t_max": 0.9, "t_min": 0.01}
MIDDLE = {"t_max": 0.6, "t_min": 0.07}  # half as many units of lambda, for half as many steps


DENOISER = sa.Denoiser(
    predictor(SCHEDULE, [1.0, 1.0, 1.0], [[-1.0, 0.5], [1.0, -0.3], [0.2, 1.2]], [0.2, 0.2, 0.2]), SCHEDULE, "sample"
)
LINE = ([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3])
MIXTURE = sa.problems.Mixture(*LINE)
ON_A_LINE = sa.Denoiser(predictor(SCHEDULE, LINE[0], [[mean] for mean in LINE[1]], LINE[2]), SCHEDULE, "sample")


def starts(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loss(x: Tensor) -> Tensor:
    return (x - torch.tensor([0.5, -1.0]).to(x)).square().sum()


def gradient(x: Tensor, grid: Tensor, solver: sa.Solver, frame: sa.Frame, noise: sa.Noise | None = None) -> Tensor:
    x = x.detach().clone().requires_grad_()
    out = sa.sample(DENOISER, x, frame=frame, grid=grid, solver=solver, noise=noise, adjoint=sa.Direct())
    return torch.autograd.grad(loss(out), x)[0]


# ---------------------------------------------------------------- gradient_error


@pytest.mark.parametrize(
    ("solver", "steps"), [(sa.Euler(), 5), (sa.Heun(), 5), (sa.DPMSolverPP2M(), 6), (sa.UniPC(3), 6)], ids=repr
)
def test_effectivity_against_a_closed_form(solver: sa.Solver, steps: int) -> None:
    """In one dimension the gradient of the equation is ``p_T / p_0`` (T2)."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    grid = sa.uniform_logsnr(SCHEDULE, steps, **MIDDLE)
    found = sa.gradient_error(ON_A_LINE, x, loss=torch.sum, frame=sa.Frame(SCHEDULE), grid=grid, solver=solver)
    exact = x.detach().clone().requires_grad_()
    (true,) = torch.autograd.grad(MIXTURE.ode_map(exact, SCHEDULE, **MIDDLE).sum(), exact)
    missed = float((found.gradients["x_T"] - true).norm())
    assert 0.8 <= found.absolute / missed <= 1.25
    assert found.reliable
    assert abs(found.absolute - missed) <= found.uncertainty
    assert float((found.improved["x_T"] - true).norm()) <= 0.2 * missed
    assert found.relative == pytest.approx(missed / float(true.norm()), rel=0.25)


@pytest.mark.parametrize(("solver", "eta"), [(sa.Euler(), 0.5), (sa.DPMSolverPP2M(), 0.5), (sa.ShARK(), 0.5)], ids=repr)
def test_effectivity_along_paths(solver: sa.Solver, eta: float) -> None:
    """Against ShARK on 8 times as many steps of the same path, where it errs by a 23rd."""
    x, frame, noise = starts(40, 1).requires_grad_(), sa.Frame(SCHEDULE, eta), sa.BrownianPath(5, refinable=True)
    grid = sa.uniform_logsnr(SCHEDULE, 6, **MIDDLE)
    found = sa.gradient_error(DENOISER, x, loss=loss, frame=frame, grid=grid, solver=solver, noise=noise)
    missed = float((found.gradients["x_T"] - on_eight_times_as_many(eta)).norm())
    assert 0.8 <= found.absolute / missed <= 1.25
    assert torch.equal(found.gradients["x_T"], gradient(x, grid, solver, frame, noise))


@cache
def on_eight_times_as_many(eta: float) -> Tensor:
    grid, noise = sa.uniform_logsnr(SCHEDULE, 6, **MIDDLE), sa.BrownianPath(5, refinable=True)
    return gradient(starts(40, 1), split(SCHEDULE, grid, [8] * 6), sa.ShARK(), sa.Frame(SCHEDULE, eta), noise)


def test_steps_that_are_too_long_are_called_unreliable() -> None:
    narrow = sa.problems.Mixture([0.5, 0.5], [-1.0, 1.0], [0.001, 0.001])
    x = torch.linspace(-0.4, 0.4, 9, dtype=torch.float64).requires_grad_()
    found = sa.gradient_error(
        narrow.denoiser(SCHEDULE),
        x,
        loss=torch.sum,
        frame=sa.Frame(SCHEDULE),
        grid=sa.uniform_logsnr(SCHEDULE, 3),
        solver=sa.Heun(),
    )
    assert not found.reliable
    assert "not reliable" in str(found)


@pytest.mark.parametrize(("variance", "steps", "reliable"), [(0.05, 20, True), (0.02, 10, False)])
def test_errors_that_are_alike_on_neighbouring_grids_are_seen(variance: float, steps: int, reliable: bool) -> None:
    """Between two narrow modes refinements of Euler's method by itself show less than half of its error."""
    problem = ([0.5, 0.5], [-1.0, 1.0], [variance] * 2)
    denoiser = sa.Denoiser(predictor(SCHEDULE, problem[0], [[-1.0], [1.0]], problem[2]), SCHEDULE, "sample")
    x = torch.linspace(-0.3, 0.3, 9, dtype=torch.float64).requires_grad_()
    call: dict[str, Any] = {"frame": sa.Frame(SCHEDULE), "solver": sa.Euler()}
    grid = sa.uniform_logsnr(SCHEDULE, steps, **ENDS)
    exact = x.detach().clone().requires_grad_()
    (true,) = torch.autograd.grad(sa.problems.Mixture(*problem).ode_map(exact, SCHEDULE, **ENDS).sum(), exact)
    own = []
    for parts in (1, 2, 4):
        out = sa.sample(denoiser, x, grid=split(SCHEDULE, grid, [parts] * steps), adjoint=sa.Direct(), **call)
        own.append(torch.autograd.grad(out.sum(), x)[0])
    missed = float((own[0] - true).norm())
    assert float((own[2] - own[0] + own[2] - own[1]).norm()) < missed / 2
    found = sa.gradient_error(denoiser, x, loss=torch.sum, grid=grid, **call)
    assert found.reliable == reliable
    assert abs(found.absolute - missed) <= found.uncertainty
    assert not reliable or 0.8 <= found.absolute / missed <= 1.25


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor, style: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) + style * torch.cos(t)[:, None])


def conditioned(style: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "denoiser": sa.Denoiser(Conditioned(), SCHEDULE, "epsilon"),
        "x_T": starts(3, 2),
        "loss": loss,
        "frame": sa.Frame(SCHEDULE),
        "grid": sa.uniform_logsnr(SCHEDULE, 3, **ENDS),
        "solver": sa.Heun(),
        "cond": {"style": style},
    }


def test_every_tensor_has_a_row_and_nothing_is_changed() -> None:
    call = conditioned(torch.zeros(3, 2, dtype=torch.float64, requires_grad=True))
    network, style = call["denoiser"].network, call["cond"]["style"]
    state = torch.random.get_rng_state()
    found = sa.gradient_error(**call)
    assert [row.name for row in found.rows] == ["cond.style", "network.layer.weight", "network.layer.bias"]
    assert style.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    own = torch.autograd.grad(loss(sa.sample(**{k: v for k, v in call.items() if k != "loss"})), style)[0]
    assert torch.equal(found.gradients["cond.style"], own)
    assert found.absolute == pytest.approx(np.linalg.norm([row.error for row in found.rows]))
    lines = str(found).splitlines()
    assert len(lines) == 5
    assert lines[-1] == "3 steps, against refinements by RK4()"


def test_scheduled_slots_keep_their_steps() -> None:
    """One value in all slots is the value itself; its gradient is the sum over the slots."""
    whole = sa.gradient_error(**conditioned(torch.full((3, 2), 0.3, dtype=torch.float64, requires_grad=True)))
    slots = torch.full((3, 3, 2), 0.3, dtype=torch.float64, requires_grad=True)
    given = sa.gradient_error(**conditioned(sa.Scheduled(slots)))
    for found, parts in ((whole.errors, given.errors), (whole.gradients, given.gradients)):
        assert parts["cond.style"].shape == (3, 3, 2)
        torch.testing.assert_close(parts["cond.style"].sum(0), found["cond.style"], rtol=1e-9, atol=1e-12)


def test_scheduled_guidance_keeps_its_steps() -> None:
    found = []
    scales: tuple[Any, ...] = (2.0, sa.Scheduled([2.0] * 3))
    for scale in scales:
        call = conditioned(torch.full((3, 2), 0.3, dtype=torch.float64, requires_grad=True))
        unconditional = {"style": torch.zeros(3, 2, dtype=torch.float64)}
        call["denoiser"] = call["denoiser"].guided_by(sa.Guidance(scale, unconditional))
        found.append(sa.gradient_error(**call))
    for name, error in found[0].errors.items():
        assert torch.equal(error, found[1].errors[name])


def test_a_gradient_of_lower_precision_is_compared_in_double() -> None:
    grid = sa.uniform_logsnr(SCHEDULE, 5, **MIDDLE)
    rows = []
    for dtype in (torch.float32, torch.float64):
        x = starts(4, 3, torch.float32).to(dtype).requires_grad_()
        found = sa.gradient_error(DENOISER, x, loss=loss, frame=sa.Frame(SCHEDULE), grid=grid, solver=sa.Heun())
        assert found.gradients["x_T"].dtype == dtype
        assert found.errors["x_T"].dtype == torch.float64
        rows.append(found.errors["x_T"])
    # Round-off of a gradient in float32 over 5 steps of two calls, 1e-5, is part of its error.
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-5 * float(found.rows[0].norm))
    assert float(rows[1].norm()) > 1e-4 * found.rows[0].norm


NOISY = sa.Frame(SCHEDULE, 1.0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"frame": NOISY, "noise": sa.BrownianPath(3)}, ValueError, r"another path on a finer.*\(3, refinable=True\)"),
        ({"frame": NOISY, "noise": sa.FixedNoise(torch.zeros(8, 3, 2))}, TypeError, "FixedNoise, which says nothing"),
        ({"x_T": starts(3, 2)}, ValueError, "x_T: nothing requires a gradient"),
        ({"solver": "heun"}, TypeError, "solver: got str"),
        ({"loss": 3}, TypeError, "loss: got int"),
    ],
)
def test_what_gradient_error_refuses(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {
        "denoiser": DENOISER,
        "x_T": starts(3, 2).requires_grad_(),
        "loss": loss,
        "frame": sa.Frame(SCHEDULE),
        "grid": sa.uniform_logsnr(SCHEDULE, 8, **ENDS),
        "solver": sa.Heun(),
    }
    with pytest.raises(error, match=message):
        sa.gradient_error(**(call | changed))


@given(st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_splitting_keeps_the_nodes(parts: list[int]) -> None:
    grid = sa.karras(SCHEDULE, 5, **ENDS)
    fine, lam = split(SCHEDULE, grid, parts), SCHEDULE.lam(grid)
    places = np.concatenate([[0], np.cumsum(parts)])
    assert torch.equal(fine[places], grid)
    for n, count in enumerate(parts):
        inner = SCHEDULE.lam(fine[places[n] : places[n + 1] + 1]).diff()
        torch.testing.assert_close(inner, (lam[n + 1] - lam[n]).expand(count) / count, rtol=1e-9, atol=1e-9)


def test_steps_of_infinite_length_are_split_in_time() -> None:
    schedule = sa.RectifiedFlow()
    grid = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    fine = split(schedule, grid, [2, 2, 2])
    assert fine[[1, 5]].tolist() == [0.75, 0.125]
    assert fine[3] == pytest.approx(float(schedule.time(schedule.lam(grid[1:3]).mean())), abs=1e-15)


# ---------------------------------------------------------------- goal_grid


def power_law(density: Callable[[float], float], order: float) -> Callable[[Array], Array]:
    def shares(places: Array) -> Array:
        middles = (places[1:] + places[:-1]) / 2
        return np.array([density(u) ** order for u in middles]) * np.diff(places) ** order

    return shares


@pytest.mark.parametrize("order", [2.0, 3.0, 1.5])
def test_sweeps_make_shares_equal(order: float) -> None:
    places = np.linspace(-3.0, 4.0, 41)
    shares = power_law(lambda u: 1 / (0.3 + abs(u)), order)
    spreads = []
    for _ in range(5):
        found = shares(places)
        spreads.append(found.max() / found.min())
        places = equidistributed(places, found, order)
        assert (places[0], places[-1]) == (-3.0, 4.0)
        assert (np.diff(places) > 0).all()
    assert spreads[0] > 5
    assert spreads[-1] < 1.5


def test_no_step_is_longer_than_ten_average_ones() -> None:
    places = equidistributed(np.linspace(0, 1, 11), np.array([1.0] + [0.0] * 9), 2.0)
    assert np.diff(places).max() <= 1.0
    assert np.diff(places).min() > 0
    assert (np.diff(places)[:5] < 0.1).all()
    same = np.linspace(0, 1, 5)
    for shares in (np.zeros(4), np.array([1.0, np.inf, 1.0, 1.0]), np.array([1.0, np.nan, 1.0, 1.0])):
        assert np.array_equal(equidistributed(same, shares, 2.0), same)


OWN, OTHERS = (12, 1), (30, 2)
"""Starts that a grid is made for, and others: how many, and their seed."""


@cache
def fine() -> dict[tuple[int, int], Tensor]:
    """The gradient on 160 equal steps of lambda, whose relative error is below 1e-4, for both."""
    x = torch.cat([starts(*OWN), starts(*OTHERS)])
    found = gradient(x, sa.uniform_logsnr(SCHEDULE, 160), sa.UniPC(3), sa.Frame(SCHEDULE))
    return dict(zip((OWN, OTHERS), found.split([OWN[0], OTHERS[0]]), strict=True))


def errors_on(grid: Tensor, start: tuple[int, int], solver: sa.Solver) -> float:
    """The square mean over samples of the relative error of the gradient; ``start`` is their number and their seed."""
    off = gradient(starts(*start), grid, solver, sa.Frame(SCHEDULE)) - fine()[start]
    return float((off.norm(dim=1) / fine()[start].norm(dim=1)).square().mean().sqrt())


def test_a_goal_grid_is_better_on_held_out_starts() -> None:
    frame, solver, x = sa.Frame(SCHEDULE), sa.DPMSolverPP2M(), starts(12, 1)
    call: dict[str, Any] = {"loss": loss, "frame": frame, "steps": 8, "solver": solver}
    made = {0: sa.goal_grid(DENOISER, x, **call, polish=0)}
    made[4] = sa.goal_grid(DENOISER, x, **call, polish=4, adjoint=sa.Direct())
    assert not x.requires_grad
    makers: tuple[Callable[..., Tensor], ...] = (sa.uniform_logsnr, sa.karras, sa.uniform_time)
    usual = {make.__name__: make(SCHEDULE, 8) for make in makers}
    found = {name: errors_on(grid, OTHERS, solver) for name, grid in (made | usual).items()}
    for grid in made.values():
        assert (float(grid[0]), float(grid[-1]), len(grid)) == (SCHEDULE.t_max, SCHEDULE.t_min, 9)
        assert bool((grid.diff() < 0).all())
    # Twice as near as the best of the usual ones; polished, on the starts it was made on no worse than unpolished.
    assert found[0] < min(found[name] for name in usual) / 2
    missed = [errors_on(made[polish], OWN, solver) for polish in (0, 4)]
    # On its own starts it is no worse than any that was tried, but for the errors of the references, 1e-4.
    assert missed[1] <= missed[0] + 1e-3
    assert missed[0] <= min(errors_on(grid, OWN, solver) for grid in usual.values()) + 1e-3


def test_a_goal_grid_along_paths_and_for_weights() -> None:
    call = conditioned(torch.zeros(3, 2, dtype=torch.float64, requires_grad=True))
    call |= {"frame": sa.Frame(SCHEDULE, 0.5), "noise": sa.BrownianPath(1, refinable=True), "solver": sa.Euler()}
    del call["grid"]
    grid = sa.goal_grid(**call, steps=4, t_max=0.9, t_min=0.1, sweeps=1, polish=0)
    assert (float(grid[0]), float(grid[-1]), len(grid)) == (0.9, 0.1, 5)
    assert all(parameter.grad is None for parameter in call["denoiser"].parameters())


def test_a_goal_grid_from_alpha_zero() -> None:
    schedule = sa.RectifiedFlow()
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x), schedule, "sample")
    grid = sa.goal_grid(
        denoiser,
        starts(3, 1),
        loss=loss,
        frame=sa.Frame(schedule),
        steps=4,
        solver=sa.Euler(),
        t_max=1.0,
        t_min=0.05,
        sweeps=2,
        polish=1,
    )
    assert (float(grid[0]), float(grid[-1]), len(grid)) == (1.0, 0.05, 5)
    assert bool((grid.diff() < 0).all())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: got 0; pass an integer >= 1"),
        ({"steps": 2.0}, ValueError, "steps: got 2.0"),
        ({"sweeps": -1}, ValueError, "sweeps: got -1; pass an integer >= 0"),
        ({"polish": True}, ValueError, "polish: got True"),
        ({"cond": {"style": sa.Scheduled(torch.zeros(4, 3, 2))}}, ValueError, "one value per step of one grid"),
        ({"frame": NOISY, "noise": sa.BrownianPath(3)}, ValueError, r"another path on a finer"),
    ],
)
def test_what_goal_grid_refuses(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"denoiser": DENOISER, "x_T": starts(3, 2), "loss": loss, "solver": sa.Heun()}
    with pytest.raises(error, match=message):
        sa.goal_grid(**(call | {"frame": sa.Frame(SCHEDULE), "steps": 4} | changed))
