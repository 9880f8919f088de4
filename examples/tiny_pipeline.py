"""The parts of a Stable Diffusion pipeline, small and with random weights; a LoRA; an image to aim at."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

BLOCKS = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": (16, 32)}


def unet() -> Any:
    """Latents (batch, 4, 16, 16), prompts (batch, tokens, 32)."""
    model: Any = diffusers.UNet2DConditionModel(
        sample_size=16,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **BLOCKS,
    )
    return model.requires_grad_(False).eval()


def vae() -> Any:
    """Images (batch, 3, 32, 32) from latents (batch, 4, 16, 16)."""
    model: Any = diffusers.AutoencoderKL(
        sample_size=32,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **BLOCKS,
    )
    return model.requires_grad_(False).eval()


class LoRA(nn.Module):
    """A frozen linear layer and a trained low-rank update: Hu et al. (2022)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.02)  # with zeros, as usual, ``down`` would have no gradient at the start

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def add_lora(model: Any) -> list[nn.Parameter]:
    """A LoRA on each projection of the model's attention; returns its weights."""
    attentions: list[Any] = [module for module in model.modules() if isinstance(module, Attention)]
    for module in attentions:
        module.to_q, module.to_k, module.to_v = (LoRA(each) for each in (module.to_q, module.to_k, module.to_v))
        module.to_out[0] = LoRA(module.to_out[0])
    return [weight for weight in model.parameters() if weight.requires_grad]


def landscape() -> Tensor:
    """A yellow sun in a blue sky over green ground, (1, 3, 32, 32) in [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    sky, ground, sun = (torch.tensor(c)[:, None, None] for c in ([-0.6, 0.0, 0.6], [0.2, 0.4, -0.5], [0.9, 0.7, -0.6]))
    image = torch.where(y < 0.3, sky, ground)
    return torch.where((x - 0.3) ** 2 + (y + 0.3) ** 2 < 0.12, sun, image)[None]
