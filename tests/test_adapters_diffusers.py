"""What ``from_diffusers`` does with real models, and what it refuses, by name."""

from __future__ import annotations

import functools
import math
import re
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adapters import from_diffusers
from sdeadjoint.adapters.multistep import lowered
from sdeadjoint.adapters.schedulers import INSTEAD, READERS
from sdeadjoint.adapters.singlestep import Singlestep
from sdeadjoint.adapters.timesteps import Interpolated, Proportional, QuarterLog, Timesteps, settled
from sdeadjoint.adapters.two_stage import TwoStage
from sdeadjoint.adapters.unipc import UniPCSteps

from .scheduler_loop import SHAPE, SmallModel, loop, randn

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


def plain_ddim(**options: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, **options)


# ---------------------------------------------------------------- models


def unet() -> nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def conditional_unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=6,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def dit() -> nn.Module:
    """Its output has a learned variance."""
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        norm_num_groups=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )


def sd3() -> nn.Module:
    """Its time is not its second argument."""
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=5,
        out_channels=2,
        pos_embed_max_size=8,
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Tensor]]] = {
    "unet": (unet, plain_ddim, {}),
    "conditional unet": (
        conditional_unet,
        lambda: diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
        {"encoder_hidden_states": randn(2, 3, 6)},
    ),
    "dit": (dit, lambda: diffusers.DPMSolverMultistepScheduler(), {"class_labels": torch.tensor([3, 7])}),
    "sd3": (
        sd3,
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        {"encoder_hidden_states": randn(2, 3, 6), "pooled_projections": randn(2, 5)},
    ),
}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with random weights that is the same each time, in float64: no zero-initialised layers."""
    model = build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5)
    return model.double().eval()


@pytest.mark.parametrize("name", MODELS)
def test_models_and_their_conditioning(name: str) -> None:
    build, make, cond = MODELS[name]
    model, scheduler, weights = made(build), make(), randn(2, 2, 8, 8, seed=5)
    adapter = from_diffusers(model, scheduler)
    scheduler.set_timesteps(4)
    results = []
    for ours in (True, False):
        given = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in cond.items()}
        x_T = (randn(2, 2, 8, 8, seed=1) * float(getattr(scheduler, "init_noise_sigma", 1.0))).requires_grad_()
        parameters = [p for p in model.parameters() if p.requires_grad]
        x = adapter.sample(x_T, steps=4, cond=given) if ours else loop(scheduler, Mean(model), x_T, (), cond=given)
        leaves = [x_T, *parameters, *(value for value in given.values() if value.requires_grad)]
        results.append((x, *torch.autograd.grad((weights * x).sum(), leaves, allow_unused=True)))
    largest = max(float(want.detach().norm()) for want in results[1][1:] if want is not None)
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        if want is None:
            assert got is None
            continue
        # Times enter these models in float32, and the loops of all but DDIM round to it.
        size = float(want.detach().norm())
        assert float((got - want).detach().norm()) <= (1e-5 * size if i == 0 else 1e-4 * max(size, 1e-3 * largest))


class Mean(nn.Module):
    """What pipelines do around a model: a time for each sample, and only the mean of what it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> tuple[Tensor]:
        names = {"timestep": t.expand(len(x)), **options}
        return (self.model(x, **names)[0][:, : x.shape[1]],)


def test_a_model_with_gradient_checkpointing_of_its_own() -> None:
    model, results = made(unet).train(), []
    for enabled in (False, True):
        if enabled:
            model.enable_gradient_checkpointing()
        x_T = randn(1, 2, 8, 8).requires_grad_()
        x_0 = from_diffusers(model, plain_ddim()).sample(x_T, steps=2)
        results.append((x_0, *torch.autograd.grad(x_0.square().sum(), [x_T, *model.parameters()])))
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-10, atol=1e-10)


def test_reentrant_checkpointing_is_refused() -> None:
    class Reentrant(SmallModel):
        def forward(self, sample: Tensor, timestep: Tensor, **options: Any) -> tuple[Tensor, ...]:
            run = super().forward
            return torch.utils.checkpoint.checkpoint(lambda x: run(x, timestep), sample, use_reentrant=True)

    x_T = randn(*SHAPE).requires_grad_()
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        from_diffusers(Reentrant(), plain_ddim()).sample(x_T, steps=2)


