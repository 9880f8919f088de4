"""Noise that can be replayed: Brownian paths from a seed, and increments given as tensors."""

from __future__ import annotations

from .base import BoundNoise, HasNoiseClock, Increment, Noise
from .brownian import BrownianPath
from .fixed import FixedNoise

__all__ = ["BoundNoise", "BrownianPath", "FixedNoise", "HasNoiseClock", "Increment", "Noise"]
