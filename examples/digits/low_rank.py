"""Low-rank updates of a frozen network's weights (LoRA: Hu et al., 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """``weight + up @ down``, of the given rank; ``up`` starts at zero, and so does the update."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns, generator=generator) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def adapt(network: nn.Module, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Freeze the network, give each convolution and linear map a low-rank update; the updates' parameters."""
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    adapted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)]
    for module in adapted:
        update = LowRank(module.weight, rank, generator)
        parametrize.register_parametrization(module, "weight", update)
    return [p for p in network.parameters() if p.requires_grad]
