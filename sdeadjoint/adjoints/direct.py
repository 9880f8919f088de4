"""Plain autograd through the loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..recursion import Observer, Recursion
from .base import Adjoint


@dataclass(frozen=True)
class Direct(Adjoint):
    """Backpropagation through every step: the gradient all others are compared with.

    Exact for the discrete sampler. Cost: one forward and one vector-Jacobian product per network call; memory: the
    activations of every call at once, so it grows with N times the network. The only adjoint with third derivatives,
    and with ``torch.func.grad`` and ``vmap`` around it. For more than a few steps of a large network use
    ``Checkpoint``.
    """

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        states = []
        for n, carry in enumerate(recursion.run(recursion.start(y)), start=1):
            observe(n, carry)
            if keep or n == recursion.steps:
                states.append(carry.y)
        return tuple(states)
