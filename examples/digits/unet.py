"""A small U-Net of scikit-learn's 8x8 digits, conditioned on an embedding vector, as ``training.py`` trained it.

    network = unet.load()
    denoiser = sa.Denoiser(network, unet.SCHEDULE, prediction=unet.PREDICTION)
    cond = {"embedding": network.classes(labels)}

``network.classes`` is its table of embeddings, one for each digit and ``NONE`` for any of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.demo.faces.unet import Block, Waves

WEIGHTS = Path(__file__).with_name("unet.safetensors")
SCHEDULE = sa.VPLinear()
PREDICTION = "v_prediction"
NONE = 10  # the row of ``classes`` for "any digit", which training shows in place of every tenth label


class UNet(nn.Module):
    """``network(x, t, embedding=e)``: x (batch, 1, 8, 8), t (batch,) in [0, 1], e (batch, width), all float32.

    Two resolutions, 8x8 with ``channels`` channels and 4x4 with twice as many. ``classes`` is the table of the
    embeddings that it was trained with, ten digits and ``NONE``; any other vector is a legitimate argument.
    Smooth everywhere, without dropout: samples are smooth functions of x_T, the embedding and the weights.
    """

    def __init__(self, channels: int = 24, width: int = 64) -> None:
        super().__init__()
        wide = 2 * channels
        self.classes = nn.Embedding(11, width)
        self.time = nn.Sequential(Waves(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Conv2d(1, channels, 3, padding=1)
        self.fine = Block(channels, channels, width)
        self.down = nn.Conv2d(channels, wide, 2, stride=2)
        self.coarse = nn.ModuleList([Block(wide, wide, width), Block(wide, wide, width)])
        self.up = nn.ConvTranspose2d(wide, channels, 2, stride=2)
        self.join = Block(wide, channels, width)
        self.leave = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        about = self.time(t) + embedding
        fine = self.fine(self.enter(x), about)
        coarse = self.down(fine)
        for block in self.coarse:
            coarse = block(coarse, about)
        joined = self.join(torch.cat([fine, self.up(coarse)], 1), about)
        out: Tensor = self.leave(joined)
        return out


def load(path: Path = WEIGHTS) -> UNet:
    """The trained network, frozen and in evaluation mode."""
    if not path.exists():
        raise FileNotFoundError(
            f"The weights {path} are missing; python -m examples.digits.training --out {path} makes them in minutes"
        )
    network = UNet()
    network.load_state_dict(load_file(path))
    return network.requires_grad_(False).eval()
