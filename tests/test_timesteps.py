"""What time a network is given: tables and grids equal diffusers', and a network of whole timesteps is watched."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sdeadjoint as sa

SPACINGS = ("leading", "trailing", "linspace")
BETAS: tuple[dict[str, Any], ...] = (
    {},
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_start": 1e-3, "beta_end": 0.05, "num_train_timesteps": 77},
)
SCHEDULE = sa.Tabulated.ddpm()


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("betas", BETAS, ids=str)
def test_the_table_is_that_of_diffusers(betas: dict[str, Any]) -> None:
    """To float32 rounding: an ulp of beta is ``beta / (1 - beta)`` of the factor 1 - beta, and each product rounds."""
    ours = torch.tensor(sa.Tabulated.ddpm(**betas).alphas_cumprod, dtype=torch.float64)
    theirs = diffusers.DDPMScheduler(**betas).alphas_cumprod.double()
    ulps = torch.cat([1 / ours[:1], ours[:-1] / ours[1:]]).cumsum(0)  # of 1 / (1 - beta) each
    assert ours.shape == theirs.shape
    assert ((ours / theirs - 1).abs() <= 2 * torch.finfo(torch.float32).eps * ulps).all()


def test_ddpm_is_the_product_of_its_betas() -> None:
    schedule = sa.Tabulated.ddpm(0.1, 0.3, num_train_timesteps=3)
    assert schedule.alphas_cumprod == pytest.approx((0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7), rel=1e-14)
    assert schedule == sa.Tabulated(schedule.alphas_cumprod)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps: got 1; pass an integer >= 2"),
        ({"num_train_timesteps": 10.0}, "num_train_timesteps: got 10.0"),
        ({"beta_schedule": "sigmoid"}, r"beta_schedule: got 'sigmoid'; .*Tabulated\(scheduler.alphas_cumprod\)"),
        ({"beta_start": 0.1, "beta_end": 20.0}, r"beta_start, beta_end: got 0.1, 20.0; .*not those of a continuous"),
        ({"beta_start": 0.0}, "beta_start, beta_end: got 0.0"),
        ({"beta_start": 0.03}, "beta_start, beta_end: got 0.03, 0.02"),
    ],
)
def test_wrong_tables_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sa.Tabulated.ddpm(**wrong)


# ---------------------------------------------------------------- the grid


@pytest.mark.parametrize("kind", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
@pytest.mark.parametrize("spacing", SPACINGS)
@given(total=st.sampled_from([10, 77, 1000]), part=st.floats(0, 1))
def test_timesteps_are_those_of_diffusers(kind: Callable[..., Any], spacing: str, total: int, part: float) -> None:
    steps = 1 + round(part * (total - 1))
    scheduler = kind(num_train_timesteps=total, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = sa.timesteps(sa.Tabulated.ddpm(num_train_timesteps=total), steps, spacing=spacing)
    assert (grid.dtype, grid.device.type, grid[-1]) == (torch.float64, "cpu", -1)
    # For some numbers of steps numpy's arange has one timestep too many there, which is -1.
    assert grid[:-1].tolist() == [t for t in scheduler.timesteps.tolist() if t >= 0]


def test_every_number_of_steps_of_a_thousand() -> None:
    for spacing in SPACINGS:
        scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
        for steps in range(1, 1001):
            scheduler.set_timesteps(steps)
            grid = sa.timesteps(SCHEDULE, steps, spacing=spacing)
            assert len(grid) == steps + 1
            assert grid[:-1].tolist() == [t for t in scheduler.timesteps.tolist() if t >= 0]


def test_stable_diffusions_offset_and_end() -> None:
    """``steps_offset=1``, ``set_alpha_to_one=False``: the adapter reads the same grid from the scheduler."""
    sd = BETAS[1]
    scheduler = diffusers.DDIMScheduler(**sd, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    grid = sa.timesteps(sa.Tabulated.ddpm(**sd), 50, offset=1, final_zero=False)
    assert grid.tolist() == sa.adapters.from_diffusers(lambda x, t: x, scheduler).grid(50).tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # those whose steps end where the next begins
def test_the_sampler_is_ddims_own_loop(spacing: str) -> None:
    """One snippet, one loop: the same samples to float32 rounding, which is that of diffusers' coefficients."""
    torch.manual_seed(0)
    x_T, scheduler = (
        torch.randn(2, 3, dtype=torch.float64),
        diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing),
    )

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x * torch.sin(t / 100).reshape(-1, *[1] * (x.ndim - 1))

    denoiser = sa.Denoiser(network, SCHEDULE)
    grid = sa.timesteps(SCHEDULE, 10, spacing=spacing)
    ours = sa.sample(denoiser, x_T, sampler=sa.samplers.ddim(SCHEDULE), grid=grid)
    scheduler.set_timesteps(10)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.double().expand(2)), t, x).prev_sample
    # Coefficients of 10 steps, each to a few float32 ulp, divided by alpha(999) = 6e-3 and less later.
    torch.testing.assert_close(ours, x, rtol=0, atol=float(200 * 10 * torch.finfo(torch.float32).eps * x.abs().max()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((sa.VPLinear(), 10), TypeError, r"schedule: got VPLinear, .*pass Tabulated.ddpm"),
        ((SCHEDULE, 0), ValueError, "steps: got 0; pass an integer from 1 to 1000"),
        ((SCHEDULE, 1001), ValueError, "steps: got 1001"),
        ((SCHEDULE, True), ValueError, "steps: got True"),
        ((SCHEDULE, 10, "karras"), ValueError, "spacing: got 'karras'; pass 'leading', 'trailing' or 'linspace'"),
        ((SCHEDULE, 10, "trailing", 1), ValueError, "offset: got 1; .*with 'leading' only"),
        ((SCHEDULE, 10, "leading", -1), ValueError, "offset: got -1"),
        ((SCHEDULE, 10, "leading", 100), ValueError, "offset: got 100, .* run from 1000 to 100 .*a smaller one"),
        ((SCHEDULE, 10, "leading", 0, False), ValueError, "offset: got 0, so that .*a larger one"),
        ((sa.Tabulated([1.0, 0.9, 0.5, 0.1]), 2), ValueError, "offset: got 0, so that .* and end at 0, .*a larger one"),
    ],
)
def test_wrong_grids_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    schedule, steps, *rest = arguments
    options = dict(zip(("spacing", "offset", "final_zero"), rest, strict=False))
    with pytest.raises(error, match=message):
        sa.timesteps(schedule, steps, **options)


