"""The adjoint equation of the continuous diffusion."""

from .adaptive import Adaptive
from .adjoint import ContinuousAdjoint
from .published import adjoint_deis, adjoint_dpm

__all__ = ["Adaptive", "ContinuousAdjoint", "adjoint_deis", "adjoint_dpm"]
