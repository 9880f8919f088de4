"""Noise given as tensors: what one differentiates with respect to, descends on, or edits by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..arguments import all_finite, unwrapped
from .base import (
    BoundNoise,
    Increment,
    Noise,
    add_to_slots,
    checked_clock,
    checked_like,
    checked_step,
    moving,
    push_slots,
    slot,
)


@final
@dataclass(frozen=True, eq=False, repr=False)
class FixedNoise(Noise):
    """Increments that the caller owns: step ``n`` gets ``increments[n]``, and its gradient is the noise's gradient.

    Args:
        increments: shape (steps, *x_T.shape), real floating point, any device: ``B(nu[n+1]) - B(nu[n])`` on
            the frame's noise clock, so of law N(0, nu[n+1] - nu[n]), *not* unit normals. Cast to the state's
            dtype and device by a differentiable ``to``: ``increments.grad`` is in the dtype and on the device
            of ``increments``. For one-step Euler it is ``dL/d(dB_n) = a_{n+1}``, the adjoint after the step.
        levy_areas: the space-time Levy areas over the same steps, same shape; needed where
            ``solver.claims.levy`` says so.

    Errors: ``TypeError`` for tensors that are not real floating point; ``ValueError`` when bound to a grid
    and a state of another shape, when Levy areas are asked for and missing, and when a step that injects no
    noise (``eta = 0``, or the last step to ``sigma = 0``) has an increment other than zero.

    Not for drawing noise: no law is checked. Start from ``BrownianPath(seed).increments(frame, grid, like)``;
    and for a plain SDE sample use ``BrownianPath`` itself, which stores nothing.
    """

    increments: Tensor
    levy_areas: Tensor | None = None

    def __post_init__(self) -> None:
        check_real("increments", self.increments)
        if self.increments.dim() == 0:
            raise ValueError("increments must have shape (steps, *x_T.shape), but is 0-dimensional")
        if self.levy_areas is not None:
            check_real("levy_areas", self.levy_areas)
            if self.levy_areas.shape != self.increments.shape:
                raise ValueError(
                    f"levy_areas must have the shape of increments, {tuple(self.increments.shape)}, "
                    f"but has {tuple(self.levy_areas.shape)}"
                )

    def __repr__(self) -> str:
        areas = "" if self.levy_areas is None else f", levy_areas={summary(self.levy_areas)}"
        return f"FixedNoise(increments={summary(self.increments)}{areas})"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        named = {"increments": self.increments}
        return named if self.levy_areas is None else named | {"levy_areas": self.levy_areas}

    def on(self, tensors: Mapping[str, Tensor]) -> FixedNoise:
        return FixedNoise(tensors["increments"], tensors.get("levy_areas"))

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        """See :meth:`Noise.bind`. ``levy_areas`` is left out of ``tensors`` where the solver does not ask for it."""
        nodes = checked_clock(clock)
        checked_like(like)
        if self.increments.shape != (len(nodes) - 1, *like.shape):
            raise ValueError(
                f"increments has shape {tuple(self.increments.shape)}, but a grid of {len(nodes) - 1} steps "
                f"and a state of shape {tuple(like.shape)} ask for {(len(nodes) - 1, *like.shape)}"
            )
        if levy and self.levy_areas is None:
            raise ValueError(
                "the solver asks for space-time Levy areas, and this FixedNoise has none; pass "
                'levy_areas=path.levy_areas(frame, grid, like), or use a solver with claims.levy == "none"'
            )
        areas = self.levy_areas if levy else None
        check_still("increments", self.increments, nodes)
        if areas is not None:
            check_still("levy_areas", areas, nodes)
        return _BoundFixed(self.increments, areas, moving(nodes), like.dtype, like.device)


@final
@dataclass(frozen=True, eq=False)
class _BoundFixed(BoundNoise):
    is_linear: ClassVar[bool] = True
    increments: Tensor
    levy_areas: Tensor | None
    moves: tuple[bool, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.increments,) if self.levy_areas is None else (self.increments, self.levy_areas)

    def pull_back(self, n: int, grads: Sequence[Tensor | None], totals: list[Tensor | None]) -> None:
        add_to_slots(self.tensors, n, grads, totals, moves=self.moves[n])

    def push_forward(self, n: int, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        return push_slots(tangents, n, self.dtype, self.device, moves=self.moves[n])

    def increment(self, n: int) -> Increment:
        checked_step(n, len(self.increments))
        parts = [slot(tensor, n, self.moves[n], self.dtype, self.device) for tensor in self.tensors]
        return Increment(parts[0], parts[1] if len(parts) > 1 else None)


def check_real(name: str, tensor: Tensor) -> None:
    """Refuse noise that is not finite numbers."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a real floating-point tensor, but is {got}")
    if not all_finite(tensor.detach()):
        raise ValueError(f"{name} must be finite, but has NaN or infinite entries")


def check_still(name: str, tensor: Tensor, nodes: tuple[float, ...]) -> None:
    """Refuse noise where the SDE has none: it would be a sample of another process."""
    still = [n for n, moves in enumerate(moving(nodes)) if not moves]
    if not still or not unwrapped(tensor.detach()[still].count_nonzero()).any():
        return
    if len(still) == len(nodes) - 1:
        raise ValueError(
            f"{name} must be all zero: the noise clock stands still (eta = 0: the probability-flow ODE injects no "
            "noise); pass noise=None, or a frame with eta > 0"
        )
    raise ValueError(
        f"{name} must be zero in steps {still}: the noise clock stands still there, or the step goes to sigma = 0 and "
        f"injects no noise; set {name}[{still}] = 0"
    )


def summary(tensor: Tensor) -> str:
    """What a ``repr`` says of a tensor."""
    return f"<{tensor.dtype} tensor of shape {tuple(tensor.shape)}>"
