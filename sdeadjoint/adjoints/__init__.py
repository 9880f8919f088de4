"""How a sampler is differentiated."""

from ..discretization import Hook
from .adaptive import Adaptive
from .base import Adjoint
from .checkpoint import Checkpoint
from .continuous import ContinuousAdjoint
from .direct import Direct
from .hooked import Hooked, clip_norm, normalize, record_norms
from .inversion import RoundTripWarning
from .low_variance import LowVariance
from .published import adjoint_deis, adjoint_dpm
from .reversible import Reversible
from .truncated import Truncated

__all__ = [
    "Adaptive",
    "Adjoint",
    "Checkpoint",
    "ContinuousAdjoint",
    "Direct",
    "Hook",
    "Hooked",
    "LowVariance",
    "Reversible",
    "RoundTripWarning",
    "Truncated",
    "adjoint_deis",
    "adjoint_dpm",
    "clip_norm",
    "normalize",
    "record_norms",
]
