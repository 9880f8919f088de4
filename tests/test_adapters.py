"""Adapters of k-diffusion, EDM and flow models against their published loops, and what every adapter promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adapters import from_denoiser, from_edm, from_velocity

DOUBLE = torch.float64
STEPS = 6
SHAPE = (2, 3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Denoiser(nn.Module):
    """``model(x, sigma, style=...)`` predicts x_0, with EDM's skip so that it is sensible at every level."""

    sigma_min, sigma_max = 0.05, 12.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(3, 3, seed=7) / 2)

    def forward(self, x: Tensor, sigma: Tensor, style: Tensor | None = None, class_labels: Any = None) -> Tensor:
        sigma = sigma[:, None]
        h = torch.tanh(x / (1 + sigma**2).sqrt() @ self.weight + sigma.log() / 4)
        h = h if style is None else h + torch.sin(style)
        h = h if class_labels is None else h * torch.cos(class_labels)
        return x / (1 + sigma**2) + sigma / (1 + sigma**2).sqrt() * h


def sigmas_karras(steps: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """Karras et al. (2022), eq. 5."""
    roots = low ** (1 / rho), high ** (1 / rho)
    places = [i / max(steps - 1, 1) for i in range(steps)]
    return [(roots[1] + place * (roots[0] - roots[1])) ** rho for place in places] + [0.0]


# k-diffusion's samplers, from their formulas: (model, x, sigmas, normals) -> x_0.


def sample_euler(model: Callable[..., Tensor], x: Tensor, sigmas: list[float], z: Tensor) -> Tensor:
    for s, s1 in pairwise(sigmas):
        x = x + (s1 - s) * (x - model(x, s)) / s
    return x


def sample_heun(model: Callable[..., Tensor], x: Tensor, sigmas: list[float], z: Tensor) -> Tensor:
    for s, s1 in pairwise(sigmas):
        d = (x - model(x, s)) / s
        y = x + (s1 - s) * d
        x = y if s1 == 0 else x + (s1 - s) * (d + (y - model(y, s1)) / s1) / 2
    return x


def sample_euler_ancestral(model: Callable[..., Tensor], x: Tensor, sigmas: list[float], z: Tensor) -> Tensor:
    for n, (s, s1) in enumerate(pairwise(sigmas)):
        up = math.sqrt(s1**2 * (s**2 - s1**2) / s**2)
        down = math.sqrt(s1**2 - up**2)
        x = x + (down - s) * (x - model(x, s)) / s + up * z[n]
    return x


def sample_dpmpp_2m(model: Callable[..., Tensor], x: Tensor, sigmas: list[float], z: Tensor) -> Tensor:
    old, h_last = None, 0.0
    for s, s1 in pairwise(sigmas):
        x_0 = model(x, s)
        if s1 == 0:
            return x_0
        h = math.log(s / s1)
        D = x_0 if old is None else (1 + h / (2 * h_last)) * x_0 - h / (2 * h_last) * old
        x = s1 / s * x - math.expm1(-h) * D
        old, h_last = x_0, h
    return x


def sample_dpmpp_2m_sde(
    model: Callable[..., Tensor], x: Tensor, sigmas: list[float], z: Tensor, eta: float = 1.0
) -> Tensor:
    old, h_last = None, 0.0
    for n, (s, s1) in enumerate(pairwise(sigmas)):
        x_0 = model(x, s)
        if s1 == 0:
            return x_0
        h = math.log(s / s1)
        gain = -math.expm1(-h - eta * h)
        x = s1 / s * math.exp(-eta * h) * x + gain * x_0
        if old is not None:
            x = x + 0.5 * gain * h / h_last * (x_0 - old)
        x = x + z[n] * s1 * math.sqrt(-math.expm1(-2 * eta * h))
        old, h_last = x_0, h
    return x


K_SAMPLERS = {
    "euler": (sample_euler, sa.samplers.ddim),
    "heun": (sample_heun, sa.samplers.edm_heun),
    "euler_ancestral": (sample_euler_ancestral, sa.samplers.sde_dpm_solver_pp_1),
    "dpmpp_2m": (sample_dpmpp_2m, sa.samplers.dpm_solver_pp_2m),
    "dpmpp_2m_sde": (sample_dpmpp_2m_sde, sa.samplers.sde_dpm_solver_pp_2m),
    "dpmpp_2m_sde_half": (
        lambda model, x, sigmas, z: sample_dpmpp_2m_sde(model, x, sigmas, z, 0.5),
        lambda schedule: sa.samplers.sde_dpm_solver_pp_2m(schedule, 0.5),
    ),
}


def increments(adapter: sa.adapters.Adapter, z: Tensor) -> sa.FixedNoise | None:
    dnu = adapter.frame.noise_clock(adapter.grid(STEPS)).diff()
    size = torch.where(torch.isfinite(dnu), dnu, 0.0).sqrt()
    return sa.FixedNoise(size[:, None, None] * z) if adapter.frame.eta else None


@pytest.mark.parametrize("name", K_SAMPLERS)
def test_k_diffusion(name: str) -> None:
    """Float64 on both sides: round-off of some tens of operations, magnified by sigma_max / sigma_min = 240."""
    reference, sampler = K_SAMPLERS[name]
    model, z = Denoiser(), randn(STEPS, *SHAPE, seed=3)
    adapter = from_denoiser(model, sampler=sampler)
    results = []
    for ours in (True, False):
        x_T, style = (randn(*SHAPE) * model.sigma_max).requires_grad_(), randn(*SHAPE, seed=1).requires_grad_()
        if ours:
            x = adapter.sample(x_T, steps=STEPS, cond={"style": style}, noise=increments(adapter, z))
        else:
            sigmas = sigmas_karras(STEPS, model.sigma_min, model.sigma_max)
            x = reference(lambda x, s, style=style: model(x, x.new_tensor([s, s]), style), x_T, sigmas, z)
        results.append((x, *torch.autograd.grad(x.square().sum(), [x_T, style, model.weight])))
    for got, want in zip(*results, strict=True):
        assert float((got - want).detach().norm() / want.detach().norm()) <= 1e-12


def test_edm() -> None:
    """Karras et al. (2022), Algorithm 1 (which is k-diffusion's Heun), its grid moved inside the network's levels."""
    net, labels = Denoiser(), randn(*SHAPE, seed=2)
    adapter = from_edm(net)
    assert (adapter.schedule.t_min, adapter.schedule.t_max) == (net.sigma_min, net.sigma_max)
    assert from_edm(net, sigma_min=0.1, sigma_max=3.0).schedule == sa.VE(0.1, 3.0)
    assert from_edm(lambda x, sigma, class_labels=None: x).schedule == sa.VE(0.002, 80.0)
    x_T = randn(*SHAPE) * 12
    got = adapter.sample(x_T, steps=STEPS, cond={"class_labels": labels})
    sigmas = sigmas_karras(STEPS, net.sigma_min, net.sigma_max)
    want = sample_heun(lambda x, s: net(x, x.new_tensor([s, s]), class_labels=labels), x_T, sigmas, x_T)
    assert float((got - want).detach().norm() / want.detach().norm()) <= 1e-12


class Velocity(nn.Module):
    """``v(x=, t=)`` of a flow whose noise is at t = 0."""

    def forward(self, *, x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
        assert t.shape == (len(x),)
        return torch.tanh(x * (1 + t[:, None])) - x + shift


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
@pytest.mark.parametrize("data_at", [0, 1])
def test_velocity_in_either_direction_of_time(name: str, data_at: int) -> None:
    v = Velocity()
    model = v if data_at else lambda x, t, shift: -v(x=x, t=1 - t, shift=shift)
    adapter = from_velocity(model, data_at=data_at, sampler=getattr(sa.samplers, name))
    x_T = randn(*SHAPE).requires_grad_()
    got = adapter.sample(x_T, steps=STEPS, cond={"shift": 0.25})
    x, dt = x_T, 1 / STEPS
    for n in range(STEPS):
        k = v(x=x, t=torch.full((2,), n * dt, dtype=DOUBLE), shift=0.25)
        y = x + dt * k
        if name == "flow_heun" and n < STEPS - 1:
            y = x + dt * (k + v(x=y, t=torch.full((2,), (n + 1) * dt, dtype=DOUBLE), shift=0.25)) / 2
        x = y
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(out.square().sum(), x_T)[0] for out in (got, x))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_parts_are_the_adapter() -> None:
    adapter, x_T = from_denoiser(Denoiser()), randn(*SHAPE) * 12
    assert adapter.schedule == adapter.frame.schedule == sa.VE(0.05, 12.0)
    grid = adapter.grid(STEPS)
    assert (grid.dtype, grid.shape, grid[-1].item()) == (DOUBLE, (STEPS + 1,), 0.0)
    assert len(adapter.grid()) == 51
    whole = sa.sample(adapter.denoiser, x_T, frame=adapter.frame, grid=grid, solver=adapter.solver)
    assert torch.equal(adapter.sample(x_T, steps=STEPS), whole)
    path = adapter.sample(x_T, steps=STEPS, trajectory=True, adjoint=sa.Direct())
    assert torch.equal(path[-1], whole)


def test_an_adapter_s_sample_is_watched_as_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, float]] = []
    adapter = from_denoiser(Denoiser())
    adapter.sample(randn(*SHAPE), steps=STEPS, callback=lambda n, t, x: seen.append((n, t)), progress=True)
    assert seen == list(enumerate(adapter.grid(STEPS)[1:].tolist(), start=1))
    assert f"{STEPS}/{STEPS}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model_dtype", "x_dtype"),
    [
        (torch.float32, DOUBLE),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_models_of_another_precision(model_dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    class Recording(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
            seen.extend([x, sigma])
            return (x.float() / (1 + sigma[:, None] ** 2) @ self.weight.float()).to(x.dtype)

    model = Recording().to(model_dtype)
    x_T = (randn(*SHAPE) * 12).to(x_dtype).requires_grad_()
    x_0 = from_denoiser(model).sample(x_T, steps=3)
    assert x_0.dtype == x_dtype
    assert {(x.dtype, sigma.dtype) for x, sigma in zip(seen[::2], seen[1::2], strict=True)} == {
        (model_dtype, torch.float32)
    }
    # Levels are not rounded on their way, whatever the state's dtype.
    levels = from_denoiser(model).grid(3)[:-1].float()
    assert torch.equal(torch.stack([sigma[0] for sigma in seen[1::2]][:3]), levels)
    # Outputs are widened before anything is computed with them.
    raw = from_denoiser(model).denoiser.network(x_T, torch.ones(2, dtype=DOUBLE))
    assert raw.dtype == torch.promote_types(model_dtype, x_dtype)
    x_0.float().sum().backward()
    assert x_T.grad is not None
    assert x_T.grad.isfinite().all()
    assert model.weight.grad is not None
    assert model.weight.grad.count_nonzero() > 0


def test_a_velocity_in_half_precision_gets_its_time_in_float32() -> None:
    seen: list[Tensor] = []

    class Recording(Velocity):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, *, x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
            seen.append(t)
            return self.scale * x

    adapter = from_velocity(Recording().bfloat16(), sampler=sa.samplers.flow_euler)
    adapter.sample(randn(*SHAPE).float(), steps=STEPS, adjoint=sa.Direct())
    assert {t.dtype for t in seen} == {torch.float32}
    assert torch.equal(torch.stack([t[0] for t in seen]), (1 - adapter.grid(STEPS)[:-1]).float())


def test_a_model_that_says_its_dtype_is_believed() -> None:
    """Some parameters are kept in float32 for their precision, and may come first."""
    seen: list[torch.dtype] = []

    class Mixed(nn.Module):
        dtype = torch.bfloat16

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.eye(3).bfloat16())

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(x.dtype)
            return (x @ self.weight) * self.norm

    from_denoiser(Mixed(), sigma_min=0.1, sigma_max=1.0).sample(randn(*SHAPE).float(), steps=2)
    assert set(seen) == {torch.bfloat16}


def test_half_precision_latents_are_refused_with_a_way_out() -> None:
    with pytest.raises(TypeError, match=r"x_T: got dtype torch.float16; pass float64, float32 or bfloat16"):
        from_denoiser(Denoiser().half()).sample(torch.randn(SHAPE).half(), steps=2)


def test_a_model_on_another_device_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"x_T: it is on cpu, but the model's parameters are on meta; pass x_T.to\('me"
    ):
        from_denoiser(Denoiser().to("meta")).sample(randn(*SHAPE), steps=2)


def test_gradients_that_are_switched_off() -> None:
    adapter, x_T = from_denoiser(Denoiser()), randn(*SHAPE).requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(RuntimeError, match="x_T requires a gradient, but gradients are globally off"):
            adapter.sample(x_T, steps=2)
        with mode():
            assert not adapter.sample(x_T.detach(), steps=2).requires_grad


def test_guidance() -> None:
    model, cond, null = Denoiser(), {"style": randn(*SHAPE, seed=1)}, {"style": randn(1, 3, seed=2)}
    adapter = from_denoiser(model, guidance=sa.Guidance(3.0, null))
    x, t = randn(*SHAPE), torch.tensor([2.0, 2.0], dtype=DOUBLE)
    positive, negative = model(x, t, **cond), model(x, t, **null)
    torch.testing.assert_close(adapter.denoiser(x, 2.0, cond), negative + 3 * (positive - negative))


def test_wrong_arguments() -> None:
    for adapt in (from_denoiser, from_edm, from_velocity):
        with pytest.raises(TypeError, match="model: got int; pass the model itself"):
            adapt(3, **({"sigma_min": 0.1, "sigma_max": 1.0} if adapt is from_denoiser else {}))  # type: ignore[arg-type, operator]
    with pytest.raises(ValueError, match="sigma_min: got None, and function has no attribute of that name"):
        from_denoiser(lambda x, sigma: x)
    with pytest.raises(ValueError, match="sigma_max: got None"):
        from_denoiser(lambda x, sigma: x, sigma_min=0.1)
    with pytest.raises(ValueError, match="data_at: got True; pass the time of the data"):
        from_velocity(lambda x, t: x, data_at=True)
    for steps in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"steps: got .*; pass an integer >= 1"):
            from_edm(lambda x, sigma: x).grid(steps)  # type: ignore[arg-type]
    for wrong in (lambda x, sigma: None, lambda x, sigma: x.long()):
        with pytest.raises(TypeError, match="network: returned"):
            from_edm(wrong).sample(randn(*SHAPE), steps=2)
    with pytest.raises(ValueError, match="network: returned shape"):
        from_velocity(lambda x, t: x[:1]).sample(randn(*SHAPE), steps=2)
