"""Models and samplers of other libraries, as this library has them: each in one call."""

from __future__ import annotations

from .base import Adapter
from .diffusers import from_diffusers
from .edm import from_edm
from .k_diffusion import from_denoiser
from .pipelines import from_pipeline
from .velocity import from_velocity

__all__ = ["Adapter", "from_denoiser", "from_diffusers", "from_edm", "from_pipeline", "from_velocity"]
