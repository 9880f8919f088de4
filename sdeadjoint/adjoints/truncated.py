"""Gradients through the last steps only, as reward fine-tuning uses them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recursion import Observer, Recursion
from .base import Adjoint
from .replay.forward import Replayed
from .replay.snapshots import Snapshots
from .tangents import refuse_tangents


@dataclass(frozen=True)
class Truncated(Adjoint):
    """Differentiates the last K steps and takes the state before them for a constant: DRaFT-K.

    Args:
        last: K >= 1. All steps if there are no more than K: then it is ``Checkpoint()``.

    A biased gradient of the weights, the conditioning and the noise: the parts that go through earlier steps are
    missing (slots of earlier steps get zeros), which is the point where a long chain makes the whole gradient explode.
    For a state ``x_{N-K}`` that is given, it is exact. Cost: N + K p network calls with p calls a step, the last K p
    with their vector-Jacobian products; memory: K states and the activations of one step.
    Errors: ``RuntimeError`` if x_T requires a gradient, which would be zero, or if all states are asked for.
    Not for initial latents, nor where an unbiased gradient matters: ``Checkpoint()``.
    Sources: Clark, Vicol, Swersky and Fleet (2024), DRaFT-K; ``Truncated.drawn``: Prabhudesai et al. (2023), AlignProp.
    """

    last: int

    def __post_init__(self) -> None:
        if isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1:
            raise ValueError(f"last: got {self.last!r}; pass the number of steps to differentiate, an integer >= 1")

    @classmethod
    def drawn(cls, low: int, high: int, generator: torch.Generator) -> Truncated:
        """A random K, uniform on ``low, ..., high``: draw one for every iteration of training (AlignProp)."""
        if not 1 <= low <= high:
            raise ValueError(f"low, high: got {low}, {high}; pass 1 <= low <= high")
        return cls(int(torch.randint(low, high + 1, (), generator=generator)))

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if self.last < recursion.steps:
            refuse_beyond_reach(f"Truncated(last={self.last})", y, keep=keep)
            refuse_tangents(recursion, y, f"Truncated(last={self.last})")
        replayed = Replayed(Snapshots(self.last), last=self.last)
        return replayed.solve(recursion, y, keep=keep, observe=observe)


def refuse_beyond_reach(name: str, y: Tensor, *, keep: bool) -> None:
    """Raise if a gradient is asked for that a truncation cannot reach."""
    if y.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"x_T requires a gradient, but {name} stops before it; pass x_T.detach(), or adjoint=Checkpoint()"
        )
    if keep:
        raise RuntimeError(
            f"trajectory=True: {name} has no gradients for the earlier states; pass adjoint=Checkpoint(), or "
            "trajectory=False and a callback to look at them"
        )
