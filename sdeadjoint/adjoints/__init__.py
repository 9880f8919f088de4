"""How a sampler is differentiated."""

from .base import Adjoint
from .checkpoint import Checkpoint
from .direct import Direct

__all__ = ["Adjoint", "Checkpoint", "Direct"]
