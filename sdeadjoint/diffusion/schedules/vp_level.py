"""The variance-preserving process with time equal to the noise-to-signal ratio."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .level import Level


@dataclass(frozen=True)
class VPLevel(Level):
    """``alpha = 1 / sqrt(1 + t^2)``, ``sigma = t / sqrt(1 + t^2)``, ``lam = -log t``, for ``t >= 0``.

    Every variance-preserving schedule after the change of time ``t = sigma / alpha``: ``VE`` scaled to unit variance.
    It is the ``sigmas`` that diffusers' DPM-Solver counts in. ``sigma_max`` and ``sigma_min`` are the default sampling
    ends ``t_max`` and ``t_min`` and restrict nothing else. The time says nothing about what a network is given:
    a network trained on other times needs a wrapper that converts (or ``Tabulated``).
    Source: Song et al. (2021a), section 4.3 (the change of variables).
    """

    sigma_min: float = 0.01
    sigma_max: float = 150.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        # Above 1 from 1/t^2, where t^2 may overflow.
        return torch.where(t > 1, -t.log() - t.square().reciprocal().log1p() / 2, -t.square().log1p() / 2)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.where(t > 1, -t.square().reciprocal().log1p() / 2, t.log() - t.square().log1p() / 2)
