"""The variance-preserving process with time equal to the noise-to-signal ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Schedule


@dataclass(frozen=True)
class VPLevel(Schedule):
    """``alpha = 1 / sqrt(1 + t^2)``, ``sigma = t / sqrt(1 + t^2)``, ``lam = -log t``, for ``t >= 0``.

    Every variance-preserving schedule after the change of time ``t = sigma / alpha``: ``VE`` scaled to unit variance.
    It is the ``sigmas`` that diffusers' DPM-Solver counts in. ``sigma_max`` and ``sigma_min`` are the default sampling
    ends ``t_max`` and ``t_min`` and restrict nothing else. The time says nothing about what a network is given:
    a network trained on other times needs a wrapper that converts (or ``Tabulated``).
    Source: Song et al. (2021a), section 4.3 (the change of variables).
    """

    sigma_min: float = 0.01
    sigma_max: float = 150.0

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
        # Above 1 from 1/t, which can be squared.
        return torch.where(t > 1, -t.log() - (1 / t).square().log1p() / 2, -t.square().log1p() / 2)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.where(t > 1, -(1 / t).square().log1p() / 2, t.log() - t.square().log1p() / 2)

    def _lam(self, t: Tensor) -> Tensor:
        return -t.log()

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam).exp()