def test_models_in_half_precision() -> None:
    model = made(unet).float().bfloat16()
    x_T = randn(1, 2, 8, 8).float().requires_grad_()
    x_0 = from_diffusers(model, plain_ddim()).sample(x_T, steps=3)
    assert x_0.dtype == torch.float32
    x_0.sum().backward()
    assert x_T.grad is not None
    assert x_T.grad.isfinite().all()


def test_any_callable_is_a_model() -> None:
    calls: list[tuple[Tensor, str]] = []

    def model(x: Tensor, time: Tensor, style: str) -> Tensor:
        calls.append((time, style))
        return 0.5 * x

    adapter = from_diffusers(model, plain_ddim(), timestep=lambda t: t / 1000)
    adapter.sample(randn(*SHAPE), steps=4, cond={"style": "cat"})
    assert [(time.tolist(), style) for time, style in calls] == [([n / 4] * 2, "cat") for n in (3, 2, 1, 0)]
    for returned in ({"sample": "x"}, {"sample": None}, ()):
        with pytest.raises(TypeError, match="network: returned"):
            from_diffusers(lambda x, t, out=returned: out, plain_ddim()).sample(randn(*SHAPE), steps=2)
    output = diffusers.models.unets.unet_2d.UNet2DOutput
    assert from_diffusers(lambda x, t: output(sample=x), plain_ddim()).sample(randn(*SHAPE), steps=2).shape == SHAPE


def test_guidance_and_rescaling_are_those_of_the_pipelines() -> None:
    model, scheduler, scale, phi = made(conditional_unet), plain_ddim(), 5.0, 0.7
    cond, null = ({"encoder_hidden_states": randn(2, 3, 6, seed=k)} for k in (1, 2))

    class Guided(nn.Module):
        def forward(self, x: Tensor, t: Tensor, **options: Any) -> tuple[Tensor]:
            text, empty = (model(x, t, **each, return_dict=False)[0] for each in (cond, null))
            out = empty + scale * (text - empty)
            dims = list(range(1, out.ndim))
            rescaled = out * (text.std(dim=dims, keepdim=True) / out.std(dim=dims, keepdim=True))
            return (phi * rescaled + (1 - phi) * out,)

    adapter = from_diffusers(model, scheduler, guidance=sa.Guidance(scale, null, rescale=phi))
    x_T = randn(2, 2, 8, 8)
    scheduler.set_timesteps(4)
    got, want = adapter.sample(x_T, steps=4, cond=cond).detach(), loop(scheduler, Guided(), x_T, ()).detach()
    assert float((got - want).norm() / want.norm()) <= 1e-5


# ---------------------------------------------------------------- schedulers


def test_what_has_no_gradient_is_left_out_and_said() -> None:
    model, x_T = SmallModel(), 5 * randn(*SHAPE)
    with pytest.warns(UserWarning, match="DDIMScheduler: clip_sample=True is left out, because the derivative"):
        clipped = from_diffusers(model, diffusers.DDIMScheduler())
    assert torch.equal(clipped.sample(x_T, steps=3), from_diffusers(model, plain_ddim()).sample(x_T, steps=3))
    with pytest.warns(UserWarning, match="DPMSolverMultistepScheduler: thresholding=True is left out"):
        from_diffusers(model, diffusers.DPMSolverMultistepScheduler(thresholding=True))


def test_the_scheduler_is_read_and_not_changed() -> None:
    model, scheduler = SmallModel(), diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    sigmas, adapter = scheduler.sigmas, from_diffusers(model, scheduler)
    own = adapter.grid(None)
    assert adapter.grid(9).shape == (10,)
    assert scheduler.sigmas is sigmas
    assert scheduler.num_inference_steps == 5
    torch.testing.assert_close(own, sigmas.double(), rtol=1e-6, atol=0)
    scheduler.set_timesteps(3)
    assert torch.equal(adapter.grid(None), own)
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    flow.set_shift(4.0)
    flow.set_timesteps(sigmas=[1.0, 0.6, 0.3])
    torch.testing.assert_close(from_diffusers(model, flow).grid(None), flow.sigmas.double(), rtol=1e-6, atol=0)
    shifting = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", use_dynamic_shifting=True
    )
    from_diffusers(model, shifting, mu=1.3).grid(4)
    assert shifting.config.flow_shift == 1.0
    with pytest.raises(ValueError, match="steps: got None, but the DDIMScheduler has not been set"):
        from_diffusers(model, plain_ddim()).grid(None)


