"""Pipelines of diffusers, as their own calls run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...diffusion.guidance import Guidance
from ..ancestral import AncestralPair
from ..base import Adapter
from ..diffusers import check_rescale, from_diffusers
from ..networks import DiffusersNetwork
from ..two_stage import TwoStage
from .audio import StableAudio
from .convention import Convention, Options, PipelineGrid, default_of
from .flow import Flux, FluxImageToImage, StableDiffusion3
from .pixart import PixArt
from .stable_diffusion import StableDiffusion, StableDiffusionXL
from .video import LTX, CogVideoX, Wan

CONVENTIONS: dict[str, Callable[[Any, Options], Convention]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionImg2ImgPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusionXLImg2ImgPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "StableDiffusion3Img2ImgPipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "FluxImg2ImgPipeline": FluxImageToImage,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "LTXPipeline": LTX,
    "WanPipeline": Wan,
    "CogVideoXPipeline": CogVideoX,
    "StableAudioPipeline": StableAudio,
}


def from_pipeline(
    pipe: Any,
    *,
    guidance: float | Tensor | Guidance | None = None,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    strength: float | None = None,
) -> Adapter:
    """A pipeline of diffusers as its own call runs it, differentiable and exact.

        adapter = sa.adapters.from_pipeline(pipe, guidance=7.5)
        prompt, negative = pipe.encode_prompt("a cat", "cpu", 1, True)
        pipe.scheduler.set_timesteps(30)
        latents = torch.randn(1, 4, 64, 64) * pipe.scheduler.init_noise_sigma
        x_0 = adapter.sample(latents, steps=30, cond={"prompt_embeds": prompt, "negative_prompt_embeds": negative})
        image = adapter.decode(x_0)          # in [-1, 1]

    Read from the pipeline: the model, the scheduler and its prediction; the number of steps, the sigmas and the shift
    by resolution that the call gives its scheduler; the guidance, and the names of the conditioning.

    Args:
        pipe: one of the pipelines below. It is read, not changed; another scheduler is put in with ``pipe.scheduler``.
        guidance: ``guidance_scale`` of the call, its default if left out: a number, a tensor (which then has a
            gradient), or ``Guidance(scale, rescale=..., interval=...)`` for ``guidance_rescale`` and for times without
            guidance (in the times of ``adapter.grid``). Up to 1 means none. The unconditional side is what ``cond``
            holds under ``negative_...``.
        eta: DDIM's, as in the call.
        height, width, num_frames: in pixels and frames, as in the call; they matter to models that are told them.
        strength: of image-to-image pipelines; the grid then begins where their loop does.

    ``cond`` takes arguments of the call by name: ``prompt_embeds``, ``negative_prompt_embeds``,
    ``pooled_prompt_embeds``, ``prompt_attention_mask`` and so on; a wrong name is refused with the list. Prompts are
    encoded by ``pipe.encode_prompt``.

    ``sample(x_T)`` takes the latents as the call's loop has them: after the multiplication with
    ``scheduler.init_noise_sigma`` (as it is after ``set_timesteps``), packed where the pipeline packs them (Flux, LTX);
    for image-to-image ``scheduler.add_noise(latents, noise, timesteps[:1])`` (``scale_noise`` of flows, before they are
    packed). It returns what ``output_type="latent"`` returns.

    ``decode(latents)`` is the VAE's decoder with the pipeline's own scaling and shift, before postprocessing:
    ``latents / scaling_factor`` (Stable Diffusion, PixArt, CogVideoX), ``+ shift_factor`` (SD3, Flux), times a
    deviation and plus a mean for each channel (LTX, Wan, some SDXL), none (Stable Audio). Gradients go through it.

    Supported: {supported}.

    Errors: ``ValueError`` for other pipelines, and for subclasses, whose call may be another one; ``from_diffusers``
    takes their model and scheduler.
    """
    convention = _kind(pipe)(pipe, _options(pipe, guidance, height, width, num_frames))
    adapter = from_diffusers(convention.model, pipe.scheduler, eta=eta, timestep=convention.timestep)
    network = adapter.denoiser.network
    assert isinstance(network, DiffusersNetwork)
    check_rescale(convention.options.guidance, network.preconditioning)
    times = PipelineGrid(
        adapter.times,
        convention,
        _strength(convention, strength),
        2 if isinstance(adapter.solver, TwoStage | AncestralPair) else 1,
    )
    return replace(adapter, times=times, surroundings=convention)


from_pipeline.__doc__ = (from_pipeline.__doc__ or "").replace("{supported}", ", ".join(CONVENTIONS))


def _options(pipe: Any, guidance: Any, height: int | None, width: int | None, num_frames: int | None) -> Options:
    if isinstance(guidance, Guidance) and guidance.unconditional:
        raise ValueError(
            "guidance: got unconditional conditioning; pass it in cond under its names in the pipeline's call, "
            "negative_prompt_embeds and so on"
        )
    if guidance is None:
        guidance = default_of(pipe, "guidance_scale")
    if isinstance(guidance, bool) or not isinstance(guidance, Guidance | Tensor | int | float):
        raise TypeError(f"guidance: got {guidance!r}; pass a number such as 7.5, a tensor, or Guidance(7.5)")
    whole = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    return Options(whole, height, width, num_frames)


def _kind(pipe: Any) -> Callable[[Any, Options], Convention]:
    """The convention of a pipeline's class; refusals name it and say what takes its parts."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("from_pipeline needs diffusers; pip install 'sdeadjoint[diffusers]'") from error
    name = type(pipe).__name__
    if not isinstance(pipe, diffusers.DiffusionPipeline):
        raise TypeError(f"pipe: got {name}; pass a pipeline of diffusers, or its parts to from_diffusers")
    if name not in CONVENTIONS or not type(pipe).__module__.startswith("diffusers."):
        part = next((n for n in ("unet", "transformer", "prior") if getattr(pipe, n, None) is not None), "model")
        raise ValueError(
            f"pipe: {name} is not known, and its call may do more than its scheduler says; pass its parts, "
            f"from_diffusers(pipe.{part}, pipe.scheduler). Known are {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]


def _strength(convention: Convention, strength: float | None) -> float | None:
    default = convention.default("strength")
    if default is None:
        if strength is not None:
            raise ValueError(
                f"strength: the call of {type(convention.pipe).__name__} has none; pass its image-to-image pipeline"
            )
        return None
    strength = float(default) if strength is None else strength
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise ValueError(f"strength: got {strength!r}; pass a number in (0, 1]")
    return float(strength)
