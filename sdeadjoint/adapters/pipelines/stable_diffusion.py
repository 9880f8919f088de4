"""Stable Diffusion 1, 2 and XL, with their image-to-image pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...diffusion.guidance import Guidance
from .convention import Cond, Convention, per_channel, refuse_options_of_two_calls


class StableDiffusion(Convention):
    """``StableDiffusionPipeline`` and its image-to-image form, on latents (batch, 4, height / 8, width / 8).

    A UNet with ``time_cond_proj_dim`` (a distilled one, as latent consistency models are) is given the guidance scale
    as an embedding, and there is no second call.
    """

    component = "unet"
    further: ClassVar[tuple[str, ...]] = ("cross_attention_kwargs",)

    @property
    def _embeds_scale(self) -> bool:
        return self.model.config.time_cond_proj_dim is not None

    def guidance(self, cond: Cond) -> Guidance | None:
        if not self._embeds_scale:
            return super().guidance(cond)
        refuse_options_of_two_calls(self.options.guidance)
        return None

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        found = {"encoder_hidden_states": cond["prompt_embeds"]}
        if cond.get("cross_attention_kwargs") is not None:
            found["cross_attention_kwargs"] = cond["cross_attention_kwargs"]
        if self._embeds_scale:
            found["timestep_cond"] = self._scale_embedding(like)
        return found

    def _scale_embedding(self, like: Tensor) -> Tensor:
        scale = self.options.guidance.scale
        if isinstance(scale, tuple):
            raise TypeError("guidance: a distilled UNet is given one scale for all steps; pass a number")
        w = torch.as_tensor(scale - 1, dtype=torch.float32, device=like.device).expand(len(like))
        width = self.model.config.time_cond_proj_dim
        embedding: Tensor = self.pipe.get_guidance_scale_embedding(w, embedding_dim=width)
        return embedding.to(like.device, like.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        return self.run_vae(latents / self.config("scaling_factor"))


class StableDiffusionXL(StableDiffusion):
    """``StableDiffusionXLPipeline`` and its image-to-image form; sizes go to the UNet beside the pooled embedding."""

    needed = ("prompt_embeds", "pooled_prompt_embeds")
    negatives = ("prompt_embeds", "pooled_prompt_embeds")
    further = (
        "cross_attention_kwargs",
        "original_size",
        "crops_coords_top_left",
        "target_size",
        "negative_original_size",
        "negative_crops_coords_top_left",
        "negative_target_size",
        "aesthetic_score",
        "negative_aesthetic_score",
    )

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        embeds = cond["prompt_embeds"]
        ids = torch.tensor([self._sizes(cond, like)], dtype=embeds.dtype, device=like.device)
        added = {"text_embeds": cond["pooled_prompt_embeds"], "time_ids": ids.repeat(len(like), 1)}
        return {**super().arguments(cond, like), "added_cond_kwargs": added}

    def conditions(self, cond: Cond, like: Tensor) -> tuple[Cond, Guidance | None]:
        found, guidance = super().conditions(cond, like)
        if guidance is None or self._is_image_to_image:
            return found, guidance
        # The call repeats the pair (negative, positive) of sizes and so deals them out to the doubled batch in turns.
        pairs = (guidance.unconditional["added_cond_kwargs"]["time_ids"], found["added_cond_kwargs"]["time_ids"])
        negative, positive = torch.stack(pairs, 1).flatten(0, 1).chunk(2)
        return _told(found, positive), replace(guidance, unconditional=_told(guidance.unconditional, negative))

    def _sizes(self, cond: Cond, like: Tensor) -> list[float]:
        size = self._size(like)
        original, target = cond.get("original_size") or size, cond.get("target_size") or size
        corner = cond.get("crops_coords_top_left") or (0, 0)
        if self._scored:
            return [*original, *corner, cond.get("aesthetic_score", self.default("aesthetic_score"))]
        return [*original, *corner, *target]

    def _size(self, like: Tensor) -> tuple[int, int]:
        """Height and width in pixels, as the call has them; those of the latents must be the same."""
        factor = self.pipe.vae_scale_factor
        got = (like.shape[-2] * factor, like.shape[-1] * factor)
        if self._is_image_to_image:
            return got
        side = self.pipe.default_sample_size
        size = (self.options.height or side * factor, self.options.width or side * factor)
        if size != got:
            raise ValueError(
                f"x_T: its shape {tuple(like.shape)} is that of {got[0]} x {got[1]} pixels, but the call's is "
                f"{size[0]} x {size[1]}; pass from_pipeline(..., height={got[0]}, width={got[1]})"
            )
        return size

    def negated(self, cond: Cond) -> dict[str, Any]:
        found = super().negated(cond)
        if self._is_image_to_image:
            # Its unconditional sizes are the conditional ones unless given, one by one.
            names = [n for n in ("original_size", "target_size") if cond.get(f"negative_{n}") is not None]
            found.update({n: cond[f"negative_{n}"] for n in names})
            if self._scored:
                score = "negative_aesthetic_score"
                found["aesthetic_score"] = cond.get(score, self.default(score))
                found["crops_coords_top_left"] = cond.get("negative_crops_coords_top_left") or (0, 0)
        elif cond.get("negative_original_size") is not None and cond.get("negative_target_size") is not None:
            found["original_size"], found["target_size"] = cond["negative_original_size"], cond["negative_target_size"]
            found["crops_coords_top_left"] = cond.get("negative_crops_coords_top_left") or (0, 0)
        return found

    @property
    def _is_image_to_image(self) -> bool:
        return self.default("strength") is not None

    @property
    def _scored(self) -> bool:
        return bool(getattr(self.pipe.config, "requires_aesthetics_score", False))

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self.config("latents_mean"), self.config("latents_std")
        if mean is None or std is None:
            return super().decode(latents)
        std, mean = per_channel(std, latents), per_channel(mean, latents)
        return self.run_vae(latents * std / self.config("scaling_factor") + mean)


def _told(arguments: Cond, time_ids: Tensor) -> dict[str, Any]:
    """The model's arguments with other sizes."""
    return {**arguments, "added_cond_kwargs": {**arguments["added_cond_kwargs"], "time_ids": time_ids}}
