"""Grids: their ends, spacings and nesting, and every way in which one can be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.diffusion.grids import validate_grid
from sdeadjoint.testing import strategies

EPS = torch.finfo(torch.float64).eps
MAKERS = [sa.uniform_logsnr, sa.uniform_time, sa.karras]
makers = st.sampled_from(MAKERS)
steps_up_to_60 = st.integers(1, 60)


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class NeverClean(sa.Schedule):
    """``alpha = 1``, ``sigma = 1/10 + t``: no time has sigma = 0."""

    domain = (0.0, math.inf)  # type: ignore[assignment]
    t_max = 10.0  # type: ignore[assignment]
    t_min = 0.0  # type: ignore[assignment]

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return (t + 0.1).log()

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam).exp() - 0.1


# ---------------------------------------------------------------- what makers make


@given(strategies.schedules(), makers, steps_up_to_60)
def test_grids_run_from_end_to_end(schedule: sa.Schedule, make: Callable[..., Tensor], steps: int) -> None:
    grid = make(schedule, steps)
    assert (grid.shape, grid.dtype, grid.device.type) == ((steps + 1,), torch.float64, "cpu")
    assert (grid[0], grid[-1]) == (schedule.t_max, schedule.t_min)  # bitwise
    assert (grid.diff() < 0).all()
    assert torch.equal(validate_grid(grid, schedule), grid)


@given(strategies.schedules(), makers, steps_up_to_60, st.data())
def test_ends_can_be_chosen(
    schedule: sa.Schedule, make: Callable[..., Tensor], steps: int, data: st.DataObject
) -> None:
    inside = data.draw(strategies.grids(schedule))
    t_max, t_min = float(inside[0]), float(inside[-1])
    grid = make(schedule, steps, t_max=t_max, t_min=t_min)
    assert (grid[0], grid[-1]) == (t_max, t_min)
    assert (grid.diff() < 0).all()


@given(strategies.schedules(), makers, steps_up_to_60)
def test_final_zero_adds_the_step_to_clean_data(schedule: sa.Schedule, make: Callable[..., Tensor], steps: int) -> None:
    grid = make(schedule, steps, final_zero=True)
    assert len(grid) == steps + 1
    assert grid[0] == schedule.t_max
    assert grid[-1] == schedule.domain[0]
    assert schedule.sigma(grid[-1]) == 0
    assert torch.equal(validate_grid(grid, schedule), grid)
    if steps > 1:
        assert torch.equal(grid[:-1], make(schedule, steps - 1))


def step_noise(schedule: sa.Schedule, grid: Tensor) -> Tensor:
    """Round-off of lambda on a grid: its own, and that of the times."""
    t = grid.clone().requires_grad_()
    lam = schedule.lam(t)
    (slope,) = torch.autograd.grad(lam.sum(), t)
    return 32 * EPS * (1 + lam.detach().abs() + (grid * slope).abs()).max()


@given(strategies.schedules(), steps_up_to_60)
def test_uniform_logsnr_has_equal_steps_in_lambda(schedule: sa.Schedule, steps: int) -> None:
    grid = sa.uniform_logsnr(schedule, steps)
    dlam = schedule.lam(grid).diff()
    assert ((dlam - dlam.mean()).abs() <= step_noise(schedule, grid)).all()


@given(strategies.schedules(), steps_up_to_60)
def test_uniform_time_has_equal_steps_in_time(schedule: sa.Schedule, steps: int) -> None:
    dt = sa.uniform_time(schedule, steps).diff()
    torch.testing.assert_close(dt, dt.mean().expand(steps), rtol=0, atol=8 * EPS * schedule.t_max)


@given(steps_up_to_60, st.floats(1.0, 12.0))
def test_karras_grid_is_the_papers_formula(steps: int, rho: float) -> None:
    # Eq. 5 has N nodes i = 0 .. N-1 and sigma_N = 0, here N = steps.
    schedule = sa.VE()
    low, high = schedule.sigma_min ** (1 / rho), schedule.sigma_max ** (1 / rho)
    u = np.arange(steps) / max(steps - 1, 1)
    root = (1 - u) * high + u * low
    grid = sa.karras(schedule, steps, rho=rho, final_zero=True)
    assert grid[-1] == 0
    # The power rho magnifies the round-off of the root, which is relative to the largest, and of its exponent.
    error = np.abs(grid[:-1].numpy() / root**rho - 1)
    assert (error <= EPS * (100 + 4 * rho * high / root)).all()


@given(strategies.schedules(), steps_up_to_60, st.floats(0.5, 12.0), st.data())
def test_karras_grid_is_uniform_in_a_power_of_the_noise_to_signal_ratio(
    schedule: sa.Schedule, steps: int, rho: float, data: st.DataObject
) -> None:
    ends = data.draw(strategies.grids(schedule))
    grid = sa.karras(schedule, steps, t_max=float(ends[0]), t_min=float(ends[-1]), rho=rho)
    lam = schedule.lam(grid)
    root = (-lam / rho).exp()
    noise = step_noise(schedule, grid) / rho
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(steps), rtol=0, atol=float(noise * root[0]))


def test_karras_with_large_rho_tends_to_uniform_logsnr() -> None:
    schedule = sa.VPLinear()
    torch.testing.assert_close(sa.karras(schedule, 10, rho=1e7), sa.uniform_logsnr(schedule, 10), rtol=1e-5, atol=0)


# ---------------------------------------------------------------- nesting


@given(strategies.schedules(), makers, st.integers(1, 12), st.integers(1, 6), st.integers(1, 3))
def test_coarse_grids_are_nested_bitwise(
    schedule: sa.Schedule, make: Callable[..., Tensor], steps: int, factor: int, again: int
) -> None:
    fine = make(schedule, steps * factor * again)
    coarse = sa.coarsen(fine, factor)
    assert coarse.tolist() == fine.tolist()[::factor]
    assert torch.equal(sa.coarsen(coarse, again), sa.coarsen(fine, factor * again))
    coarse[0] = 0.0
    assert fine[0] == schedule.t_max  # a copy


@pytest.mark.parametrize("factor", [0, -2, 3, 16, True, 2.0, "2"])
def test_coarsening_must_divide_the_steps(factor: Any) -> None:
    with pytest.raises(ValueError, match=f"factor: got {factor!r}; pass a positive divisor of the grid's 8 steps"):
        sa.coarsen(sa.uniform_time(sa.VPLinear(), 8), factor)


# ---------------------------------------------------------------- the makers' doors


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("steps", [0, -1, True, 2.5, "3", None])
def test_steps_must_be_a_positive_integer(make: Callable[..., Tensor], steps: Any) -> None:
    with pytest.raises(ValueError, match=r"steps: got .*; pass an integer >= 1"):
        make(sa.VPLinear(), steps)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("ends", [(0.1, 0.2), (0.2, 0.2), (1.1, 0.1), (0.5, -0.1), (math.nan, 0.1), (0.5, math.nan)])
def test_ends_must_be_ordered_and_inside(make: Callable[..., Tensor], ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"t_max, t_min: got .*; pass 0.0 <= t_min < t_max <= 1.0 for VPLinear"):
        make(sa.VPLinear(), 5, t_max=ends[0], t_min=ends[1])


@pytest.mark.parametrize("ends", [{"t_max": 1.0}, {"t_min": 0.0}])
def test_uniform_logsnr_needs_finite_ends(ends: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lambda is infinite at an end .*inf.*; move that end inwards"):
        sa.uniform_logsnr(sa.RectifiedFlow(), 5, **ends)


def test_singular_ends_of_the_other_makers() -> None:
    schedule = sa.RectifiedFlow()
    torch.testing.assert_close(
        sa.uniform_time(schedule, 4, t_max=1.0, t_min=0.0), f64([1.0, 0.75, 0.5, 0.25, 0.0]), rtol=0, atol=0
    )
    grid = sa.karras(schedule, 4, t_min=0.0)
    assert grid[-1] == 0
    assert torch.equal(validate_grid(grid, schedule), grid)
    with pytest.raises(ValueError, match=r"sigma / alpha is infinite at t_max=1\.0; move t_max inwards or use"):
        sa.karras(schedule, 5, t_max=1.0)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan])
def test_rho_must_be_positive(rho: float) -> None:
    with pytest.raises(ValueError, match=rf"rho: got {rho}; pass a positive number"):
        sa.karras(sa.VE(), 5, rho=rho)


@pytest.mark.parametrize("make", MAKERS)
def test_final_zero_needs_a_time_of_clean_data_below_t_min(make: Callable[..., Tensor]) -> None:
    assert len(make(NeverClean(), 3)) == 4
    with pytest.raises(ValueError, match=r"final_zero: NeverClean\(\) never reaches sigma = 0; pass final_zero=False"):
        make(NeverClean(), 3, final_zero=True)
    refusal = "lambda is infinite" if make is sa.uniform_logsnr else "final_zero: t_min=0.0 is already"
    with pytest.raises(ValueError, match=refusal):
        make(sa.VE(), 3, t_min=0.0, final_zero=True)


# ---------------------------------------------------------------- grids of the user's own


@given(strategies.schedules(), st.data())
def test_valid_grids_come_back_in_float64(schedule: sa.Schedule, data: st.DataObject) -> None:
    grid = data.draw(strategies.grids(schedule, singular=True))
    kept = grid.clone()
    for given_as in (grid, grid.tolist(), tuple(grid.tolist()), grid.numpy()):
        back = validate_grid(given_as, schedule)
        assert torch.equal(back, kept)
        back.zero_()  # a copy
        assert torch.equal(grid, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_narrow_dtypes_are_promoted_exactly(dtype: torch.dtype) -> None:
    grid = torch.tensor([3.7, 2.2, 1.1], dtype=dtype)
    assert torch.equal(validate_grid(grid, sa.VE()), grid.double())


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0.1, 0.5], r"strictly decrease, .* grid\[0\]=0\.1 is followed by grid\[1\]=0\.5; pass grid\.flip\(0\)"),
        ([0.9, 0.5, 0.5, 0.1], r"grid\[1\]=0\.5 is followed by grid\[2\]=0\.5"),
        ([0.9, math.nan, 0.1], r"time 1 is nan; pass finite times"),
        ([math.inf, 0.5], r"time 0 is inf"),
        ([0.5, -math.inf], r"time 1 is -inf"),
        ([1.5, 0.5], r"runs from 1\.5 to 0\.5, outside the times \[0\.0, 1\.0\] where VPLinear is defined"),
        ([0.5, -0.1], r"runs from 0\.5 to -0\.1, outside the times"),
        ([math.nextafter(1.0, 2.0), 0.5], "outside the times"),
        ([], r"shape \(0,\); pass a 1-D grid of steps \+ 1 >= 2 times"),
        ([0.5], r"shape \(1,\)"),
        (0.5, r"shape \(\)"),
        ([[0.9, 0.5], [0.4, 0.1]], r"shape \(2, 2\)"),
        (torch.tensor([True, False]), r"dtype torch\.bool; pass real times"),
        (torch.tensor([0.9 + 0j, 0.1]), r"dtype torch\.complex64; pass real times"),
        (None, "got None; pass"),
        ("0.9, 0.1", "got str; pass"),
        (["0.9", "0.1"], "got list; pass"),
        ([0.9, None], "got list; pass"),
        ([0.9 + 0j, 0.1], "got list; pass"),
        (torch.tensor([0.9, 0.1], requires_grad=True), r"requires a gradient, .*; pass grid\.detach\(\)"),
    ],
)
def test_bad_grids_are_refused(grid: Any, message: str) -> None:
    frame = sa.Frame(sa.VPLinear())
    denoiser = sa.problems.Gaussian(0.0, 1.0).denoiser(frame.schedule)
    with pytest.raises(ValueError, match=f"^grid: .*{message}"):
        sa.sample(denoiser, torch.zeros(2), frame=frame, grid=grid, solver=sa.Euler())