def test_another_method_on_the_scheduler_s_grid() -> None:
    adapter = from_diffusers(SmallModel(), plain_ddim(), sampler=sa.samplers.sra1_sde)
    assert (adapter.frame.eta, adapter.solver) == (1.0, sa.SRA1())
    x_T = randn(*SHAPE).requires_grad_()
    adapter.sample(x_T, steps=4, noise=sa.BrownianPath(seed=0)).sum().backward()
    assert x_T.grad is not None
    with pytest.raises(ValueError, match="noise: got None, but eta = 1"):
        adapter.sample(x_T, steps=4)


class Subclass(diffusers.DDIMScheduler):
    """Its step may be another one."""


REFUSED: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (
        diffusers.SASolverScheduler,
        {},
        r"SASolverScheduler cannot be matched; supported are DDPMScheduler, .*from_config\(scheduler.conf",
    ),
    (diffusers.PNDMScheduler, {}, r"PNDMScheduler\(skip_prk_steps=False\): its Runge-Kutta steps"),
    (diffusers.DDIMInverseScheduler, {}, "DDIMInverseScheduler cannot be matched; .* In its place: sa.encode inverts"),
    (
        lambda: diffusers.DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++"),
        {},
        "the noise of its half steps is no part of the noise of the whole",
    ),
    (
        lambda: diffusers.UniPCMultistepScheduler(solver_p=diffusers.DEISMultistepScheduler()),
        {},
        r"UniPCMultistepScheduler\(solver_p=...\): another predictor",
    ),
    (diffusers.DEISMultistepScheduler, {"eta": 0.3}, "eta: got 0.3 for DEISMultistepScheduler"),
    (diffusers.TCDScheduler, {"eta": 1.5}, "eta: got 1.5 for TCDScheduler; .*TCDScheduler 0 to 1"),
    (
        lambda: diffusers.CogVideoXDPMScheduler(set_alpha_to_one=False, clip_sample=False),
        {},
        "its last step has order 1 and ends in noise",
    ),
    (
        lambda: diffusers.FlowMatchLCMScheduler(scale_factors=[0.5], upscale_mode="bilinear"),
        {},
        "the state changes its shape",
    ),
    (
        lambda: diffusers.LCMScheduler(clip_sample=False),
        {"guidance": sa.Guidance(2.0, rescale=0.5)},
        "guidance: rescale=0.5 acts on the model's own output",
    ),
    (Subclass, {}, "scheduler: Subclass cannot be matched"),
    (lambda: "ddim", {}, "scheduler: str cannot be matched"),
    (plain_ddim, {"eta": 0.5}, "eta: got 0.5 for DDIMScheduler; DDIMScheduler takes 0 and 1"),
    (diffusers.EulerDiscreteScheduler, {"eta": 1.0}, "eta: got 1.0 for EulerDiscreteScheduler"),
    (lambda: diffusers.DDPMScheduler(variance_type="fixed_large"), {}, r"DDPMScheduler\(variance_type='fixed_large'\)"),
    (lambda: diffusers.DDPMScheduler(variance_type="learned_range"), {}, "variance_type='learned_range'"),
    (
        lambda: diffusers.EDMDPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++"),
        {},
        r"\(solver_order=3\): it has no such method for sde-dpmsolver\+\+; pass 1 or 2",
    ),
    (lambda: diffusers.CosineDPMSolverMultistepScheduler(solver_order=3), {}, r"\(solver_order=3\): it has no such me"),
    (lambda: diffusers.EDMDPMSolverMultistepScheduler(solver_order=4), {}, r"\(solver_order=4\).*; pass 1, 2 or 3"),
    (
        lambda: diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True),
        {},
        "prediction_type='epsilon', use_flow_sigmas=True",
    ),
    (lambda: diffusers.EDMDPMSolverMultistepScheduler(prediction_type="sample"), {}, r"prediction_type='sample'\): pa"),
    (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), {}, r"\(invert_sigmas=True\) cannot be"),
    (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        {},
        r"\(stochastic_sampling=True\) cannot be matched",
    ),
    (
        diffusers.EDMEulerScheduler,
        {"guidance": sa.Guidance(2.0, rescale=0.5)},
        "guidance: rescale=0.5 acts on the model's own output",
    ),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_cannot_be_matched_is_refused_by_name(
    make: Callable[[], Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(SmallModel(), make(), **options)


NO_GRID: list[tuple[Callable[[], Any], int, str]] = [
    (lambda: plain_ddim(timestep_spacing="linspace"), 8, r"DDIMScheduler\(timestep_spacing='linspace'\): its steps go"),
    (lambda: plain_ddim(timestep_spacing="trailing"), 30, r"DDIMScheduler\(timestep_spacing='trailing'\)"),
    (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), 1, "NaN or infinite: shift_terminal=0.1"),
    (
        lambda: diffusers.PNDMScheduler(skip_prk_steps=True, timestep_spacing="linspace"),
        7,
        "PNDMScheduler.*its steps go",
    ),
    (lambda: diffusers.PNDMScheduler(skip_prk_steps=True), 1, "two steps or more"),
    (lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 8, "mu: the FlowMatchEulerDiscrete"),
    (lambda: plain_ddim(set_alpha_to_one=False), 1, "DDIMScheduler: at 1 steps it has the noise level 0 twice"),
    (plain_ddim, 0, "steps: got 0; pass an integer >= 1"),
    (
        lambda: diffusers.KDPM2AncestralDiscreteScheduler(beta_schedule="squaredcos_cap_v2"),
        4,
        "KDPM2AncestralDiscreteScheduler: at 7 calls its timesteps are NaN or infinite, which its own set_timesteps",
    ),
]


@pytest.mark.parametrize(("make", "steps", "message"), NO_GRID, ids=[message[:40] for *_, message in NO_GRID])
def test_grids_that_cannot_be_matched(make: Callable[[], Any], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(SmallModel(), make()).grid(steps)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas"])
def test_whole_timesteps_are_given_as_integers_and_are_the_scheduler_s(schedule: str, spacing: str) -> None:
    given: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        given.append(t)
        return 0.5 * x

    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule=schedule, **{spacing: True})
    from_diffusers(model, scheduler).sample(randn(*SHAPE), steps=12, adjoint=sa.Direct())
    scheduler.set_timesteps(12)
    assert torch.equal(torch.stack(given)[:, 0], scheduler.timesteps)
    assert {t.dtype for t in given} == {torch.int64}


def test_orders_are_lowered_at_the_end_of_short_runs_only() -> None:
    adapter = from_diffusers(SmallModel(), diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"))
    assert adapter.parts(steps=15).solver == adapter.solver == sa.DPMSolverPP2M()
    parts = adapter.parts(steps=14)
    assert parts.solver == lowered(adapter.solver, ((float(adapter.frame.clock(parts.grid[-2])), 0),))
    assert parts.solver.claims == adapter.solver.claims
    # What is lowered is the scheduler's own method only.
    scheduler = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min")
    own = from_diffusers(SmallModel(), scheduler, sampler=sa.samplers.ddim)
    assert own.parts(steps=8).solver == sa.Euler()


def test_the_table_of_schedulers_is_that_of_the_installed_diffusers() -> None:
    """A scheduler that a new release of diffusers adds must be read or refused, and told of on the page."""
    installed = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    assert installed == set(READERS) | set(INSTEAD)
    assert not set(READERS) & set(INSTEAD)
    page = (Path(__file__).parent.parent / "docs" / "schedulers.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == sorted(installed)
    assert {name: status for name, status, _ in rows} == {
        **dict.fromkeys(READERS, "supported"),
        **dict.fromkeys(INSTEAD, "refused"),
    }
    assert {name: text for name, status, text in rows if status == "refused"} == INSTEAD


def test_models_with_another_time_must_say_which() -> None:
    class FluxTransformer2DModel(SmallModel):
        pass

    for model in (FluxTransformer2DModel(), torch.compile(FluxTransformer2DModel(), backend="eager")):
        with pytest.raises(ValueError, match="timestep: FluxTransformer2DModel is not given the scheduler's timestep"):
            from_diffusers(model, diffusers.FlowMatchEulerDiscreteScheduler())
    from_diffusers(
        FluxTransformer2DModel(), diffusers.FlowMatchEulerDiscreteScheduler(), timestep=lambda t: t / 1000
    ).sample(randn(*SHAPE), steps=2)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = plain_ddim()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'sdeadjoint\[diffusers\]'"):
        from_diffusers(SmallModel(), scheduler)


def test_every_supported_scheduler_exists() -> None:
    for name in READERS:
        assert issubclass(getattr(diffusers, name), diffusers.SchedulerMixin)


TABLE = tuple(sorted(float(v) for v in torch.linspace(0.1, 3.0, 9, dtype=torch.float64) ** 2))


@settings(max_examples=30)
@given(
    st.sampled_from([Interpolated(TABLE, False), Interpolated(TABLE, True), Proportional(1000.0), QuarterLog()]),
    st.lists(st.floats(0.02, 7.9), min_size=1, max_size=5),
)
def test_levels_and_timesteps_are_inverse(mapping: Timesteps, timesteps: list[float]) -> None:
    t = torch.tensor(timesteps, dtype=torch.float64)
    torch.testing.assert_close(mapping.timestep(mapping.level(t)), t, rtol=1e-12, atol=1e-12)


def test_a_pair_of_half_steps_has_order_two() -> None:
    """``dy/ds = -y^2``, ``y(1) = 1``, ``y(4) = 1/4``, with midpoints half-way in ``log s``; order 1 without."""

    def error(pairs: int, part: float) -> float:
        ends = [4 ** (n / pairs) for n in range(pairs + 1)]
        nodes = [4 ** ((n + fraction) / pairs) for n in range(pairs) for fraction in (0.0, part)] + ends[-1:]
        y, memory = torch.ones((), dtype=torch.float64), TwoStage().initial_state
        for s0, s1 in pairwise(nodes):
            y, memory = TwoStage().step(lambda s, y: -(y**2), sa.Interval(s0, s1), y, memory)
        assert memory == ()
        return abs(float(y) - 0.25)

    # An error C h^p (1 + O(h)) at h = log(4) / 64.
    assert error(64, 0.5) / error(128, 0.5) == pytest.approx(4, rel=1 / 16)
    assert error(64, 0.3) / error(128, 0.3) == pytest.approx(2, rel=1 / 16)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_as_it_is_stepped_is_unipc(order: int, variant: str) -> None:
    """The orders that are proved for the one (theory/orders.md, O7) are claimed for the other; noise enters in both."""
    own, proved = UniPCSteps(order, variant), sa.UniPC(order, variant)
    assert own.claims.ode == proved.claims.ode == min(order + 1, 3)
    results = []
    for solver in (own, proved):
        y0 = randn(3, 2).requires_grad_()
        y = sa.solve(
            lambda s, y: torch.sin(y) + s, y0, clock=[0.3, 0.5, 0.8, 1.1, 1.9, 2.3], solver=solver,
            noise=sa.BrownianPath(seed=3),
        )  # fmt: skip
        results.append((y, *torch.autograd.grad(y.square().sum(), y0)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)  # a 3 x 3 system is solved for the weights


def test_unipc_that_is_lowered_has_order_two() -> None:
    """One step of Euler's leaves ``O(h^2)``; measured against exp, between 64 and 128 steps."""

    def error(steps: int) -> float:
        clock = torch.linspace(1.0, 2.0, steps + 1, dtype=torch.float64).tolist()
        solver = UniPCSteps(3, kept=((clock[-2], 0),))
        assert solver.claims.ode == 2
        y = sa.solve(lambda s, y: -y, torch.ones(1, 1, dtype=torch.float64), clock=clock, solver=solver)
        return abs(float(y) - math.exp(-1))

    assert math.log2(error(64) / error(128)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_methods_keep_the_noise(order: int) -> None:
    """Without a drift the solution is the path."""
    clock, noise = [0.5, 0.7, 1.1, 1.3, 2.0, 2.4], sa.BrownianPath(seed=3)
    y0 = randn(3, 2)
    ends = [
        sa.solve(lambda s, y: 0 * y, y0, clock=clock, solver=solver, noise=noise)
        for solver in (Singlestep(order), sa.Euler())
    ]
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-13)
    assert not torch.equal(ends[0], y0)


def test_five_lines_give_a_gradient() -> None:
    unet, scheduler = made(conditional_unet).float(), diffusers.DPMSolverMultistepScheduler()
    latents, embeddings = torch.randn(1, 2, 8, 8, requires_grad=True), torch.randn(1, 3, 6, requires_grad=True)
    adapter = sa.adapters.from_diffusers(unet, scheduler)
    x_0 = adapter.sample(latents, steps=5, cond={"encoder_hidden_states": embeddings})
    x_0.square().mean().backward()
    for leaf in (latents, embeddings, *unet.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert len(repr(adapter)) < 1000


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 999), st.sampled_from([-1e-12, 0.0, 1e-12])), min_size=1, max_size=8))
def test_levels_that_float32_has_moved_over_a_timestep_are_settled(cases: list[tuple[int, float]]) -> None:
    """A scheduler that cuts ``1000 level`` to a whole number does so before it rounds the level to float32."""
    levels = torch.tensor([n / 1000 * (1 + shift) for n, shift in cases], dtype=torch.float64)
    timesteps = (1000 * levels).floor()
    got = settled(levels.float().double(), timesteps, mapping := Proportional(1000.0, "down"))
    assert torch.equal(mapping.timestep(got), timesteps)
    torch.testing.assert_close(got, levels, rtol=1e-6, atol=0)
    # What is further off than that is left as it is, for the caller to refuse.
    far = settled(levels, timesteps + 1, mapping)
    assert not torch.equal(mapping.timestep(far), timesteps + 1) or bool(((1000 * levels) % 1 > 0.99).any())


def test_a_scheduler_that_repeats_a_level_is_refused() -> None:
    adapter = sa.adapters.from_diffusers(SmallModel(), diffusers.DPMSolverMultistepScheduler())
    with pytest.raises(ValueError, match=r"at 1000 steps it has the noise level 3\.44\d* twice, in steps 499 and 500"):
        adapter.grid(1000)


def test_a_shift_that_would_be_ignored_is_refused() -> None:
    for scheduler in (diffusers.DDIMScheduler(clip_sample=False), diffusers.FlowMatchEulerDiscreteScheduler()):
        with pytest.raises(ValueError, match=r"mu: got 0\.5, but .* does not shift its sigmas dynamically"):
            sa.adapters.from_diffusers(SmallModel(), scheduler, mu=0.5)


# ---------------------------------------------------------------- wrappers


class PassesOn(nn.Module):
    """What many wrappers are."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


class Peft(nn.Module):
    """What peft's models look like from outside: ``get_base_model``, and a forward of ``*args, **kwargs``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base = nn.ModuleDict({"model": model})

    def get_base_model(self) -> nn.Module:
        return self.base["model"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base["model"](*args, **kwargs)


def by_function(model: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: model(*args, **kwargs)


def by_decorator(model: nn.Module) -> Callable[..., Any]:
    @functools.wraps(model.forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return called


WRAPPERS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "module": PassesOn,
    "two modules": lambda model: PassesOn(PassesOn(model)),
    "peft": Peft,
    "data parallel": nn.DataParallel,
    "function": by_function,
    "decorator": by_decorator,
    "partial": functools.partial,
    "bound method": lambda model: model.forward,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled wrapper": lambda model: torch.compile(PassesOn(model), backend="eager"),
}


@functools.cache
def unwrapped() -> tuple[nn.Module, Tensor]:
    """SD3, and what it samples."""
    build, make, cond = MODELS["sd3"]
    model = made(build)
    with torch.no_grad():
        return model, from_diffusers(model, make()).sample(randn(2, 2, 8, 8, seed=1), steps=2, cond=cond)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if "compiled" not in name])
def test_wrapped_models_are_called_by_the_names_of_the_model_inside(name: str) -> None:
    """SD3's time is not its second argument: called by position it fails."""
    _, make, cond = MODELS["sd3"]
    model, plain = unwrapped()
    with torch.no_grad():
        adapter = from_diffusers(WRAPPERS[name](model), make())
        wrapped = adapter.sample(randn(2, 2, 8, 8, seed=1), steps=2, cond=cond)
    torch.testing.assert_close(wrapped, plain, rtol=1e-10, atol=1e-10)


class Late(nn.Module):
    """Its time is not its second argument, and it compiles quickly."""

    def forward(
        self, hidden_states: Tensor, style: float = 0.5, timestep: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        assert timestep is not None
        return (torch.tanh(style * hidden_states + torch.sin(timestep)[:, None, None, None]),)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if "compiled" in name])
