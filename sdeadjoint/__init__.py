"""Exact gradients through diffusion samplers, ODE and SDE, with Brownian replay."""

from . import problems, samplers
from .adjoints import (
    Adaptive,
    Adjoint,
    Checkpoint,
    ContinuousAdjoint,
    Direct,
    Hooked,
    LowVariance,
    Reversible,
    RoundTripWarning,
    Truncated,
    adjoint_deis,
    adjoint_dpm,
    clip_norm,
    normalize,
    record_norms,
)
from .conditioning import Scheduled
from .denoiser import Denoiser
from .frames import Frame
from .grids import coarsen, karras, uniform_logsnr, uniform_time
from .guidance import Guidance
from .noise import BrownianPath, FixedNoise, Noise, ShiftedNoise
from .sample import sample
from .schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLinear
from .solvers import (
    RK4,
    SRA1,
    AdamsBashforth,
    Claims,
    Coupled,
    DPMSolverPP2M,
    Euler,
    Heun,
    Interval,
    Midpoint,
    ReversibleHeun,
    ShARK,
    Solver,
)

__version__ = "0.1.0"

__all__ = [
    "RK4",
    "SRA1",
    "VE",
    "AdamsBashforth",
    "Adaptive",
    "Adjoint",
    "BrownianPath",
    "Checkpoint",
    "Claims",
    "ContinuousAdjoint",
    "Coupled",
    "DPMSolverPP2M",
    "Denoiser",
    "Direct",
    "Euler",
    "FixedNoise",
    "Frame",
    "Guidance",
    "Heun",
    "Hooked",
    "Interval",
    "LowVariance",
    "Midpoint",
    "Noise",
    "RectifiedFlow",
    "ReversibleHeun",
    "Reversible",
    "RoundTripWarning",
    "Schedule",
    "Scheduled",
    "ShARK",
    "ShiftedNoise",
    "Solver",
    "Tabulated",
    "Truncated",
    "VPCosine",
    "VPLinear",
    "adjoint_deis",
    "adjoint_dpm",
    "clip_norm",
    "coarsen",
    "karras",
    "normalize",
    "problems",
    "record_norms",
    "sample",
    "samplers",
    "uniform_logsnr",
    "uniform_time",
]
