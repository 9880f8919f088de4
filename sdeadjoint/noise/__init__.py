"""Noise that can be replayed: Brownian paths from a seed, increments given as tensors, and both together."""

from __future__ import annotations

from .base import BoundNoise, HasNoiseClock, Increment, Noise
from .brownian import BrownianPath
from .fixed import FixedNoise
from .normal import NormalNoise
from .shifted import ShiftedNoise

__all__ = [
    "BoundNoise",
    "BrownianPath",
    "FixedNoise",
    "HasNoiseClock",
    "Increment",
    "Noise",
    "NormalNoise",
    "ShiftedNoise",
]
