"""Counting network calls and their vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..gradient_check.call import Call


class Counted(nn.Module):
    """A network that counts how often it is called, and how often something is pulled back through its output."""

    def __init__(self, network: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.calls = 0
        self.products = 0

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        self.calls += 1
        out = self.network(x, t, **cond)
        return _Mark.apply(out, self) if isinstance(out, Tensor) and out.requires_grad else out


class _Mark(torch.autograd.Function):
    """The identity, which tells its counter when a cotangent comes by."""

    generate_vmap_rule = True

    @staticmethod
    def forward(out: Tensor, counter: Counted) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Counted], output: Tensor) -> None:
        ctx.counter = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        ctx.counter.products += 1
        return cotangent, None


def counted(call: Call) -> tuple[Call, Counted]:
    """A call, which must be a copy of its own, on the same network with a counter around it."""
    counter = Counted(call.denoiser.network)
    call.denoiser.network = counter
    return replace(call), counter
