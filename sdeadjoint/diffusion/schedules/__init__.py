"""Noise schedules: ``alpha(t)``, ``sigma(t)``, half the log-SNR ``lam(t)`` and its inverse ``time(lam)``."""

from __future__ import annotations

from .base import Schedule
from .rectified_flow import RectifiedFlow
from .tabulated import Tabulated
from .ve import VE
from .vp import VPCosine, VPLinear
from .vp_level import VPLevel

__all__ = ["VE", "RectifiedFlow", "Schedule", "Tabulated", "VPCosine", "VPLevel", "VPLinear"]
