"""What the public names do when not told otherwise: each number and word that stands for an argument left out.

A default is part of the method that a user quotes, and no property of a sample betrays another one. Those of a paper:
Song et al. (2021) for ``VPLinear``, Nichol and Dhariwal (2021) for ``VPCosine``, Karras et al. (2022) for ``VE``,
``karras`` and ``from_edm``, McCallum and Foster (2024) for ``Coupled``.
"""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import Any

import pytest

import sdeadjoint as sa
from sdeadjoint import adapters, convergence, problems, samplers, testing

DEFAULTS: dict[ModuleType, dict[str, dict[str, Any]]] = {
    sa: {
        "AdamsBashforth": {"order": 2, "variable": "log"},
        "Adaptive": {"rtol": 1e-6, "atol": 1e-9, "method": "DOP853"},
        "BrownianPath": {"device": "cpu"},
        "Checkpoint": {"states": "device"},
        "Claims": {"levy": "none", "weak": 1.0},
        "ContinuousAdjoint": {"states": "recorded"},
        "Coupled": {"zeta": 0.999},
        "DPMSolver3": {"variant": "dpmsolver"},
        "Denoiser": {"prediction": "epsilon"},
        "Frame": {"eta": 0.0, "kind": "data"},
        "Guidance": {"rescale": 0.0},
        "Hutchinson": {"probes": 1, "seed": 0, "kind": "rademacher"},
        "Interval": {"dB": 0.0, "H": 0.0},
        "LowVariance": {"copies": 2, "seed": 0},
        "Reversible": {"tolerance": 1e-4},
        "UniPC": {"order": 2, "variant": "bh2"},
        "VE": {"sigma_min": 0.002, "sigma_max": 80.0},
        "VPCosine": {"s": 0.008},
        "VPLevel": {"sigma_min": 0.01, "sigma_max": 150.0},
        "VPLinear": {"beta_min": 0.1, "beta_max": 20.0},
        "adaptive_clock": {"norm": "batch", "smallest": 0.0, "largest": math.inf, "max_steps": 10_000},
        "adaptive_grid": {"norm": "batch", "max_steps": 10_000},
        "adjoint_deis": {"order": 1, "states": "recorded", "kind": "noise"},
        "adjoint_dpm": {"method": "euler", "states": "reconstructed"},
        "check_gradient": {"reference": "auto", "memory": "4GiB", "directions": 4, "seed": 0},
        "dequantise": {"seed": 0},
        "encode": {"max_iterations": 50},
        "goal_grid": {"sweeps": 3, "polish": 0},
        "karras": {"rho": 7.0},
        "largest_curvature": {"products": 50, "tolerance": 0.001},
        "memoryless_deficit": {"variance": 1.0},
        "normalize": {"norm": 1.0},
        "timesteps": {"spacing": "leading", "offset": 0},
    },
    samplers: {
        "deis": {"order": 3, "variable": "log"},
        "rex": {"zeta": 0.999, "eta": 0.0, "kind": "data"},
        "sde_dpm_solver_pp_1": {"eta": 1.0},
        "sde_dpm_solver_pp_2m": {"eta": 1.0},
        "uni_pc": {"order": 2},
    },
    adapters: {
        "from_denoiser": {"rho": 7.0},
        "from_diffusers": {"eta": 0.0},
        "from_edm": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "from_pipeline": {"eta": 0.0},
        "from_velocity": {"data_at": 1},
    },
    problems: {"Digits": {"bandwidth": 0.1}, "Quadratic": {"curvature": 0.0}},
    convergence: {
        "Driven": {"diffusion": 0.0},
        "Gradient": {"of": "x_T", "block": 25},
        "Power": {"exponent": 2},
        "Setting": {"name": ""},
        "Slope": {"floor": 0.0, "standstill": 0.0},
        "Study": {"paths": 1000, "seed": 0, "finer": 4},
        "fit": {"statistic": "rms", "confidence": 0.95},
    },
    testing: {"check_adjoint": {"tolerance": 1e-9}, "check_noise": {"alarm": 1e-6}},
}


def defaults(module: ModuleType) -> dict[str, dict[str, Any]]:
    """The numbers and words that stand for arguments left out, for each public name of a module that has any."""
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    own = {name: thing for name in names if _is_own(thing := getattr(module, name), module)}
    given = {
        name: {p.name: p.default for p in inspect.signature(thing).parameters.values()} for name, thing in own.items()
    }
    stated = {
        name: {key: value for key, value in of.items() if type(value) in (int, float, str)}
        for name, of in given.items()
    }
    return {name: of for name, of in stated.items() if of}


def _is_own(thing: Any, module: ModuleType) -> bool:
    called = inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception))
    return called and thing.__module__.startswith(module.__name__)


@pytest.mark.parametrize("module", DEFAULTS, ids=lambda module: str(module.__name__))
def test_defaults_are_those_stated(module: ModuleType) -> None:
    assert defaults(module) == DEFAULTS[module]


def test_ready_made_samplers_start_from_the_defaults_of_their_parts() -> None:
    assert samplers.rex(sa.VPLinear(), sa.Euler()).solver == sa.Coupled(sa.Euler())
