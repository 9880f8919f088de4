"""Schedules whose time is the noise level ``sigma / alpha``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Schedule


@dataclass(frozen=True)
class Level(Schedule):
    """``lam = -log t`` for ``t >= 0``; subclasses say how the signal is scaled.

    ``sigma_max`` and ``sigma_min`` are the default sampling ends ``t_max`` and ``t_min`` and restrict nothing else.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min and sigma_max must be finite with 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def _lam(self, t: Tensor) -> Tensor:
        return -t.log()

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam).exp()
