"""Exact gradients through diffusion samplers, ODE and SDE, with Brownian replay."""

from importlib import import_module as _import_module
from typing import Any as _Any

from . import adapters, comparison, convergence, equilibria, probability, problems, samplers
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
    clip_quantile,
    normalize,
    record_norms,
)
from .clocks import adaptive_clock, adaptive_grid
from .conditioning import Scheduled
from .control import adjoint_matching_loss, lean_adjoint, memoryless_deficit
from .curvature import Curvature, gauss_newton_product, largest_curvature
from .diffusion.denoiser import Denoiser
from .diffusion.frames import Frame
from .diffusion.grids import coarsen, karras, timesteps, uniform_logsnr, uniform_time
from .diffusion.guidance import Guidance
from .diffusion.schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLevel, VPLinear
from .diffusion.timewatch import TimeWarning
from .encode import Encoded, encode
from .equation import Equation
from .field import noise_clock
from .gradient_check import GradientCheck, check_gradient
from .noise import BrownianPath, FixedNoise, Noise, NormalNoise, ShiftedNoise
from .probability import (
    ExactDivergence,
    Hutchinson,
    LogLikelihood,
    Transitions,
    dequantise,
    log_likelihood,
    path_log_weight,
    pushforward_log_prob,
    transition_kl,
    transition_log_prob,
    transitions,
)
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

__version__ = "0.2.0"


def __getattr__(name: str) -> _Any:
    """Import ``sdeadjoint.testing`` when it is asked for, as it needs hypothesis."""
    if name == "testing":
        return _import_module("sdeadjoint.testing")
    raise AttributeError(f"module 'sdeadjoint' has no attribute {name!r}")


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
    "Curvature",
    "DPMSolver3",
    "DPMSolverPP2M",
    "Denoiser",
    "Direct",
    "Dopri5",
    "Encoded",
    "Equation",
    "Euler",
    "ExactDivergence",
    "FixedNoise",
    "Frame",
    "GradientCheck",
    "GradientError",
    "Guidance",
    "Heun",
    "Hooked",
    "Hutchinson",
    "Interval",
    "LogLikelihood",
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
    "TimeWarning",
    "Transitions",
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
    "adjoint_matching_loss",
    "check_gradient",
    "clip_norm",
    "clip_quantile",
    "coarsen",
    "comparison",
    "convergence",
    "dequantise",
    "encode",
    "equilibria",
    "gauss_newton_product",
    "goal_grid",
    "gradient_error",
    "karras",
    "largest_curvature",
    "lean_adjoint",
    "log_likelihood",
    "memoryless_deficit",
    "noise_clock",
    "normalize",
    "path_log_weight",
    "probability",
    "problems",
    "pushforward_log_prob",
    "record_norms",
    "sample",
    "samplers",
    "solve",
    "timesteps",
    "transition_kl",
    "transition_log_prob",
    "transitions",
    "uniform_logsnr",
    "uniform_time",
]
