"""Plain autograd through the loop."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from ..discretization import Carry, Discretization
from ..integrate import Observer, integrate
from .base import Adjoint


@dataclass(frozen=True)
class Direct(Adjoint):
    """Backpropagation through every step: the gradient all others are compared with.

    Exact for the discrete sampler. Cost: one forward and one vector-Jacobian product per network call; memory: the
    activations of every call at once, so it grows with N times the network. The only adjoint with second
    derivatives (``create_graph=True``) and with ``torch.func``. For more than a few steps of a large network use ``Checkpoint``.
    """

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        first = recursion.step(0, recursion.start(x_T), recursion.increment(0))
        return unroll(recursion, first, 1, keep=keep, observe=observe)


def unroll(recursion: Discretization, carry: Carry, n: int, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
    """The rest of the loop from ``carry_n``, n >= 1, under plain autograd."""
    states = []
    for m, latest in enumerate(chain([carry], integrate(recursion, carry, n, recursion.steps)), start=n):
        observe(m, latest)
        states = [*states, latest.y] if keep else [latest.y]
    return tuple(states)
