"""Video pipelines: LTX, Wan and CogVideoX."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .convention import Cond, Convention, Options, equal_sigmas, per_channel


class LTX(Convention):
    """``LTXPipeline``, on packed latents (batch, tokens, channels)."""

    needed = ("prompt_embeds", "prompt_attention_mask")
    negatives = ("prompt_embeds", "prompt_attention_mask")
    further = ("frame_rate", "attention_kwargs")

    def _cells(self) -> tuple[int, int, int]:
        """Frames, rows and columns of latents."""
        height, width, frames = (
            given or self.default(name)
            for name, given in (
                ("height", self.options.height),
                ("width", self.options.width),
                ("num_frames", self.options.num_frames),
            )
        )
        space, time = self.pipe.vae_spatial_compression_ratio, self.pipe.vae_temporal_compression_ratio
        return (frames - 1) // time + 1, height // space, width // space

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        frames, rows, columns = self._cells()
        space, time = self.pipe.vae_spatial_compression_ratio, self.pipe.vae_temporal_compression_ratio
        found = {
            "encoder_hidden_states": cond["prompt_embeds"],
            "encoder_attention_mask": cond["prompt_attention_mask"],
            "num_frames": frames,
            "height": rows,
            "width": columns,
            "rope_interpolation_scale": (time / cond.get("frame_rate", self.default("frame_rate")), space, space),
        }
        if cond.get("attention_kwargs") is not None:
            found["attention_kwargs"] = cond["attention_kwargs"]
        return found

    def sigmas(self, steps: int) -> list[float]:
        return equal_sigmas(steps)

    def length(self, shape: tuple[int, ...] | None) -> int:
        frames, rows, columns = self._cells()
        return frames * rows * columns

    def decode(self, latents: Tensor) -> Tensor:
        if self.config("timestep_conditioning"):
            raise ValueError(
                "decode: this VAE adds noise of its own before it decodes (timestep_conditioning); decode with "
                "pipe.vae.decode(latents, timestep) yourself"
            )
        frames, rows, columns = self._cells()
        p, q = self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size
        cells = latents.reshape(len(latents), frames // q, rows // p, columns // p, -1, q, p, p)
        video = cells.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(latents), -1, frames, rows, columns)
        mean, std = (per_channel(v, video) for v in (self.pipe.vae.latents_mean, self.pipe.vae.latents_std))
        return self.run_vae(video * std / self.config("scaling_factor") + mean)


class Wan(Convention):
    """``WanPipeline`` with one transformer, on latents (batch, 16, frames, height / 8, width / 8)."""

    further = ("attention_kwargs",)

    def __init__(self, pipe: Any, options: Options) -> None:
        super().__init__(pipe, options)
        for name in ("boundary_ratio", "expand_timesteps"):
            if getattr(pipe.config, name, None):
                raise ValueError(
                    f"pipe: WanPipeline with {name} has a second transformer, or a time for each token; sample the "
                    "steps of each transformer with from_diffusers(pipe.transformer, pipe.scheduler) on its part of "
                    "the grid"
                )

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        found = {"encoder_hidden_states": cond["prompt_embeds"]}
        if cond.get("attention_kwargs") is not None:
            found["attention_kwargs"] = cond["attention_kwargs"]
        return found

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = (per_channel(self.config(name), latents) for name in ("latents_mean", "latents_std"))
        return self.run_vae(latents * std + mean)


class CogVideoX(Convention):
    """``CogVideoXPipeline``, on latents (batch, frames, 16, height / 8, width / 8)."""

    further = ("attention_kwargs",)
    batched = False

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        embeds = cond["prompt_embeds"]
        found = {"encoder_hidden_states": embeds.expand(len(like), *embeds.shape[1:]) if len(embeds) == 1 else embeds}
        if self.model.config.use_rotary_positional_embeddings:
            factor = self.pipe.vae_scale_factor_spatial
            found["image_rotary_emb"] = self.pipe._prepare_rotary_positional_embeddings(
                like.shape[-2] * factor, like.shape[-1] * factor, like.shape[1], like.device
            )
        if cond.get("attention_kwargs") is not None:
            found["attention_kwargs"] = cond["attention_kwargs"]
        return found

    def decode(self, latents: Tensor) -> Tensor:
        frames = self.options.num_frames or self.model.config.sample_frames
        kept = (frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        # Frames that were put in front to fill whole patches are dropped.
        video = latents[:, latents.shape[1] - kept :].transpose(1, 2)
        return self.run_vae(video / self.pipe.vae_scaling_factor_image)
