"""PixArt-alpha and PixArt-sigma."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from .convention import Cond, Convention


class PixArt(Convention):
    """``PixArtAlphaPipeline`` and ``PixArtSigmaPipeline``, on latents (batch, 4, height / 8, width / 8)."""

    needed = ("prompt_embeds", "prompt_attention_mask")
    negatives = ("prompt_embeds", "prompt_attention_mask")

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        return {
            "encoder_hidden_states": cond["prompt_embeds"],
            "encoder_attention_mask": cond["prompt_attention_mask"],
            "added_cond_kwargs": self._sizes(cond["prompt_embeds"].dtype, like),
        }

    def _sizes(self, dtype: torch.dtype, like: Tensor) -> dict[str, Tensor | None]:
        """What the large model of PixArt-alpha knows of the resolution."""
        if type(self.pipe).__name__ != "PixArtAlphaPipeline" or self.model.config.sample_size != 128:
            return {"resolution": None, "aspect_ratio": None}
        side = self.model.config.sample_size * self.pipe.vae_scale_factor
        sizes = sys.modules[type(self.pipe).__module__].ASPECT_RATIO_1024_BIN
        height, width = self.pipe.image_processor.classify_height_width_bin(
            self.options.height or side, self.options.width or side, ratios=sizes
        )
        rows = ((float(height), float(width)), (float(height / width),))
        resolution, ratio = (torch.tensor([row], dtype=dtype, device=like.device).repeat(len(like), 1) for row in rows)
        return {"resolution": resolution, "aspect_ratio": ratio}

    def decode(self, latents: Tensor) -> Tensor:
        return self.run_vae(latents / self.config("scaling_factor"))
