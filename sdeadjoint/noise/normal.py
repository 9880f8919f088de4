"""Noise given as standard normals: what one optimises, regularises or edits, whatever the grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from .base import BoundNoise, Increment, Noise, add_to_slots, advances, checked_clock, checked_like, checked_step
from .fixed import check_real, summary


@final
@dataclass(frozen=True, eq=False, repr=False)
class NormalNoise(Noise):
    """Standard normals that the caller owns, scaled to the increments of each step:

        dB_n = sqrt(nu[n+1] - nu[n]) normals[n],      H_n = sqrt((nu[n+1] - nu[n]) / 12) levy_normals[n]

    so that ``normals.grad`` is the gradient with respect to numbers of unit size, on every grid and in every frame:

        normals = path.normals(frame, grid, x_T).requires_grad_()      # or torch.randn(steps, *x_T.shape)
        sample(denoiser, x_T, ..., noise=NormalNoise(normals)).sum().backward()

    Args:
        normals: (steps, *x_T.shape), real floating point, any device. Cast to the state's dtype and device by a
            differentiable ``to``; ``normals.grad`` is in the dtype and on the device of ``normals``.
        levy_normals: the same for the space-time Levy areas; needed where ``solver.claims.levy`` says so.

    A step that injects no noise (the clock stands still, or it goes to ``sigma = 0``) does not see its normals, and
    their gradient is zero. Errors: ``TypeError`` for tensors that are not real floating point; ``ValueError`` when
    bound to a grid and a state of another shape, and where Levy areas are asked for and missing.
    Not for increments in their own unit: pass those to ``FixedNoise``. No law is checked.
    """

    normals: Tensor
    levy_normals: Tensor | None = None

    def __post_init__(self) -> None:
        check_real("normals", self.normals)
        if self.normals.dim() == 0:
            raise ValueError("normals must have shape (steps, *x_T.shape), but is 0-dimensional")
        if self.levy_normals is not None:
            check_real("levy_normals", self.levy_normals)
            if self.levy_normals.shape != self.normals.shape:
                raise ValueError(
                    f"levy_normals must have the shape of normals, {tuple(self.normals.shape)}, "
                    f"but has {tuple(self.levy_normals.shape)}"
                )

    def __repr__(self) -> str:
        areas = "" if self.levy_normals is None else f", levy_normals={summary(self.levy_normals)}"
        return f"NormalNoise(normals={summary(self.normals)}{areas})"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        named = {"normals": self.normals}
        return named if self.levy_normals is None else named | {"levy_normals": self.levy_normals}

    def on(self, tensors: Mapping[str, Tensor]) -> NormalNoise:
        return NormalNoise(tensors["normals"], tensors.get("levy_normals"))

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        """See :meth:`Noise.bind`. ``levy_normals`` is left out of ``tensors`` where the solver does not ask for it."""
        nodes = checked_clock(clock)
        checked_like(like)
        if self.normals.shape != (len(nodes) - 1, *like.shape):
            raise ValueError(
                f"normals has shape {tuple(self.normals.shape)}, but a grid of {len(nodes) - 1} steps "
                f"and a state of shape {tuple(like.shape)} ask for {(len(nodes) - 1, *like.shape)}"
            )
        if levy and self.levy_normals is None:
            raise ValueError(
                "the solver asks for space-time Levy areas, and this NormalNoise has none; pass "
                'levy_normals=path.levy_normals(frame, grid, like), or use a solver with claims.levy == "none"'
            )
        return _BoundNormal(
            self.normals, self.levy_normals if levy else None, scales(nodes), like.dtype, like.device
        )


@final
@dataclass(frozen=True, eq=False)
class _BoundNormal(BoundNoise):
    is_linear: ClassVar[bool] = True
    normals: Tensor
    levy_normals: Tensor | None
    scales: tuple[float, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.normals,) if self.levy_normals is None else (self.normals, self.levy_normals)

    @property
    def _units(self) -> tuple[float, float]:
        """The standard deviations of dB and H over a step of length one."""
        return 1.0, math.sqrt(1 / 12)

    def increment(self, n: int) -> Increment:
        checked_step(n, len(self.scales))
        parts = [
            (unit * self.scales[n] * tensor[n]).to(dtype=self.dtype, device=self.device)
            for unit, tensor in zip(self._units, self.tensors, strict=False)
        ]
        return Increment(parts[0], parts[1] if len(parts) > 1 else None)

    def pull_back(self, n: int, grads: Sequence[Tensor | None], totals: list[Tensor | None]) -> None:
        scaled = [
            None if grad is None else unit * self.scales[n] * grad.to(tensor)
            for unit, grad, tensor in zip(self._units, grads, self.tensors, strict=False)
        ]
        add_to_slots(self.tensors, n, scaled, totals)

    def push_forward(self, n: int, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [
            None if v is None else (unit * self.scales[n] * v[n]).to(dtype=self.dtype, device=self.device)
            for unit, v in zip(self._units, tangents, strict=False)
        ]


def scales(nodes: Sequence[float]) -> tuple[float, ...]:
    """The standard deviation of each step's increment; 0 for steps that inject no noise."""
    return tuple(math.sqrt(nu1 - nu0) if advances(nu0, nu1) else 0.0 for nu0, nu1 in pairwise(nodes))
