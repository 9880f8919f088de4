"""Small networks for the tests: smooth, nonlinear, in float64."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """``network(x, t, embedding=...)`` on flattened states, with a shared, a frozen and an unused parameter."""

    def __init__(self, numel: int, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed writes down the whole stack, slowly
            self.inward = nn.Linear(numel, width).double()
            self.outward = nn.Linear(width, numel).double()
            self.shared = nn.Parameter(torch.randn(width, dtype=torch.float64))
            self.frozen = nn.Parameter(torch.randn(width, dtype=torch.float64), requires_grad=False)
            self.unused = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, embedding: dict[str, list[Tensor]] | None = None) -> Tensor:
        h = torch.tanh(self.inward(x.flatten(1)) + t[:, None] * self.frozen)
        h = torch.tanh(h * self.shared + self.shared)
        if embedding is not None:
            h = h + torch.sin(embedding["style"][0])
        return self.outward(h).reshape(x.shape)


class LowRank(nn.Module):
    """A LoRA-style wrapper: a frozen linear layer plus a trained low-rank update."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.linspace(-1, 1, rank * base.in_features, dtype=torch.float64).reshape(rank, -1))
        self.up = nn.Parameter(torch.linspace(-0.5, 1, rank * base.out_features, dtype=torch.float64).reshape(-1, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Counting(nn.Module):
    """A network that knows how many of its activations are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.alive = weakref.WeakSet[Tensor]()
        self.most = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = _Activation.apply(x * self.scale, self)
        return h.sin()


class _Activation(torch.autograd.Function):
    """The identity, which holds a tensor from its forward to its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Counting) -> Tensor:
        ctx.held = x.clone()
        network.alive.add(ctx.held)
        network.most = max(network.most, len(network.alive))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
