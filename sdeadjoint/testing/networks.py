"""A small smooth network with every kind of parameter that an adjoint must get right."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """``network(x, t, style, tone)``: two layers of tanh on flattened states, float64 by default.

    Parameters: ``inward`` and ``outward`` (linear layers), ``shared`` (used twice), ``frozen`` (requires no gradient)
    and ``unused``. ``style`` is (batch, width), alone or in a nest ``{"style": [style]}``, and ``tone`` (batch, width);
    without them nothing is added, nor multiplied.

    Args:
        shape: of one sample, (*event).
        width: of the hidden layer.
        seed: of the parameters.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.width, self.seed = tuple(shape), width, seed
        numel, generator = math.prod(shape), torch.Generator(device="cpu").manual_seed(seed)

        def drawn(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64, device="cpu"))

        self.inward = nn.Parameter(drawn(numel, width).detach() / math.sqrt(numel))
        self.outward = nn.Parameter(drawn(width, numel).detach() / math.sqrt(width))
        self.shared, self.unused = drawn(width), drawn(3)
        self.frozen = drawn(width).requires_grad_(False)

    def forward(
        self, x: Tensor, t: Tensor, style: Tensor | dict[str, list[Tensor]] | None = None, tone: Tensor | None = None
    ) -> Tensor:
        h = torch.tanh(x.flatten(1) @ self.inward + t[:, None] * self.frozen)
        h = torch.tanh(h * self.shared + self.shared)
        if style is not None:
            h = h + torch.sin(style if isinstance(style, Tensor) else style["style"][0])
        if tone is not None:
            h = h * torch.cos(tone)
        return (h @ self.outward).reshape(x.shape)

    def __repr__(self) -> str:
        return f"Network({self.shape}, width={self.width}, seed={self.seed})"
