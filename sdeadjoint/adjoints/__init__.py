"""How a sampler is differentiated."""

from .base import Adjoint
from .checkpoint import Checkpoint
from .continuous.adaptive import Adaptive
from .continuous.adjoint import ContinuousAdjoint
from .continuous.published import adjoint_deis, adjoint_dpm
from .direct import Direct
from .hooked import Hook, Hooked, clip_norm, clip_quantile, normalize, record_norms
from .low_variance import LowVariance
from .replay.inversion import RoundTripWarning
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
    "clip_quantile",
    "normalize",
    "record_norms",
]
