"""The number a diffusers model is given as its time, as a function of the noise level, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROUNDINGS = ("none", "nearest", "down")


class Timesteps(ABC):
    """``timestep(level)`` and its inverse, elementwise on float64 tensors of any shape and device."""

    @property
    def whole(self) -> bool:
        """Whether timesteps are whole numbers."""
        return False

    @abstractmethod
    def timestep(self, level: Tensor) -> Tensor:
        """What the model is given at a noise level; constant or increasing."""

    @abstractmethod
    def level(self, timestep: Tensor) -> Tensor:
        """A noise level at which the model is given this timestep, if there is one (up to round-off)."""


@dataclass(frozen=True)
class Same(Timesteps):
    """The schedule's time is the timestep."""

    def timestep(self, level: Tensor) -> Tensor:
        return level

    def level(self, timestep: Tensor) -> Tensor:
        return timestep


@dataclass(frozen=True)
class QuarterLog(Timesteps):
    """``log(level) / 4``, EDM's c_noise: Karras et al. (2022), table 1."""

    def timestep(self, level: Tensor) -> Tensor:
        return 0.25 * level.log()

    def level(self, timestep: Tensor) -> Tensor:
        return (4 * timestep).exp()


@dataclass(frozen=True)
class Arctangent(Timesteps):
    """``2 / pi atan(level)``, in [0, 1), of Stable Audio's cosine schedule."""

    def timestep(self, level: Tensor) -> Tensor:
        return level.atan() * (2 / math.pi)

    def level(self, timestep: Tensor) -> Tensor:
        return (timestep * (math.pi / 2)).tan()


@dataclass(frozen=True)
class Proportional(Timesteps):
    """``factor * level``, as flow-matching schedulers have it, possibly cut to a whole number."""

    factor: float
    rounding: str = "none"

    @property
    def whole(self) -> bool:
        return self.rounding != "none"

    def timestep(self, level: Tensor) -> Tensor:
        return _rounded(self.factor * level, self.rounding)

    def level(self, timestep: Tensor) -> Tensor:
        return timestep / self.factor


@dataclass(frozen=True)
class Interpolated(Timesteps):
    """Between the levels of a table at the timesteps 0, 1, ...: linear in the level or in its logarithm.

    Levels outside the table are given its end, as diffusers does. ``knots`` are the table's levels, or their logarithms
    if ``logarithmic``, increasing.
    """

    knots: tuple[float, ...] = field(repr=False)
    logarithmic: bool
    rounding: str = "none"

    @property
    def whole(self) -> bool:
        return self.rounding != "none"

    def timestep(self, level: Tensor) -> Tensor:
        value = level.clamp(min=1e-10).log() if self.logarithmic else level
        knots = self._table(level)
        low = (torch.searchsorted(knots, value.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        part = ((value - knots[low]) / (knots[low + 1] - knots[low])).clamp(0, 1)
        return _rounded(low + part, self.rounding)

    def level(self, timestep: Tensor) -> Tensor:
        knots = self._table(timestep)
        low = timestep.floor().long().clamp(0, len(knots) - 2)
        part = (timestep - low).clamp(0, 1)
        value = (1 - part) * knots[low] + part * knots[low + 1]
        return value.exp() if self.logarithmic else value

    def _table(self, like: Tensor) -> Tensor:
        return torch.tensor(self.knots, dtype=torch.float64, device="cpu").to(like.device)


@dataclass(frozen=True)
class Pinned(Timesteps):
    """Given timesteps at given levels, to the bit; at others, as between a solver's own stages, ``otherwise``."""

    levels: tuple[float, ...] = field(repr=False)
    timesteps: tuple[float, ...] = field(repr=False)
    otherwise: Timesteps

    @property
    def whole(self) -> bool:
        return self.otherwise.whole

    def timestep(self, level: Tensor) -> Tensor:
        return _replaced(level, self.levels, self.timesteps, self.otherwise.timestep(level))

    def level(self, timestep: Tensor) -> Tensor:
        return _replaced(timestep, self.timesteps, self.levels, self.otherwise.level(timestep))


def _replaced(x: Tensor, at: tuple[float, ...], by: tuple[float, ...], otherwise: Tensor) -> Tensor:
    """``by[n]`` where ``x == at[n]``, elsewhere ``otherwise``."""
    nodes, values = (torch.tensor(table, dtype=torch.float64, device="cpu").to(x.device) for table in (at, by))
    same = x[..., None] == nodes
    return torch.where(same.any(-1), values[same.to(torch.uint8).argmax(-1)], otherwise)


def _rounded(timestep: Tensor, rounding: str) -> Tensor:
    if rounding == "nearest":
        return timestep.round()
    return timestep.floor() if rounding == "down" else timestep


def settled(levels: Tensor, timesteps: Tensor, mapping: Timesteps) -> Tensor:
    """Levels equal to the given ones to float32 round-off, at which the model is given the scheduler's own timesteps.

    A scheduler computes both in float64 and keeps the levels in float32, so a timestep computed from a kept level may
    round to another whole number or differ in its last digits.
    """
    ulp = torch.finfo(torch.float32).eps
    shifts = torch.tensor([0, 1, -1, 2, -2, 4, -4], dtype=torch.float64, device="cpu")
    candidates = torch.cat([mapping.level(timesteps)[None], levels * (1 + ulp * shifts[:, None])])
    near = (candidates / levels - 1).abs() <= 4.5 * ulp
    misses = (mapping.timestep(candidates).float().double() - timesteps).abs().masked_fill(~near, torch.inf)
    return candidates.gather(0, misses.argmin(0, keepdim=True))[0]