def test_compiled_models_are_called_by_the_names_of_the_model_inside(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        plain, compiled = (
            from_diffusers(model, plain_ddim()).sample(randn(*SHAPE), steps=3, cond={"style": 0.8})
            for model in (Late(), WRAPPERS[name](Late()))
        )
    torch.testing.assert_close(plain, compiled, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_does_not_hide_that_its_time_is_another(name: str) -> None:
    class FluxTransformer2DModel(SmallModel):
        pass

    class Mine(FluxTransformer2DModel):
        pass

    with pytest.raises(ValueError, match="timestep: FluxTransformer2DModel is not given the scheduler's timestep"):
        from_diffusers(WRAPPERS[name](Mine()), diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="timestep: FluxTransformer2DModel is not given the scheduler's timestep"):
        from_diffusers(WRAPPERS[name](FluxTransformer2DModel()), diffusers.FlowMatchEulerDiscreteScheduler())


# ---------------------------------------------------------------- custom grids


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 40.0), min_size=2, max_size=8, unique_by=lambda s: round(s, 3)), st.booleans())
def test_random_sigmas_of_euler(levels: list[float], to_zero: bool) -> None:
    """Its timesteps are then interpolated in the logarithm, and not in the level as those of ``set_timesteps(N)``."""
    sigmas = sorted(levels, reverse=True) + ([0.0] if to_zero else [])
    scheduler, model = diffusers.EulerDiscreteScheduler(), SmallModel()
    adapter = from_diffusers(model, scheduler)
    scheduler.set_timesteps(sigmas=sigmas)
    x_T = sigmas[0] * randn(*SHAPE)
    want = loop(scheduler, model, x_T, ())
    for got in (adapter.sample(x_T, sigmas=sigmas), from_diffusers(model, scheduler).sample(x_T)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # their levels and states are float32


TAKEN_AS: dict[str, Callable[[Any], Any]] = {
    "EDMEulerScheduler": torch.tensor,
    "UniPCMultistepScheduler": np.array,
}
FLOW_LEVELS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def test_custom_timesteps_and_sigmas_of_the_others() -> None:
    model = SmallModel()
    for scheduler, custom in (
        (diffusers.DDPMScheduler(clip_sample=False), {"timesteps": [990, 600, 250, 3]}),
        (diffusers.EDMEulerScheduler(), {"sigmas": [0.0, 0.3, 1.0]}),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), {"timesteps": [1000.0, 512.5, 40.0]}),
        (diffusers.UniPCMultistepScheduler(**FLOW_LEVELS, flow_shift=3.0), {"sigmas": [1.0, 0.8, 0.5, 0.2]}),
        (diffusers.HeunDiscreteScheduler(), {"timesteps": [990, 600, 250, 3]}),
        (diffusers.LCMScheduler(clip_sample=False), {"timesteps": [999, 499]}),
    ):
        adapter = from_diffusers(model, scheduler)
        grid = adapter.grid(**custom)
        theirs = {name: TAKEN_AS.get(type(scheduler).__name__, list)(values) for name, values in custom.items()}
        scheduler.set_timesteps(**theirs)
        normals = randn(len(grid), *SHAPE, seed=2)
        x_T = float(grid[0]) * randn(*SHAPE) if isinstance(adapter.schedule, sa.VE) else randn(*SHAPE)
        noise = sa.NormalNoise(normals[: len(grid) - 1]) if adapter.frame.eta else None
        want = loop(scheduler, model, x_T, normals)
        own = from_diffusers(model, scheduler)
        assert torch.equal(own.grid(), own.grid(None))
        for got in (adapter.sample(x_T, noise=noise, **custom), own.sample(x_T, noise=noise)):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


