"""Exact gradients through diffusion samplers, ODE and SDE, with Brownian replay."""

from . import adapters, comparison, convergence, equilibria, problems, samplers
from .accuracy import GradientError, goal_grid, gradient_error
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
from .clocks import adaptive_clock, adaptive_grid
from .conditioning import Scheduled
from .diffusion.denoiser import Denoiser
from .diffusion.frames import Frame
from .diffusion.grids import coarsen, karras, uniform_logsnr, uniform_time
from .diffusion.guidance import Guidance
from .diffusion.schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLevel, VPLinear
from .encode import Encoded, encode
from .equation import Equation
from .field import noise_clock
from .gradient_check import GradientCheck, check_gradient
from .noise import BrownianPath, FixedNoise, Noise, NormalNoise, ShiftedNoise
from .sample import Sampler, sample
from .solve import solve
from .solvers import (
    RK4,
    SRA1,
    AdamsBashforth,
    BogackiShampine,
    Claims,
    Coupled,
    Dopri5,
    DPMSolver3,
    DPMSolverPP2M,
    Euler,
    Heun,
    Interval,
    Midpoint,
    ReversibleHeun,
    ShARK,
    Solver,
    UniPC,
)

__version__ = "0.1.0"

__all__ = [
    "RK4",
    "SRA1",
    "VE",
    "AdamsBashforth",
    "Adaptive",
    "Adjoint",
    "BogackiShampine",
    "BrownianPath",
    "Checkpoint",
    "Claims",
    "ContinuousAdjoint",
    "Coupled",
    "DPMSolver3",
    "DPMSolverPP2M",
    "Denoiser",
    "Direct",
    "Dopri5",
    "Encoded",
    "Equation",
    "Euler",
    "FixedNoise",
    "Frame",
    "GradientCheck",
    "GradientError",
    "Guidance",
    "Heun",
    "Hooked",
    "Interval",
    "LowVariance",
    "Midpoint",
    "Noise",
    "NormalNoise",
    "RectifiedFlow",
    "Reversible",
    "ReversibleHeun",
    "RoundTripWarning",
    "Sampler",
    "Schedule",
    "Scheduled",
    "ShARK",
    "ShiftedNoise",
    "Solver",
    "Tabulated",
    "Truncated",
    "UniPC",
    "VPCosine",
    "VPLevel",
    "VPLinear",
    "adapters",
    "adaptive_clock",
    "adaptive_grid",
    "adjoint_deis",
    "adjoint_dpm",
    "check_gradient",
    "clip_norm",
    "coarsen",
    "comparison",
    "convergence",
    "encode",
    "equilibria",
    "goal_grid",
    "gradient_error",
    "karras",
    "noise_clock",
    "normalize",
    "problems",
    "record_norms",
    "sample",
    "samplers",
    "solve",
    "uniform_logsnr",
    "uniform_time",
]