# ---------------------------------------------------------------- the warning


class Embedded(nn.Module):
    """A network with diffusers' embedding of whole timesteps, as its UNets have it, behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.time_proj = diffusers.models.embeddings.Timesteps(8, True, 0)
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 0.1 + self.layer(self.time_proj(t).to(x.dtype))


NETWORK = Embedded()


def sample(network: Callable[..., Tensor], schedule: sa.Schedule) -> Tensor:
    x_T = torch.zeros(2, 3, requires_grad=True)
    out = sa.sample(sa.Denoiser(network, schedule), x_T, sampler=sa.samplers.ddim(schedule), steps=3)
    out.sum().backward()
    return out


def wrapped(x: Tensor, t: Tensor) -> Tensor:
    return NETWORK(x, t)


class Holder:
    def __init__(self) -> None:
        self.network = NETWORK

    def method(self, x: Tensor, t: Tensor) -> Tensor:
        return NETWORK(x, t)


@pytest.mark.parametrize("schedule", [sa.VPLinear(), sa.VPCosine()], ids=repr)
@pytest.mark.parametrize(
    "network",
    [NETWORK, nn.Sequential(), wrapped, functools.partial(wrapped), Holder().method, lambda x, t: NETWORK(x, t)],
    ids=["module", "closure", "function", "partial", "method", "lambda"],
)
def test_times_from_0_to_1_for_whole_timesteps_are_warned_of(schedule: sa.Schedule, network: Any) -> None:
    inner = Embedded()
    called = (lambda x, t: inner(x, t)) if isinstance(network, nn.Sequential) else network
    told = r"embeds whole timesteps .*from 0 to 1, here t = .*Tabulated.ddpm"
    with pytest.warns(sa.TimeWarning, match=told) as caught:
        sample(called, schedule)
    assert len(caught) == 1
    for module in (inner, NETWORK):
        assert not module.time_proj._forward_pre_hooks


def fourier(x: Tensor, t: Tensor) -> Tensor:
    return x * torch.sin(t)[:, None]


@pytest.mark.parametrize(
    ("network", "schedule"),
    [
        (NETWORK, SCHEDULE),
        (NETWORK, sa.RectifiedFlow()),  # flows are trained on times from 0 to 1, with this embedding too
        (lambda x, t: NETWORK(x, 999 * t), sa.VPLinear()),
        (lambda x, t: NETWORK(x, (999 * t).long()), sa.VPLinear()),
        (lambda x, t: NETWORK(x, 0.25 * t.log()), sa.VPLinear()),  # EDM's
        (fourier, sa.VPLinear()),
    ],
)
def test_nothing_else_is_warned_of(network: Any, schedule: sa.Schedule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(network, schedule)
    assert not NETWORK.time_proj._forward_pre_hooks


def test_a_network_that_scales_in_its_embedding_is_not_warned_of() -> None:
    scaled = Embedded()
    scaled.time_proj.scale = 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(scaled, sa.VPLinear())


def test_compiled_networks_are_left_alone() -> None:
    compiled = torch.compile(Embedded(), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", sa.TimeWarning)
        sample(compiled, sa.VPLinear())


@pytest.mark.parametrize("table", ["embedding", "index"])
def test_a_network_that_looks_its_time_up_is_told_how(table: str) -> None:
    rows = nn.Embedding(1000, 3)
    looked_up = (lambda t: rows(t)) if table == "embedding" else (lambda t: rows.weight[t])
    with pytest.raises((RuntimeError, IndexError)) as caught:
        sample(lambda x, t: x + looked_up(t), sa.VPLinear())
    assert "network(x, t.long(), **cond) with schedule=Tabulated.ddpm(...)" in caught.value.__notes__[0]
    grid = sa.timesteps(SCHEDULE, 3)
    denoiser = sa.Denoiser(lambda x, t: x + looked_up(t.long()), SCHEDULE)
    sa.sample(denoiser, torch.zeros(1, 3), sampler=sa.samplers.ddim(SCHEDULE), grid=grid).sum().backward()
    assert rows.weight.grad is not None
    assert rows.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 333, 666]


def test_a_network_is_found_where_a_variable_has_no_value_yet() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return NETWORK(x, t) if x.numel() else later(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.TimeWarning)
        assert sample(network, sa.VPLinear()).isfinite().all()

    def later(x: Tensor) -> Tensor:
        return x