WRONG_GRIDS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (plain_ddim, {"sigmas": [3.0, 1.0]}, "sigmas: DDIMScheduler.set_timesteps does not take them; pass steps"),
    (plain_ddim, {"sigmas": [3.0], "timesteps": [3]}, "sigmas and timesteps: got both; pass at most one"),
    (diffusers.EulerDiscreteScheduler, {"sigmas": [3.0, 1.0, 0.0], "steps": 7}, "steps: got 7 and 3 sigmas"),
    (diffusers.EulerDiscreteScheduler, {"sigmas": [1.0, 3.0, 0.0]}, "it has the noise level 1 and then 3"),
    (diffusers.EulerDiscreteScheduler, {"sigmas": [3.0, float("nan")]}, "sigmas: they hold NaN"),
    (diffusers.EulerDiscreteScheduler, {"sigmas": [[3.0, 1.0], [2.0, 0.0]]}, "sample the batch in parts, one per grid"),
    (diffusers.EulerDiscreteScheduler, {"sigmas": torch.ones(2, requires_grad=True)}, "a grid has no gradient"),
    (diffusers.FlowMatchEulerDiscreteScheduler, {"steps": 3, "mu": 0.5}, "mu: got 0.5, but FlowMatchEulerDiscrete"),
    (plain_ddim, {}, "steps: got None, but the DDIMScheduler has not been set"),
]


