"""Exact gradients through diffusion samplers, ODE and SDE, with Brownian replay."""

from . import problems, samplers
from .adjoints import Adjoint, Checkpoint, Direct
from .conditioning import Scheduled
from .denoiser import Denoiser
from .frames import Frame
from .grids import coarsen, karras, uniform_logsnr, uniform_time
from .guidance import Guidance
from .noise import BrownianPath, FixedNoise, Noise
from .sample import sample
from .schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLinear
from .solvers import (
    RK4,
    SRA1,
    AdamsBashforth,
    Claims,
    DPMSolverPP2M,
    Euler,
    Heun,
    Interval,
    Midpoint,
    ShARK,
    Solver,
)

__version__ = "0.1.0"

__all__ = [
    "RK4",
    "SRA1",
    "VE",
    "AdamsBashforth",
    "Adjoint",
    "BrownianPath",
    "Checkpoint",
    "Claims",
    "DPMSolverPP2M",
    "Denoiser",
    "Direct",
    "Euler",
    "FixedNoise",
    "Frame",
    "Guidance",
    "Heun",
    "Interval",
    "Midpoint",
    "Noise",
    "RectifiedFlow",
    "Schedule",
    "Scheduled",
    "ShARK",
    "Solver",
    "Tabulated",
    "VPCosine",
    "VPLinear",
    "coarsen",
    "karras",
    "problems",
    "sample",
    "samplers",
    "uniform_logsnr",
    "uniform_time",
]
