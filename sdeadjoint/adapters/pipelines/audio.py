"""Audio pipelines: Stable Audio."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .convention import Cond, Convention


class StableAudio(Convention):
    """``StableAudioPipeline``, on latents (batch, 64, length)."""

    further = ("attention_mask", "negative_attention_mask", "audio_start_in_s", "audio_end_in_s")
    batched = False

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        embeds = cond["prompt_embeds"]
        embeds = embeds.expand(len(like), *embeds.shape[1:]) if len(embeds) == 1 else embeds
        text = self.pipe.encode_prompt(
            None, like.device, False, prompt_embeds=embeds, attention_mask=cond.get("attention_mask")
        )
        start, end = self.pipe.encode_duration(*self._seconds(cond), like.device, False, len(like))
        text, duration = torch.cat([text, start, end], dim=1), torch.cat([start, end], dim=2)
        if cond.get("_zero"):
            text = torch.zeros_like(text)
        return {
            "encoder_hidden_states": text,
            "global_hidden_states": duration,
            "rotary_embedding": self._rotary(like.shape[2] + duration.shape[1]),
        }

    def _seconds(self, cond: Cond) -> tuple[float, float]:
        vae = self.pipe.vae
        longest = self.model.config.sample_size * vae.hop_length / vae.config.sampling_rate
        end = cond.get("audio_end_in_s")
        return cond.get("audio_start_in_s") or 0.0, longest if end is None else end

    def _rotary(self, length: int) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        found: tuple[Tensor, Tensor] = get_1d_rotary_pos_embed(
            self.pipe.rotary_embed_dim, length, use_real=True, repeat_interleave_real=False
        )
        return found

    def negated(self, cond: Cond) -> dict[str, Any]:
        """Without a negative prompt the unconditional call is given zeros, as in the pipeline."""
        if cond.get("negative_prompt_embeds") is None:
            return {**cond, "_zero": True}
        return {
            **cond,
            "prompt_embeds": cond["negative_prompt_embeds"],
            "attention_mask": cond.get("negative_attention_mask"),
        }

    def decode(self, latents: Tensor) -> Tensor:
        return self.run_vae(latents)