@pytest.mark.parametrize(("make", "asked", "message"), WRONG_GRIDS, ids=[message[:40] for *_, message in WRONG_GRIDS])
def test_grids_that_are_refused(make: Callable[[], Any], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(SmallModel(), make()).grid(**asked)
    with pytest.raises(TypeError, match="sigmas: got str; pass a list"):
        from_diffusers(SmallModel(), diffusers.EulerDiscreteScheduler()).grid(sigmas="high")  # type: ignore[arg-type]


def test_grids_without_a_scheduler() -> None:
    adapter = sa.adapters.from_denoiser(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sigma_min=0.1, sigma_max=10.0)
    grid = adapter.grid(sigmas=[8.0, 2.0, 0.0])
    assert torch.equal(grid, torch.tensor([8.0, 2.0, 0.0], dtype=torch.float64))
    x_T = randn(3, 2)
    assert torch.equal(
        adapter.sample(x_T, sigmas=[8.0, 2.0, 0.0]),
        sa.sample(adapter.denoiser, x_T, frame=adapter.frame, solver=adapter.solver, grid=grid),
    )
    assert len(adapter.grid()) == 51
    for asked in ({"timesteps": [3]}, {"mu": 0.5}):
        with pytest.raises(ValueError, match="there is no scheduler that could take it"):
            adapter.grid(**asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps: got 3 and sigmas"):
        adapter.grid(3, sigmas=[1.0, 0.0])


# ---------------------------------------------------------------- sentences


def test_a_scale_alone_is_told_what_is_missing() -> None:
    adapts: list[Callable[..., Any]] = [
        lambda **options: from_diffusers(SmallModel(), plain_ddim(), **options),
        lambda **options: sa.adapters.from_denoiser(lambda x, s: x, sigma_min=0.1, sigma_max=1.0, **options),
        lambda **options: sa.adapters.from_edm(lambda x, s: x, **options),
        lambda **options: sa.adapters.from_velocity(lambda x, t: x, **options),
    ]
    for adapt in adapts:
        with pytest.raises(TypeError, match=r"guidance: got 7\.5, a scale alone; pass Guidance\(scale, unconditional="):
            adapt(guidance=7.5)


def test_states_in_parts_are_told_what_to_do() -> None:
    adapter = from_diffusers(SmallModel(), plain_ddim())
    for parts in ((randn(*SHAPE), randn(*SHAPE)), {"audio": randn(*SHAPE)}):
        with pytest.raises(TypeError, match=r"x_T: got .*; an adapter samples one tensor .*pass one flat tensor"):
            adapter.sample(parts, steps=2)  # type: ignore[arg-type]


def test_reprs_and_errors_stay_short() -> None:
    for make in (plain_ddim, diffusers.EulerDiscreteScheduler, diffusers.UniPCMultistepScheduler):
        adapter = from_diffusers(SmallModel(), make())
        other = from_diffusers(SmallModel(), diffusers.DDPMScheduler(clip_sample=False, beta_end=0.01))
        assert len(repr(adapter)) < 300
        assert len(repr(adapter.schedule)) < 300
        assert len(repr(adapter.denoiser)) < 500
        assert len(repr(adapter.frame)) < 300
        with pytest.raises(ValueError, match="frame: its schedule is") as caught:
            sa.sample(adapter.denoiser, randn(*SHAPE), frame=other.frame, grid=other.grid(3), solver=sa.Euler())
        assert len(str(caught.value)) < 600
    assert "SmallModel" in repr(adapter)
