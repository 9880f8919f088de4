"""``from_pipeline`` against the pipelines' own calls: latents, and gradients by autograd through that very code.

Models and conditioning are float64. Schedulers keep their tables in float32, and some pipelines and models cast states
or times to it: 3 or 4 steps with some 1e-7 each make 1e-5 for samples, and 1e-4 for gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="diffusers imports its pipelines only where transformers is installed")

from .pipelines import CASES, POOLED, STABLE, Case, call, flux, randn, sd3, sdxl, stable_diffusion, texts  # noqa: E402

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),  # of Stable Audio's VAE
]
STEPS = 3


@functools.cache
def pipeline(name: str) -> Any:
    return CASES[name].pipe()


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


def leaves_of(cond: Mapping[str, Any]) -> dict[str, Tensor]:
    """Fresh leaves for the floating tensors of a call."""
    return {
        name: value.clone().requires_grad_()
        for name, value in cond.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def weight_of(pipe: Any) -> Tensor:
    """A weight that every one of the models uses."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    return next(p for name, p in model.named_parameters() if p.ndim >= 2 and "time" in name)


def compare(pipe: Any, case: Case, ours: dict[str, Any], theirs: dict[str, Any], scale: float) -> None:
    """Samples and gradients of latents, embeddings and a weight."""
    results = []
    for own in (True, False):
        x, tensors, weight = randn(*case.shape, seed=9).requires_grad_(), leaves_of(case.cond), weight_of(pipe)
        cond = {**case.cond, **tensors}
        if own:
            adapter = sa.adapters.from_pipeline(pipe, **case.ours)
            latents = adapter.sample(scale * x, cond=cond, **ours)
        else:
            latents = call(pipe, latents=x, **cond, **case.theirs, **theirs)
        leaves = [x, weight, *tensors.values()]
        weights = randn(*latents.shape, seed=4)
        results.append((latents, *torch.autograd.grad((weights * latents).sum(), leaves)))
    assert results[0][0].shape == results[1][0].shape
    for n, (got, want) in enumerate(zip(*results, strict=True)):
        assert distance(got, want) <= (1e-4 if n else 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_latents_and_gradients_are_those_of_the_call(name: str) -> None:
    pipe = pipeline(name)
    # Euler's starting noise is scaled by the largest of the sigmas that it is set to.
    pipe.scheduler.set_timesteps(STEPS, **({"mu": 1.0} if pipe.scheduler.config.get("use_dynamic_shifting") else {}))
    scale = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    steps = {"steps": STEPS}, {"num_inference_steps": STEPS}
    compare(pipe, CASES[name], *steps, scale=scale)


CUSTOM = [
    ("SDXL", {"sigmas": [11.0, 4.0, 1.3, 0.0]}),
    ("SDXL", {"timesteps": [901, 500, 20]}),
    ("SD3", {"sigmas": [1.0, 0.8, 0.3]}),
    ("Flux", {"sigmas": [1.0, 0.8, 0.3]}),
    ("PixArt-sigma", {"timesteps": [901, 500, 20]}),
]


@pytest.mark.parametrize(("name", "custom"), CUSTOM, ids=[f"{name}-{next(iter(c))}" for name, c in CUSTOM])
def test_custom_sigmas_and_timesteps(name: str, custom: dict[str, list[float]]) -> None:
    pipe = pipeline(name)
    if name == "SDXL":
        pipe.scheduler.set_timesteps(**custom)  # for the scale of the starting noise
    scale = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    compare(pipe, CASES[name], custom, custom, scale)


def test_whose_grid_it_is() -> None:
    """Flux passes sigmas of its own; the scheduler's default grid is another."""
    pipe = pipeline("Flux, true guidance")
    adapter = sa.adapters.from_pipeline(pipe, height=8, width=12)
    torch.testing.assert_close(adapter.grid(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    plain = sa.adapters.from_diffusers(pipe.transformer, pipe.scheduler, timestep=lambda t: t / 1000)
    assert float(plain.grid(4)[1]) == pytest.approx(0.667, abs=1e-3)
    torch.testing.assert_close(plain.grid(sigmas=[1, 0.75, 0.5, 0.25]), adapter.grid(4))
    assert len(adapter.grid()) == 29  # the call's default of 28 steps


def test_a_shift_by_resolution_is_that_of_the_latents() -> None:
    pipe = pipeline("SD3, shifted")
    adapter = sa.adapters.from_pipeline(pipe, guidance=1.0)
    small, large = (adapter.parts(steps=4, cond=texts("prompt_embeds", "pooled_prompt_embeds"), like=x).grid
                    for x in (randn(2, 4, 4, 4), randn(2, 4, 8, 8)))  # fmt: skip
    assert torch.equal(adapter.grid(4), small)
    assert not torch.equal(small, large)
    assert torch.equal(
        adapter.grid(4, mu=0.5), sa.adapters.from_diffusers(pipe.transformer, pipe.scheduler).grid(4, mu=0.5)
    )


NOISY: dict[str, tuple[str, Callable[[], Any]]] = {
    "ancestral": ("Stable Diffusion", lambda: diffusers.EulerAncestralDiscreteScheduler(**STABLE)),
    "LCM": ("Stable Diffusion, distilled", lambda: diffusers.LCMScheduler(clip_sample=False, **STABLE)),
    "flow LCM": ("SD3", lambda: diffusers.FlowMatchLCMScheduler(shift=3.0)),
}


@pytest.mark.parametrize("name", NOISY)
def test_stochastic_schedulers_with_the_normals_of_the_call(name: str) -> None:
    kind, scheduler = NOISY[name]
    case, steps = CASES[kind], 4
    pipe = case.pipe(scheduler())
    pipe.scheduler.set_timesteps(steps)
    x, scale = randn(*case.shape, seed=9), float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    with torch.random.fork_rng():
        torch.manual_seed(3)  # some pipelines do not hand a generator on
        want = call(pipe, latents=x, num_inference_steps=steps, **case.cond, **case.theirs)
    # Some draw in the last step as well, and then multiply by 0.
    drawn = torch.Generator().manual_seed(3)
    normals = torch.stack([torch.randn(case.shape, generator=drawn, dtype=torch.float64) for _ in range(steps)])
    adapter = sa.adapters.from_pipeline(pipe, **case.ours)
    noise = sa.NormalNoise(normals.requires_grad_())
    got = adapter.sample(scale * x, steps=steps, cond=case.cond, noise=noise)
    assert distance(got, want) <= 1e-5
    (gradient,) = torch.autograd.grad(got.sum(), normals)
    assert gradient[:-1].count_nonzero() > 0
    assert gradient[-1].count_nonzero() == 0


# ---------------------------------------------------------------- image to image

IMAGE_TO_IMAGE = {
    "Stable Diffusion": (
        functools.partial(stable_diffusion, name="StableDiffusionImg2ImgPipeline"),
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **STABLE),
        texts("prompt_embeds", "negative_prompt_embeds"),
        {},
    ),
    "Stable Diffusion, Heun": (
        functools.partial(stable_diffusion, name="StableDiffusionImg2ImgPipeline"),
        lambda: diffusers.HeunDiscreteScheduler(timestep_spacing="leading", **STABLE),
        texts("prompt_embeds", "negative_prompt_embeds"),
        {},
    ),
    "SDXL": (
        functools.partial(sdxl, name="StableDiffusionXLImg2ImgPipeline"),
        lambda: diffusers.DPMSolverMultistepScheduler(timestep_spacing="leading", **STABLE),
        {
            **texts(*POOLED),
            "negative_original_size": (8, 6),
        },
        {},
    ),
    "SD3": (
        functools.partial(sd3, name="StableDiffusion3Img2ImgPipeline"),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        texts(*POOLED),
        {"height": 8, "width": 8},
    ),
}  # fmt: skip


@functools.cache
def image_to_image(name: str) -> Any:
    make, scheduler, *_ = IMAGE_TO_IMAGE[name]
    pipe = make(scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("strength", [0.3, 0.55, 1.0])
@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
@torch.no_grad()
def test_strength_of_image_to_image(name: str, strength: float) -> None:
    _, _, cond, more = IMAGE_TO_IMAGE[name]
    pipe, image, steps = image_to_image(name), randn(2, 4, 4, 4, seed=7), 7
    generator = torch.Generator().manual_seed(5)
    want = call(
        pipe, image=image, strength=strength, num_inference_steps=steps, guidance_scale=2.0, generator=generator,
        **cond, **more,
    )  # fmt: skip
    adapter = sa.adapters.from_pipeline(pipe, guidance=2.0, strength=strength)
    grid = adapter.grid(steps)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    # The state at the grid's first time: alpha x_0 + sigma noise, as scheduler.add_noise makes it.
    alpha, sigma = adapter.schedule.alpha(grid[0]), adapter.schedule.sigma(grid[0])
    got = adapter.sample(alpha * image + sigma * noise, steps=steps, cond=cond)
    assert distance(got, want) <= 1e-5
    assert len(grid) - 1 == {0.3: {"SD3": 3}.get(name, 2), 0.55: {"SD3": 4}.get(name, 3), 1.0: 7}[strength]


@functools.cache
def flux_from_images() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = flux(scheduler, "FluxImg2ImgPipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("true_cfg_scale", [None, 2.0])
def test_strength_of_flux(strength: float, true_cfg_scale: float | None) -> None:
    """Its noise is drawn before the latents are packed; the embeddings and a weight have the call's gradients."""
    pipe = flux_from_images()
    names = ("prompt_embeds", "pooled_prompt_embeds") if true_cfg_scale is None else POOLED
    scale = {} if true_cfg_scale is None else {"true_cfg_scale": true_cfg_scale}
    size, results = {"height": 8, "width": 12}, []
    for own in (True, False):
        image, cond = randn(2, 4, 4, 6, seed=7).requires_grad_(), leaves_of(texts(*names))
        generator = torch.Generator().manual_seed(5)
        if own:
            adapter = sa.adapters.from_pipeline(pipe, guidance=2.0, strength=strength, **size)
            sigma = float(adapter.grid(5)[0])
            noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
            x = pipe._pack_latents(sigma * noise + (1 - sigma) * image, 2, 4, 4, 6)
            latents = adapter.sample(x, steps=5, cond={**cond, **scale})
            assert len(adapter.grid(5)) == {0.3: 3, 0.6: 4, 1.0: 6}[strength]
        else:
            latents = call(
                pipe, image=image, strength=strength, num_inference_steps=5, guidance_scale=2.0, generator=generator,
                **cond, **scale, **size,
            )  # fmt: skip
        leaves = [image, weight_of(pipe), *cond.values()]
        results.append((latents, *torch.autograd.grad((randn(*latents.shape, seed=4) * latents).sum(), leaves)))
    for n, (got, want) in enumerate(zip(*results, strict=True)):
        # At strength 1 the image enters by what float32 leaves of 1 - sigma: nothing, in either.
        if n == 1 and strength == 1.0:
            assert got.abs().max() <= 1e-6
        else:
            assert distance(got, want) <= (1e-4 if n else 1e-5)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: diffusers.LMSDiscreteScheduler(**STABLE), "LMSDiscreteScheduler, which then uses the weights of"),
        (lambda: diffusers.PNDMScheduler(skip_prk_steps=True, **STABLE), "PNDMScheduler, which then takes its first"),
        (lambda: diffusers.UniPCMultistepScheduler(disable_corrector=[0], **STABLE), "count the steps that are left"),
    ],
)
def test_schedulers_that_cannot_begin_late(scheduler: Callable[[], Any], message: str) -> None:
    """The calls of LMS and PNDM then give other samples than their methods: by 0.1 and more of their size."""
    pipe = stable_diffusion(scheduler(), name="StableDiffusionImg2ImgPipeline")
    with pytest.raises(ValueError, match=f"strength: got 0.5 with .*{message}"):
        sa.adapters.from_pipeline(pipe, strength=0.5).grid(6)
    assert len(sa.adapters.from_pipeline(pipe, strength=1.0).grid(6)) == 7


def test_a_strength_that_leaves_no_step() -> None:
    make, scheduler, *_ = IMAGE_TO_IMAGE["Stable Diffusion"]
    adapter = sa.adapters.from_pipeline(make(scheduler()), strength=0.1)
    with pytest.raises(ValueError, match=r"strength: got 0\.1, which leaves none of 5 steps"):
        adapter.grid(5)
    for strength in (0.0, 1.5, True):
        with pytest.raises(ValueError, match=r"strength: got .*; pass a number in"):
            sa.adapters.from_pipeline(make(scheduler()), strength=strength)


# ---------------------------------------------------------------- decoding

DECODED = ["Stable Diffusion", "SDXL", "SD3", "Flux", "PixArt-sigma", "LTX", "Wan", "CogVideoX", "Stable Audio"]


@pytest.mark.parametrize("name", DECODED)
def test_decoding_is_that_of_the_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call's own decoding of the same latents, without its postprocessing; and it has a gradient."""
    pipe, case = pipeline(name), CASES[name]
    decoded: list[Tensor] = []
    decode = pipe.vae.decode

    def recorded(*args: Any, **options: Any) -> Any:
        out = decode(*args, **options)
        decoded.append(out[0] if isinstance(out, tuple) else out.sample)
        return out

    latents = randn(*case.shape, seed=3)
    if name == "LTX":
        latents = latents.float().double()  # the call keeps its latents in float32
    with monkeypatch.context() as patch:
        # A scheduler that leaves the latents as they are.
        patch.setattr(pipe.vae, "decode", recorded)
        patch.setattr(type(pipe.scheduler), "step", lambda self, out, t, x, *a, **k: _Unchanged(x))
        patch.setattr(type(pipe.scheduler), "init_noise_sigma", 1.0, raising=False)
        theirs = {"output_type": "np" if name == "Stable Audio" else "pt", **case.theirs}
        type(pipe).__call__(pipe, latents=latents, num_inference_steps=2, **case.cond, **theirs)
    x = latents.clone().requires_grad_()
    options = {**case.ours, **({"num_frames": 9} if name == "CogVideoX" else {})}
    got = sa.adapters.from_pipeline(pipe, **options).decode(x)
    # The call may round latents to float32 on the way.
    torch.testing.assert_close(got, decoded[0].to(got.dtype), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() > 0


class _Unchanged(tuple):
    """What a scheduler's step returns, in either form."""

    def __new__(cls, x: Tensor) -> _Unchanged:
        return super().__new__(cls, (x,))

    @property
    def prev_sample(self) -> Tensor:
        return self[0]


# ---------------------------------------------------------------- guidance, and what is refused


def test_a_scale_that_is_a_tensor_has_a_gradient() -> None:
    pipe, case = pipeline("Stable Diffusion"), CASES["Stable Diffusion"]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    got = sa.adapters.from_pipeline(pipe, guidance=scale).sample(
        randn(*case.shape, seed=9), steps=STEPS, cond=case.cond
    )
    want = call(pipe, latents=randn(*case.shape, seed=9), num_inference_steps=STEPS, guidance_scale=3.0, **case.cond)
    assert distance(got, want) <= 1e-5
    (gradient,) = torch.autograd.grad(got.sum(), scale)
    both = [
        call(pipe, latents=randn(*case.shape, seed=9), num_inference_steps=STEPS, guidance_scale=g, **case.cond)
        .sum()
        .detach()
        for g in (3.0 - 1e-3, 3.0 + 1e-3)
    ]
    # A central difference of step 1e-3: its own error is 1e-6, float32 tables leave 1e-4 of it.
    assert float(gradient) == pytest.approx(float(both[1] - both[0]) / 2e-3, rel=1e-3)


def test_rescaled_guidance() -> None:
    pipe, case = pipeline("Stable Diffusion"), CASES["Stable Diffusion"]
    x = randn(*case.shape, seed=9)
    want = call(pipe, latents=x, num_inference_steps=STEPS, guidance_scale=3.0, guidance_rescale=0.7, **case.cond)
    adapter = sa.adapters.from_pipeline(pipe, guidance=sa.Guidance(3.0, rescale=0.7, batched=False))
    assert distance(adapter.sample(x, steps=STEPS, cond=case.cond), want) <= 1e-5


def test_guidance_that_stops_half_way_is_the_callback_of_the_call() -> None:
    """``callback_on_step_end`` of diffusers' own guide switches guidance off; the model is then called once."""
    pipe, case = CASES["Stable Diffusion"].pipe(), CASES["Stable Diffusion"]
    x, rows = randn(*case.shape, seed=9), []

    def stop(pipe: Any, n: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if n == 1:
            pipe._guidance_scale = 1.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    want = call(
        pipe, latents=x, num_inference_steps=4, guidance_scale=3.0, **case.cond,
        callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )  # fmt: skip
    pipe.unet.register_forward_pre_hook(lambda model, given, named: rows.append(len(named["sample"])), with_kwargs=True)
    schedule = sa.Guidance(sa.Scheduled([3.0, 3.0, 1.0, 1.0]), rescale=0.0)
    grid = sa.adapters.from_pipeline(pipe).grid(4)
    interval = sa.Guidance(3.0, interval=(float(grid[1]), 1000.0))
    for guidance in (schedule, interval):
        got = sa.adapters.from_pipeline(pipe, guidance=guidance).sample(x, steps=4, cond=case.cond)
        assert distance(got, want) <= 1e-5
        assert rows == [4, 4, 2, 2]
        rows.clear()


def test_options_of_two_calls_for_models_that_are_called_once() -> None:
    for name in ("Flux", "Stable Diffusion, distilled"):
        case = CASES[name]
        for options in ({"rescale": 0.5}, {"interval": (0.2, 0.8)}):
            ours = {**case.ours, "guidance": sa.Guidance(2.0, **options)}
            adapter = sa.adapters.from_pipeline(pipeline(name), **ours)
            with pytest.raises(ValueError, match=r"guidance: got .*the model is called once; pass a number"):
                adapter.sample(randn(*case.shape), steps=2, cond=case.cond)


def test_the_defaults_are_those_of_the_call() -> None:
    pipe, case = pipeline("Stable Diffusion"), CASES["Stable Diffusion"]
    x = randn(*case.shape, seed=9)
    adapter = sa.adapters.from_pipeline(pipe)
    with torch.no_grad():
        got, want = adapter.sample(x, cond=case.cond), call(pipe, latents=x, **case.cond)
    assert distance(got, want) <= 1e-5  # 50 steps, a scale of 7.5
    assert len(adapter.grid()) == 51


def test_one_prompt_for_a_batch() -> None:
    pipe, case = pipeline("SD3"), CASES["SD3"]
    x, cond = randn(*case.shape, seed=9), {name: value[:1] for name, value in case.cond.items()}
    adapter = sa.adapters.from_pipeline(pipe, guidance=2.0)
    whole = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in cond.items()}
    assert torch.equal(adapter.sample(x, steps=2, cond=cond), adapter.sample(x, steps=2, cond=whole))


def test_parts_serve_every_entry_point() -> None:
    pipe, case = pipeline("SDXL"), CASES["SDXL"]
    adapter, x = sa.adapters.from_pipeline(pipe, **case.ours), randn(*case.shape, seed=9)
    parts = adapter.parts(steps=STEPS, cond=case.cond, like=x)
    whole = adapter.sample(x, steps=STEPS, cond=case.cond)
    assert torch.equal(sa.sample(x_T=x, **parts._asdict()), whole)
    with pytest.raises(ValueError, match="like: got None, but a pipeline's conditioning depends on the latents"):
        adapter.parts(steps=STEPS, cond=case.cond)


def test_what_is_refused() -> None:
    pipe, case = pipeline("SDXL"), CASES["SDXL"]
    adapter, x = sa.adapters.from_pipeline(pipe), randn(*case.shape)
    with pytest.raises(
        ValueError, match=r"cond: got \['encoder_hidden_states'\]; for StableDiffusionXLPipeline pass argu"
    ):
        adapter.sample(x, steps=2, cond={**case.cond, "encoder_hidden_states": x})
    with pytest.raises(ValueError, match=r"cond: StableDiffusionXLPipeline needs \['pooled_prompt_embeds'\]"):
        adapter.sample(x, steps=2, cond=texts("prompt_embeds"))
    with pytest.raises(ValueError, match=r"guidance 5\.0 needs negative_prompt_embeds, negative_pooled_prompt_embeds"):
        adapter.sample(x, steps=2, cond=texts("prompt_embeds", "pooled_prompt_embeds"))
    with pytest.raises(ValueError, match=r"x_T: its shape \(2, 4, 6, 4\) is that of 12 x 8 pixels, but .*height=12"):
        adapter.sample(randn(2, 4, 6, 4), steps=2, cond=case.cond)
    with pytest.raises(ValueError, match="negative_prompt_embeds requires a gradient, but without guidance"):
        sa.adapters.from_pipeline(pipe, guidance=1.0).sample(x, steps=2, cond={**case.cond, **leaves_of(case.cond)})
    with pytest.raises(ValueError, match="guidance: got unconditional conditioning; pass it in cond"):
        sa.adapters.from_pipeline(pipe, guidance=sa.Guidance(2.0, {"a": x}))
    with pytest.raises(TypeError, match=r"guidance: got 'high'; pass a number such as 7\.5"):
        sa.adapters.from_pipeline(pipe, guidance="high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strength: the call of StableDiffusionXLPipeline has none"):
        sa.adapters.from_pipeline(pipe, strength=0.5)
    with pytest.raises(TypeError, match=r"pipe: got UNet2DConditionModel; pass a pipeline"):
        sa.adapters.from_pipeline(pipe.unet)
    with pytest.raises(ValueError, match=r"decode: this adapter has a model, but no VAE"):
        sa.adapters.from_diffusers(pipe.unet, pipe.scheduler).decode(x)


def test_pipelines_that_are_not_known_are_refused_by_name() -> None:
    unet, scheduler = pipeline("Stable Diffusion").unet, diffusers.DDPMScheduler(clip_sample=False)
    with pytest.raises(
        ValueError, match=r"pipe: DDPMPipeline is not known.*from_diffusers\(pipe\.unet, pipe\.scheduler\)"
    ):
        sa.adapters.from_pipeline(diffusers.DDPMPipeline(unet, scheduler))

    class Mine(diffusers.StableDiffusionPipeline):
        """Its call may be another one."""

    parts = {name: part for name, part in pipeline("Stable Diffusion").components.items() if name != "image_encoder"}
    own = Mine(**parts, requires_safety_checker=False)
    with pytest.raises(ValueError, match="pipe: Mine is not known"):
        sa.adapters.from_pipeline(own)
    parts = {name: part for name, part in pipeline("Wan").components.items() if name != "transformer_2"}
    two = diffusers.WanPipeline(**parts, boundary_ratio=0.5)
    with pytest.raises(ValueError, match="WanPipeline with boundary_ratio has a second transformer"):
        sa.adapters.from_pipeline(two)
