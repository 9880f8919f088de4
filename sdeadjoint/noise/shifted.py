"""Replayed noise plus a shift that is a tensor: noise gradients without a stored path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..arguments import named
from .base import BoundNoise, Increment, Noise, add_to_slots, moving, push_slots, slot
from .fixed import check_real, check_still, summary


@final
@dataclass(frozen=True, eq=False, repr=False)
class ShiftedNoise(Noise):
    """Another noise, replayed, plus a learned shift of each step's increment (and Levy area):

        dB_n = path.dB_n + shifts[n],      H_n = path.H_n + levy_shifts[n]

    With ``shifts = torch.zeros(steps, *x_T.shape).requires_grad_()`` the sample is that of ``path``, and the shifts'
    gradient is that of the replayed increments: what ``FixedNoise(path.increments(...))`` would give.

    Args:
        path: the noise that is shifted, such as ``BrownianPath(seed)``; one that is itself made of tensors is refused.
        shifts: (steps, *x_T.shape), real floating point, any device, in the unit of the increments: a shift of one
            standard deviation is ``sqrt(nu[n+1] - nu[n])``. Cast to the state's dtype and device by a
            differentiable ``to``.
        levy_shifts: the same for the space-time Levy areas; ``None`` leaves them as they are. Left out where
            ``solver.claims.levy`` does not ask for areas.

    Errors: those of ``FixedNoise``: ``TypeError`` for tensors that are not real floating point; ``ValueError`` when
    bound to a grid and a state of another shape, and for a shift other than zero in a step that injects no noise
    (``eta = 0``, or the last step to ``sigma = 0``), where the gradient is zero.

    Memory: the shifts and their gradient, each as large as the path, which itself is not stored. Not for increments
    that are the caller's own tensor already: pass those to ``FixedNoise``.
    """

    path: Noise
    shifts: Tensor
    levy_shifts: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, Noise):
            got = named(self.path)
            raise TypeError(f"path: got {got}; pass the noise that is shifted, such as BrownianPath(seed=0)")
        check_real("shifts", self.shifts)
        if self.shifts.dim() == 0:
            raise ValueError("shifts must have shape (steps, *x_T.shape), but is 0-dimensional")
        if self.levy_shifts is not None:
            check_real("levy_shifts", self.levy_shifts)
            if self.levy_shifts.shape != self.shifts.shape:
                raise ValueError(
                    f"levy_shifts must have the shape of shifts, {tuple(self.shifts.shape)}, "
                    f"but has {tuple(self.levy_shifts.shape)}"
                )

    def __repr__(self) -> str:
        areas = "" if self.levy_shifts is None else f", levy_shifts={summary(self.levy_shifts)}"
        return f"ShiftedNoise(path={self.path!r}, shifts={summary(self.shifts)}{areas})"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        named = {"shifts": self.shifts}
        return named if self.levy_shifts is None else named | {"levy_shifts": self.levy_shifts}

    def on(self, tensors: Mapping[str, Tensor]) -> ShiftedNoise:
        return ShiftedNoise(self.path, tensors["shifts"], tensors.get("levy_shifts"))

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        """See :meth:`Noise.bind`. ``levy_shifts`` is left out of ``tensors`` where the solver does not ask for it."""
        bound = self.path.bind(clock, like, levy)
        if bound.tensors:
            raise ValueError(
                f"path: {type(self.path).__name__} is made of tensors already, whose gradients are the noise's; pass "
                "FixedNoise(increments + shifts), or a path that is replayed, such as BrownianPath(seed=0)"
            )
        nodes = tuple(clock.tolist())
        if self.shifts.shape != (len(nodes) - 1, *like.shape):
            raise ValueError(
                f"shifts has shape {tuple(self.shifts.shape)}, but a grid of {len(nodes) - 1} steps "
                f"and a state of shape {tuple(like.shape)} ask for {(len(nodes) - 1, *like.shape)}"
            )
        areas = self.levy_shifts if levy else None
        check_still("shifts", self.shifts, nodes)
        if areas is not None:
            check_still("levy_shifts", areas, nodes)
        return _BoundShifted(bound, self.shifts, areas, moving(nodes), like.dtype, like.device)


@final
@dataclass(frozen=True, eq=False)
class _BoundShifted(BoundNoise):
    is_linear: ClassVar[bool] = True
    path: BoundNoise
    shifts: Tensor
    levy_shifts: Tensor | None
    moves: tuple[bool, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.shifts,) if self.levy_shifts is None else (self.shifts, self.levy_shifts)

    def pull_back(self, n: int, grads: Sequence[Tensor | None], totals: list[Tensor | None]) -> None:
        add_to_slots(self.tensors, n, grads, totals, moves=self.moves[n])

    def push_forward(self, n: int, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        return push_slots(tangents, n, self.dtype, self.device, moves=self.moves[n])

    def increment(self, n: int) -> Increment:
        dB, H = self.path.increment(n)  # refuses steps that the grid does not have
        dB = dB + slot(self.shifts, n, self.moves[n], self.dtype, self.device)
        if H is not None and self.levy_shifts is not None:
            H = H + slot(self.levy_shifts, n, self.moves[n], self.dtype, self.device)
        return Increment(dB, H)
