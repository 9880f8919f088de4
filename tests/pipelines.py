"""Pipelines of diffusers with small random models in float64, and their own call with its autograd switched on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

DOUBLE = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def random_weights(model: nn.Module) -> nn.Module:
    """No zero-initialised layers, the same numbers each time, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = max(parameter[0].numel(), 1) if parameter.ndim else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / size**0.5)
    return model.double().eval()


def vae(channels: int, **options: Any) -> nn.Module:
    return random_weights(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=2,
            layers_per_block=1,
            sample_size=16,
            **options,
        )
    )


def unet(**options: Any) -> nn.Module:
    return random_weights(
        diffusers.UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(4, 4),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=6,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **options,
        )
    )


@dataclass(frozen=True)
class Case:
    """A pipeline, the shape of its latents, and the tensors and options that its call is given.

    Tensors are the conditioning, options go to ``from_pipeline`` under ``ours`` and to the call under ``theirs``.
    """

    make: Callable[[Any], Any]
    scheduler: Callable[[], Any]
    shape: tuple[int, ...]
    cond: dict[str, Any]
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)

    def pipe(self, scheduler: Any = None) -> Any:
        pipe = self.make(self.scheduler() if scheduler is None else scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def call(pipe: Any, **options: Any) -> Tensor:
    """``pipe(...)`` with ``output_type="latent"``, differentiable: its own code under its ``no_grad``."""
    function = type(pipe).__call__.__wrapped__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = function(pipe, output_type="latent", return_dict=False, **options)
    found: Tensor = out[0] if isinstance(out, tuple) else out.audios
    return found


def stable_diffusion(scheduler: Any, name: str = "StableDiffusionPipeline", **options: Any) -> Any:
    return getattr(diffusers, name)(
        vae=vae(4, scaling_factor=0.18),
        unet=unet(**options),
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(scheduler: Any, name: str = "StableDiffusionXLPipeline") -> Any:
    return getattr(diffusers, name)(
        vae=vae(4, scaling_factor=0.13),
        unet=unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 5,
            transformer_layers_per_block=1,
        ),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=scheduler,
        add_watermarker=False,
    )


def sd3(scheduler: Any, name: str = "StableDiffusion3Pipeline") -> Any:
    model = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=5,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return getattr(diffusers, name)(
        transformer=random_weights(model),
        scheduler=scheduler,
        vae=vae(4, scaling_factor=1.5, shift_factor=0.06),
        **dict.fromkeys(
            ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        ),
    )


def flux(scheduler: Any, name: str = "FluxPipeline") -> Any:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return getattr(diffusers, name)(
        transformer=random_weights(model),
        scheduler=scheduler,
        vae=vae(4, scaling_factor=0.36, shift_factor=0.11),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )


def pixart(scheduler: Any, name: str = "PixArtAlphaPipeline", sample_size: int = 32) -> Any:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=12,
        sample_size=sample_size,
        patch_size=2,
        caption_channels=6,
        norm_num_groups=2,
    )
    return getattr(diffusers, name)(
        tokenizer=None, text_encoder=None, vae=vae(4, scaling_factor=0.18), transformer=random_weights(model),
        scheduler=scheduler,
    )  # fmt: skip


def ltx(scheduler: Any) -> Any:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=6,
    )
    coder = diffusers.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    coder = random_weights(coder)
    with torch.no_grad():
        coder.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        coder.latents_std.copy_(torch.tensor([1.1, 0.7, 0.9, 1.3]))
    return diffusers.LTXPipeline(
        scheduler=scheduler, vae=coder, text_encoder=None, tokenizer=None, transformer=random_weights(model)
    )


def wan(scheduler: Any) -> Any:
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=6,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    coder = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.7, 0.9, 1.3],
    )
    return diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=random_weights(coder),
        scheduler=scheduler,
        transformer=random_weights(model),
    )


def cogvideox(scheduler: Any) -> Any:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=6,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=3,
        use_rotary_positional_embeddings=True,
    )
    coder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=0.7,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=random_weights(coder), transformer=random_weights(model),
        scheduler=scheduler,
    )  # fmt: skip


def stable_audio(scheduler: Any) -> Any:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    model = diffusers.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=6,
        time_proj_dim=8,
        global_states_input_dim=12,
        cross_attention_input_dim=6,
    )
    coder = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    projection = StableAudioProjectionModel(text_encoder_dim=6, conditioning_dim=6, min_value=0, max_value=32)
    return diffusers.StableAudioPipeline(
        vae=random_weights(coder), text_encoder=None, projection_model=random_weights(projection), tokenizer=None,
        transformer=random_weights(model), scheduler=scheduler,
    )  # fmt: skip


def texts(*names: str, length: int = 3) -> dict[str, Tensor]:
    """Conditional and unconditional embeddings of two samples."""
    shapes = {"prompt_embeds": (2, length, 6), "pooled_prompt_embeds": (2, 5)}
    return {name: randn(*shapes[name.removeprefix("negative_")], seed=len(name)) for name in names}


