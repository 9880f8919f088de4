"""The variance-exploding schedule with time equal to the noise level: EDM and k-diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Schedule


@dataclass(frozen=True)
class VE(Schedule):
    """``alpha = 1``, ``sigma = t``, ``lam = -log t``, for ``t >= 0``.

    ``sigma_max`` and ``sigma_min`` are the default sampling ends ``t_max`` and ``t_min`` and restrict nothing
    else. Source: Karras et al. 2022 (EDM), table 1, last column; the ``sigma`` of k-diffusion. Even at
    ``sigma_max`` the data still shows in x_T: start from ``sigma_max`` times a standard normal only if it
    dwarfs the data's scale.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

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

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return t.log()

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam).exp()
