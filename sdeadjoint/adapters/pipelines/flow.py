"""Flow-matching image pipelines: Stable Diffusion 3 and Flux, with their image-to-image forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...diffusion.guidance import Guidance
from .convention import Cond, Convention, equal_sigmas, refuse_options_of_two_calls


class Shifted(Convention):
    """A VAE whose latents have a scale and a shift, and a strength that need not be a whole number of steps."""

    def begin(self, steps: int, strength: float) -> int:
        return int(max(steps - min(steps * strength, steps), 0))

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.config("scaling_factor") + self.config("shift_factor")


class StableDiffusion3(Shifted):
    """``StableDiffusion3Pipeline``, on latents (batch, 16, height / 8, width / 8)."""

    needed = ("prompt_embeds", "pooled_prompt_embeds")
    negatives = ("prompt_embeds", "pooled_prompt_embeds")
    further = ("joint_attention_kwargs",)

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        found = {"encoder_hidden_states": cond["prompt_embeds"], "pooled_projections": cond["pooled_prompt_embeds"]}
        if cond.get("joint_attention_kwargs") is not None:
            found["joint_attention_kwargs"] = cond["joint_attention_kwargs"]
        return found

    @property
    def longest_shift(self) -> float:
        return 1.16

    def length(self, shape: tuple[int, ...] | None) -> int:
        factor, patch = self.pipe.vae_scale_factor, self.model.config.patch_size
        side = self.pipe.default_sample_size
        height, width = ((n // factor if n else side) for n in (self.options.height, self.options.width))
        if shape is not None:
            height, width = shape[-2:]
        return int((height // patch) * (width // patch))

    def decode(self, latents: Tensor) -> Tensor:
        return self.run_vae(self.unscaled(latents))


@dataclass(frozen=True)
class Thousandths:
    """``t / 1000`` as Flux's pipeline computes it, which first rounds t to the dtype of the latents."""

    dtype: torch.dtype

    def __call__(self, t: Tensor) -> Tensor:
        return t.to(self.dtype) / 1000 if self.dtype.itemsize < 4 else t / 1000


class Flux(Shifted):
    """``FluxPipeline``, on packed latents (batch, height / 16 * width / 16, 64).

    ``guidance`` is the scale that models with ``guidance_embeds`` are given; classifier-free guidance is
    ``cond["true_cfg_scale"]`` above 1 with negative embeddings, as in the pipeline's call.
    """

    needed = ("prompt_embeds", "pooled_prompt_embeds")
    negatives = ("prompt_embeds", "pooled_prompt_embeds")
    further = ("true_cfg_scale", "joint_attention_kwargs")
    batched = False

    @property
    def timestep(self) -> Callable[[Tensor], Tensor]:
        return Thousandths(self.model.dtype)

    def guidance(self, cond: Cond) -> Guidance | None:
        scale = cond.get("true_cfg_scale")
        given = all(cond.get(f"negative_{name}") is not None for name in self.negatives)
        if scale is None or not given or not (isinstance(scale, Tensor) or scale > 1):
            return None
        return replace(self.options.guidance, scale=scale, batched=False)

    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        embeds = cond["prompt_embeds"]
        found = {
            "encoder_hidden_states": self._whole(embeds, like),
            "pooled_projections": self._whole(cond["pooled_prompt_embeds"], like),
            "txt_ids": torch.zeros(embeds.shape[1], 3, dtype=like.dtype, device=like.device),
            "img_ids": self._positions(like),
        }
        if self.model.config.guidance_embeds:
            found["guidance"] = self._scale(like)
        if cond.get("joint_attention_kwargs") is not None:
            found["joint_attention_kwargs"] = cond["joint_attention_kwargs"]
        return found

    def conditions(self, cond: Cond, like: Tensor) -> tuple[Cond, Guidance | None]:
        if self.guidance(cond) is None:
            refuse_options_of_two_calls(self.options.guidance)
        return super().conditions(cond, like)

    def _scale(self, like: Tensor) -> Tensor:
        scale = self.options.guidance.scale
        if isinstance(scale, tuple):
            raise TypeError("guidance: the model is given one scale for all steps; pass a number or a tensor")
        return torch.as_tensor(scale, dtype=torch.float32, device=like.device).reshape(-1).expand(len(like))

    def _whole(self, value: Tensor, like: Tensor) -> Tensor:
        return value.expand(len(like), *value.shape[1:]) if len(value) == 1 else value

    def _cells(self) -> tuple[int, int]:
        """Rows and columns of tokens: cells of 2 x 2 latents."""
        factor, side = self.pipe.vae_scale_factor, self.pipe.default_sample_size
        height, width = self.options.height or side * factor, self.options.width or side * factor
        return int(height) // (factor * 2), int(width) // (factor * 2)

    def _positions(self, like: Tensor) -> Tensor:
        rows, columns = self._cells()
        if like.ndim != 3 or like.shape[1] != rows * columns:
            raise ValueError(
                f"x_T: got shape {tuple(like.shape)}; {type(self.pipe).__name__} samples packed latents (batch, "
                f"{rows * columns}, channels) for {rows} x {columns} tokens; pass from_pipeline(..., height=..., "
                "width=...) in pixels for another size"
            )
        ids = torch.zeros(rows, columns, 3, dtype=like.dtype, device=like.device)
        ids[..., 1] += torch.arange(rows, device=like.device)[:, None]
        ids[..., 2] += torch.arange(columns, device=like.device)
        return ids.reshape(rows * columns, 3)

    def sigmas(self, steps: int) -> list[float] | None:
        return None if self.pipe.scheduler.config.get("use_flow_sigmas") else equal_sigmas(steps)

    def length(self, shape: tuple[int, ...] | None) -> int:
        rows, columns = self._cells()
        return rows * columns if shape is None else shape[1]

    def decode(self, latents: Tensor) -> Tensor:
        rows, columns = self._cells()
        cells = latents.reshape(len(latents), rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return self.run_vae(self.unscaled(cells.reshape(len(latents), -1, 2 * rows, 2 * columns)))


class FluxImageToImage(Flux):
    """``FluxImg2ImgPipeline``, which passes its own sigmas whatever the scheduler."""

    def sigmas(self, steps: int) -> list[float]:
        return equal_sigmas(steps)
