"""What is studied: an equation on grids of any number of steps, nested in each other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from ..diffusion.grids import uniform_logsnr
from ..equation import Equation
from ..field import Field, noise_clock

Coefficient = Callable[[float], float | Tensor]
"""``g(s)``: a diffusion coefficient, a function of the clock alone."""


class Dynamics(ABC):
    """``dy = F(s, y) ds + dB_nu`` before it is cut into steps.

    ``Reverse`` is a diffusion, and ``Driven`` any drift. For an ``Equation`` of your own derive from this class.
    """

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """Return N + 1 nodes, float64, under the names that users know; those of a coarser grid are a part of them."""

    @abstractmethod
    def noise_clock(self, grid: Tensor) -> Tensor | None:
        """Return ``nu`` at each node, float64 and rising; None without noise."""

    @abstractmethod
    def on(self, grid: Tensor, start: Tensor, cond: Mapping[str, Tensor]) -> Equation:
        """Return the equation on these nodes, for states like ``start`` and with this conditioning."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """The standard deviation of starts, unless a setting has another."""

    @property
    @abstractmethod
    def module(self) -> nn.Module | None:
        """What holds the weights."""

    @property
    def name(self) -> str:
        """The name of the drift, for settings that have none."""
        return type(self).__name__

    @property
    def member(self) -> str:
        """What is to be told beside the name: noise, and coordinates."""
        return "with noise" if self.is_noisy else "without noise"

    @property
    def is_noisy(self) -> bool:
        return self.noise_clock(self.grid(1)) is not None

    @property
    def weights(self) -> Iterator[nn.Parameter]:
        """The parameters that require a gradient."""
        return (p for p in (self.module or nn.Module()).parameters() if p.requires_grad)

    @abstractmethod
    def member_of(self, eta: float | None, kind: str | None) -> Self:
        """Return the same with the noise's power times ``eta``, in coordinates of another kind; None keeps them.

        ``ValueError`` where there is no such thing.
        """


@dataclass(frozen=True)
class Reverse(Dynamics):
    """The reverse diffusion of a denoiser in a frame, on grids that are uniform in lambda.

    Args:
        denoiser, frame: over one schedule.
        t_max, t_min: ends of the grid; the schedule's own unless given. Both need a finite lambda.
    """

    denoiser: Denoiser
    frame: Frame
    t_max: float | None = None
    t_min: float | None = None

    def grid(self, steps: int) -> Tensor:
        return uniform_logsnr(self.frame.schedule, steps, t_max=self.t_max, t_min=self.t_min)

    def noise_clock(self, grid: Tensor) -> Tensor | None:
        return self.frame.noise_clock(grid) if self.is_noisy else None

    def on(self, grid: Tensor, start: Tensor, cond: Mapping[str, Tensor]) -> Diffusion:
        return Diffusion.create(self.denoiser, self.frame, grid, cond)

    @property
    def scale(self) -> float:
        t = self.frame.schedule.t_max if self.t_max is None else self.t_max
        return float(self.frame.schedule.sigma(t))

    @property
    def module(self) -> nn.Module | None:
        return self.denoiser

    @property
    def name(self) -> str:
        network = self.denoiser.network
        return getattr(network, "__name__", type(network).__name__)

    @property
    def member(self) -> str:
        return f"eta = {self.frame.eta:g}, {self.frame.kind} kind"

    @property
    def is_noisy(self) -> bool:
        return self.frame.eta > 0

    def member_of(self, eta: float | None, kind: str | None) -> Self:
        """Return the same in another frame; ``eta`` replaces the frame's own."""
        own = self.frame
        frame = replace(own, eta=own.eta if eta is None else eta, kind=own.kind if kind is None else kind)
        return replace(self, frame=frame)


@dataclass(frozen=True)
class Driven(Dynamics):
    """``dy = drift(s, y, **cond) ds + g(s) dW`` on uniform grids, as ``sdeadjoint.solve`` solves it.

    Args:
        drift: a function ``drift(s, y, **cond)`` or a module; y is (paths, *shape), a path a row.
        ends: where the clock begins and ends; it may fall.
        diffusion: g, a number or a function of the clock; 0 is an ODE.
    """

    drift: Callable[..., Tensor]
    ends: tuple[float, float] = (0.0, 1.0)
    diffusion: float | Coefficient = 0.0

    def __post_init__(self) -> None:
        if not callable(self.drift) or isinstance(self.drift, type):
            raise TypeError(f"drift: got {self.drift!r}; pass a function drift(s, y, **cond) or a module")
        begin, end = (float(value) for value in self.ends)
        if begin == end or not (math.isfinite(begin) and math.isfinite(end)):
            raise ValueError(f"ends: got {self.ends}; pass two different finite numbers")
        if not callable(self.diffusion) and not (math.isfinite(self.diffusion) and self.diffusion >= 0):
            raise ValueError(f"diffusion: got {self.diffusion!r}; pass a number >= 0, or a function of the clock")

    def grid(self, steps: int) -> Tensor:
        return torch.linspace(*self.ends, steps + 1, dtype=torch.float64, device="cpu")

    def noise_clock(self, grid: Tensor) -> Tensor | None:
        if callable(self.diffusion):
            return noise_clock(self.diffusion, grid)
        return self.diffusion**2 * (grid - grid[0]).abs() if self.diffusion > 0 else None

    def on(self, grid: Tensor, start: Tensor, cond: Mapping[str, Tensor]) -> Field:
        nu = self.noise_clock(grid)
        return Field.create(self.drift, start, grid, cond=cond, noise_clock=nu, time_dtype=torch.float64)

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def module(self) -> nn.Module | None:
        owner = getattr(self.drift, "__self__", self.drift)
        return owner if isinstance(owner, nn.Module) else None

    @property
    def name(self) -> str:
        return getattr(self.drift, "__name__", type(self.drift).__name__)

    @property
    def member(self) -> str:
        if not self.is_noisy:
            return "without noise"
        return "noise that changes with the clock" if callable(self.diffusion) else f"noise {self.diffusion:.3g} dW"

    @property
    def is_noisy(self) -> bool:
        return callable(self.diffusion) or self.diffusion > 0

    def member_of(self, eta: float | None, kind: str | None) -> Self:
        if kind is not None:
            raise ValueError(
                f"kind: got {kind!r}, but only diffusions have kinds of coordinates; leave it out, and name solvers, "
                "not samplers of diffusions"
            )
        if eta is None or eta == 1:
            return self
        if eta < 0:
            raise ValueError(f"eta: got {eta}; pass a number >= 0, by which the power of the noise is multiplied")
        if eta == 0:
            return replace(self, diffusion=0.0)
        if callable(self.diffusion):
            return replace(self, diffusion=_Scaled(self.diffusion, math.sqrt(eta)))
        return replace(self, diffusion=math.sqrt(eta) * self.diffusion)


@dataclass(frozen=True)
class _Scaled:
    """A diffusion coefficient times a number."""

    coefficient: Coefficient
    factor: float

    def __call__(self, s: float) -> Any:
        return self.factor * self.coefficient(s)