PLAIN = ("prompt_embeds", "negative_prompt_embeds")
POOLED = (*PLAIN, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKS = {
    "prompt_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    "negative_prompt_attention_mask": torch.tensor([[1, 0, 0], [1, 1, 0]]),
}
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
flow = diffusers.FlowMatchEulerDiscreteScheduler

CASES: dict[str, Case] = {
    "Stable Diffusion": Case(
        stable_diffusion,
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **STABLE),
        (2, 4, 4, 4),
        texts(*PLAIN),
        {"guidance": 3.0},
        {"guidance_scale": 3.0},
    ),
    "Stable Diffusion, distilled": Case(
        functools.partial(stable_diffusion, time_cond_proj_dim=4),
        lambda: diffusers.DPMSolverMultistepScheduler(**STABLE, timestep_spacing="leading"),
        (2, 4, 4, 4),
        texts("prompt_embeds"),
        {"guidance": 8.5},
        {"guidance_scale": 8.5},
    ),
    "SDXL": Case(
        sdxl,
        lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **STABLE),
        (2, 4, 4, 4),
        {
            **texts(*POOLED),
            "original_size": (20, 24),
            "negative_original_size": (10, 12),
            "negative_target_size": (8, 8),
        },
        {"guidance": 2.5},
        {"guidance_scale": 2.5},
    ),
    "SD3": Case(
        sd3,
        lambda: flow(shift=3.0),
        (2, 4, 4, 4),
        texts(*POOLED),
        {"guidance": 2.5},
        {"guidance_scale": 2.5},
    ),
    "SD3, shifted": Case(
        sd3,
        lambda: flow(use_dynamic_shifting=True),
        (2, 4, 4, 4),
        texts("prompt_embeds", "pooled_prompt_embeds"),
        {"guidance": 1.0},
        {"guidance_scale": 1.0},
    ),
    "Flux": Case(
        flux,
        lambda: flow(use_dynamic_shifting=True),
        (2, 6, 16),
        texts("prompt_embeds", "pooled_prompt_embeds"),
        {"guidance": 2.0, "height": 8, "width": 12},
        {"guidance_scale": 2.0, "height": 8, "width": 12},
    ),
    "Flux, true guidance": Case(
        flux,
        lambda: flow(shift=1.0),
        (2, 6, 16),
        {**texts(*POOLED), "true_cfg_scale": 2.0},
        {"height": 8, "width": 12},
        {"height": 8, "width": 12},
    ),
    "PixArt-alpha": Case(
        functools.partial(pixart, sample_size=128),
        lambda: diffusers.DPMSolverMultistepScheduler(),
        (2, 4, 4, 4),
        {**texts(*PLAIN), **MASKS},
        {"height": 512, "width": 384},
        {"height": 512, "width": 384, "negative_prompt": None},
    ),
    "PixArt-sigma": Case(
        functools.partial(pixart, name="PixArtSigmaPipeline"),
        lambda: diffusers.DPMSolverMultistepScheduler(),
        (2, 4, 4, 4),
        {**texts(*PLAIN), **MASKS},
        {"guidance": 2.0},
        {"guidance_scale": 2.0, "negative_prompt": None},
    ),
    "LTX": Case(
        ltx,
        lambda: flow(use_dynamic_shifting=True, shift_terminal=0.1),
        (2, 512, 4),
        {**texts(*PLAIN), **MASKS, "frame_rate": 5},
        {"guidance": 2.0, "height": 32, "width": 32, "num_frames": 3},
        {"guidance_scale": 2.0, "height": 32, "width": 32, "num_frames": 3},
    ),
    "Wan": Case(
        wan,
        lambda: flow(shift=3.0),
        (2, 4, 2, 2, 2),
        texts(*PLAIN),
        {"guidance": 2.0},
        {"guidance_scale": 2.0, "height": 16, "width": 16, "num_frames": 5},
    ),
    "Wan, UniPC": Case(
        wan,
        lambda: diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        (2, 4, 2, 2, 2),
        texts(*PLAIN),
        {"guidance": 2.0},
        {"guidance_scale": 2.0, "height": 16, "width": 16, "num_frames": 5},
    ),
    "CogVideoX": Case(
        cogvideox,
        lambda: diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
        (2, 3, 4, 2, 2),
        texts(*PLAIN),
        {"guidance": 2.0},
        {"guidance_scale": 2.0, "height": 16, "width": 16, "num_frames": 9},
    ),
    "Stable Audio": Case(
        stable_audio,
        lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
        (2, 4, 8),
        {**texts(*PLAIN), "audio_end_in_s": 3.0},
        {"guidance": 2.0},
        {"guidance_scale": 2.0},
    ),
}
