"""A small U-Net of 24 x 24 grey faces, as ``examples/faces/train.py`` trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ...diffusion.denoiser import Denoiser
from ...diffusion.schedules import VPCosine

WEIGHTS = Path(__file__).with_name("unet.npz")
SCHEDULE = VPCosine()
PREDICTION = "v_prediction"


class UNet(nn.Module):
    """``network(x, t)``: x (batch, 1, 24, 24), t (batch,) in [0, 1]; it predicts ``v = alpha eps - sigma x_0``.

    Patches of 2 x 2 pixels become ``channels`` numbers at 12 x 12 places. Below these there is a coarser level of 6 x 6
    places with twice the channels, where each place sees the whole image by attention. Smooth everywhere, without
    dropout: samples are smooth functions of x_T.
    """

    def __init__(self, channels: int = 32, width: int = 64) -> None:
        super().__init__()
        wide = 2 * channels
        self.time = nn.Sequential(Waves(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, channels, 3, padding=1))
        self.fine = Block(channels, channels, width)
        self.down = nn.Conv2d(channels, wide, 2, stride=2)
        self.coarse = nn.ModuleList([Block(wide, wide, width), Block(wide, wide, width)])
        self.look = Attention(wide)
        self.up = nn.ConvTranspose2d(wide, channels, 2, stride=2)
        self.join = Block(2 * channels, channels, width)
        self.last = Block(channels, channels, width)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 4, 3, padding=1), nn.PixelShuffle(2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        about = self.time(t)
        fine = self.fine(self.enter(x), about)
        coarse = self.coarse[0](self.down(fine), about)
        coarse = self.coarse[1](self.look(coarse), about)
        joined = self.join(torch.cat([fine, self.up(coarse)], 1), about)
        out: Tensor = self.leave(self.last(joined, about))
        return out


class Block(nn.Module):
    """Two convolutions around a shortcut; the time's features scale and shift what is between them."""

    def __init__(self, inward: int, outward: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inward), nn.SiLU(), nn.Conv2d(inward, outward, 3, padding=1))
        self.about = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * outward))
        self.norm = nn.GroupNorm(8, outward)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(outward, outward, 3, padding=1))
        self.shortcut = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        scale, shift = self.about(about)[:, :, None, None].chunk(2, dim=1)
        middle = self.norm(self.first(x)) * (1 + scale) + shift
        out: Tensor = self.shortcut(x) + self.second(middle)
        return out


class Attention(nn.Module):
    """Every place of the image looks at all others, with four heads, around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.answer = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        asked = self.ask(self.norm(x)).reshape(batch, 3, 4, channels // 4, height * width).transpose(3, 4)
        query, key, value = asked.unbind(1)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.answer(seen.transpose(2, 3).reshape(x.shape))
        return out


class Waves(nn.Module):
    """Cosines and sines of t at ``width / 2`` frequencies, 1 to 100 radians per unit of time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 2, width // 2), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.get_buffer("frequencies")
        return torch.cat([angles.cos(), angles.sin()], 1)


def load(path: Path = WEIGHTS) -> Denoiser:
    """The trained network, frozen, in float32; its weights are stored in half precision."""
    network = UNet()
    with numpy.load(path) as stored:
        network.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored})
    return Denoiser(network.requires_grad_(False).eval(), SCHEDULE, PREDICTION)


def save(network: UNet, path: Path) -> None:
    """Store the weights in half precision."""
    arrays: dict[str, Any] = {name: value.half().numpy() for name, value in network.state_dict().items()}
    with path.open("xb") as file:
        numpy.savez_compressed(file, **arrays)
