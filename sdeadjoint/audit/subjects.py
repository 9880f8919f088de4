"""What is audited: the named samplers, and the diffusers schedulers that the adapters support."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

from .. import adapters, samplers
from ..adapters.ancestral import AncestralPair
from ..adapters.multistep import Lowered
from ..diffusion.frames import Frame
from ..diffusion.schedules import VE, RectifiedFlow, Schedule, VPLinear
from ..samplers import NamedSampler
from ..solvers import Solver

OURS, THEIRS = "sdeadjoint", "diffusers"
MISSING = "the schedulers of diffusers are left out: pip install 'sdeadjoint[diffusers]'"
EXPLODING, FLOWS = ("edm_heun",), ("flow_euler", "flow_heun")
QUICK = ("ddim", "sra1_sde", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "LCMScheduler")


class Course(NamedTuple):
    """One run of a sampler: coordinates, grid and method."""

    frame: Frame
    grid: Tensor
    solver: Solver


@dataclass(frozen=True, eq=False)
class Subject:
    """A sampler as a user runs it.

    Args:
        name: of the sampler or of the scheduler; ``options`` are what its configuration adds, in words.
        family: ``OURS`` or ``THEIRS``.
        order: the ODE order that its source states; ``None`` where it states none.
        calls: network calls for each of the ``steps`` that ``course`` is asked for.
        course: ``course(steps)``: its frame, its own grid and its solver for so many steps.
        method: the solver without what it lowers on a grid, for grids that are not its own; ``None`` where its steps
            make sense on its own grid only.
    """

    name: str
    options: str
    family: str
    order: float | None
    calls: int
    course: Callable[[int], Course]
    method: Solver | None

    @property
    def title(self) -> str:
        return f"{self.name} ({self.options})" if self.options else self.name

    def steps(self, calls: int) -> int:
        """The most steps that so many network calls pay, one at least."""
        return max(1, calls // self.calls)


def subjects(*, quick: bool = False) -> Iterator[Subject]:
    """Every exported sampler, and every supported scheduler where diffusers is installed; ``quick``: a few of them."""

    def wanted(name: str, options: str) -> bool:
        return not quick or (name in QUICK and options in _FIRST)

    yield from (subject for subject in _own() if wanted(subject.name, subject.options))
    if find_spec("diffusers") is not None:
        yield from schedulers(tuple(case for case in CASES if wanted(case.name, case.options)))


# ---------------------------------------------------------------- the samplers of this library


def _own() -> Iterator[Subject]:
    for name, make in vars(samplers).items():
        if inspect.isfunction(make) and make.__module__ == samplers.__name__ and not name.startswith("_"):
            sampler = make(_schedule(name))
            claims = sampler.solver.claims
            course = partial(_own_course, sampler)
            yield Subject(name, "", OURS, float(claims.ode), claims.evaluations, course, sampler.solver)


def _schedule(name: str) -> Schedule:
    """The process that a sampler is made for."""
    if name in EXPLODING:
        return VE()
    return RectifiedFlow() if name in FLOWS else VPLinear()


def _own_course(sampler: NamedSampler, steps: int) -> Course:
    return Course(sampler.frame, sampler.grid(steps), sampler.solver)


# ---------------------------------------------------------------- the schedulers of diffusers


class Case(NamedTuple):
    """A scheduler with a configuration, the order that is stated of it, and network calls for each of its steps."""

    name: str
    config: dict[str, Any]
    order: float | None
    calls: int = 1
    options: str = ""
    eta: float = 0.0


_PLAIN = {"clip_sample": False}
_NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}
_FIRST = ("", "order 3")  # of a quick audit

# The order that is stated is ``solver_order`` (one more for UniPC, as its documentation has it), that of the weights
# for LMS and PNDM, and 2 for methods of two stages.
CASES: tuple[Case, ...] = (
    Case("DDPMScheduler", _PLAIN, 1),
    Case("DDPMParallelScheduler", _PLAIN, 1),
    Case("DDIMScheduler", _PLAIN, 1),
    Case("DDIMScheduler", _PLAIN, 1, options="eta = 1", eta=1.0),
    Case("DDIMParallelScheduler", _PLAIN, 1),
    Case("CogVideoXDDIMScheduler", _PLAIN, 1),
    Case("CogVideoXDPMScheduler", _PLAIN, 2),
    Case("DPMSolverMultistepScheduler", {}, 2),
    Case("DPMSolverMultistepScheduler", _KARRAS, 2, options="Karras"),
    Case("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, 2, options="Lu's lambdas"),
    Case("DPMSolverMultistepScheduler", {"solver_type": "heun"}, 2, options="heun"),
    Case("DPMSolverMultistepScheduler", {"solver_order": 3}, 3, options="order 3"),
    Case("DPMSolverMultistepScheduler", _NOISE, 2, options="dpmsolver"),
    Case("DPMSolverMultistepScheduler", _SDE, 2, options="SDE"),
    Case("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}, 2, options="SDE, Karras"),
    Case("DPMSolverSinglestepScheduler", {}, 2),
    Case("DPMSolverSinglestepScheduler", {"solver_order": 3}, 3, options="order 3"),
    Case("UniPCMultistepScheduler", {}, 3),
    Case("UniPCMultistepScheduler", {"solver_order": 3}, 4, options="order 3"),
    Case("DEISMultistepScheduler", {}, 2),
    Case("DEISMultistepScheduler", {"solver_order": 3}, 3, options="order 3"),
    Case("PNDMScheduler", {"skip_prk_steps": True}, 4),
    Case("LMSDiscreteScheduler", {}, 4),
    Case("LMSDiscreteScheduler", _KARRAS, 4, options="Karras"),
    Case("EulerDiscreteScheduler", {}, 1),
    Case("EulerDiscreteScheduler", _KARRAS, 1, options="Karras"),
    Case("EulerAncestralDiscreteScheduler", {}, 1),
    Case("HeunDiscreteScheduler", {}, 2, 2),
    Case("HeunDiscreteScheduler", _KARRAS, 2, 2, options="Karras"),
    Case("KDPM2DiscreteScheduler", _KARRAS, 2, 2, options="Karras"),
    Case("KDPM2AncestralDiscreteScheduler", _KARRAS, 2, 2, options="Karras"),
    Case("DPMSolverSDEScheduler", _KARRAS, 2, 2, options="Karras"),
    Case("EDMEulerScheduler", {}, 1),
    Case("EDMDPMSolverMultistepScheduler", {}, 2),
    Case("EDMDPMSolverMultistepScheduler", _SDE, 2, options="SDE"),
    Case("CosineDPMSolverMultistepScheduler", {}, 2),
    Case("FlowMatchEulerDiscreteScheduler", {}, 1),
    Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1, options="shift 3"),
    Case("FlowMatchHeunDiscreteScheduler", {}, 2, 2),
    Case("LCMScheduler", {"original_inference_steps": 100, **_PLAIN}, None),
    Case("TCDScheduler", {"original_inference_steps": 100, **_PLAIN}, None, options="eta = 0.3", eta=0.3),
    Case("FlowMatchLCMScheduler", {}, None),
)


def schedulers(cases: tuple[Case, ...] = CASES) -> Iterator[Subject]:
    """The cases that the installed diffusers has; ``ImportError`` without diffusers."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(MISSING) from error
    for case in cases:
        make = getattr(diffusers, case.name, None)
        if make is None:
            continue
        with warnings.catch_warnings(action="ignore"):  # of diffusers about its own tables
            adapter = adapters.from_diffusers(_unused, make(**case.config), eta=case.eta)
        course = partial(_adapted, adapter)
        yield Subject(case.name, case.options, THEIRS, case.order, case.calls, course, _method(adapter.solver))


def _adapted(adapter: adapters.Adapter, steps: int) -> Course:
    with warnings.catch_warnings(action="ignore"):
        parts = adapter.parts(steps=steps)
    return Course(parts.frame, parts.grid, parts.solver)


def _unused(x: Tensor, timestep: Tensor) -> Tensor:
    """The model of the adapters, which is never called: the perfect network of a problem takes its place."""
    raise AssertionError("an audit calls the perfect network only")


def _method(solver: Solver) -> Solver | None:
    base = solver.base if isinstance(solver, Lowered) else solver
    return None if isinstance(base, AncestralPair) or base.claims.ode == 0 else base
