"""Cases for adjoints: one nonlinear solve with everything that can have a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..adjoints import Adjoint
from ..conditioning import Scheduled
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import KINDS, Frame
from ..diffusion.grids import uniform_logsnr
from ..diffusion.guidance import Guidance
from ..diffusion.predictions import PREDICTIONS
from ..diffusion.schedules import RectifiedFlow, Schedule, VPCosine, VPLinear
from ..noise import BrownianPath, FixedNoise, Noise, ShiftedNoise
from ..sample import sample
from ..solvers import SRA1, Coupled, DPMSolverPP2M, Euler, Heun, ReversibleHeun, ShARK, Solver
from .contract import Case, numbers
from .networks import Network

T = TypeVar("T")

NOISES = ("fixed", "shifted", "replayed")
GUIDED = ("none", "batched", "two calls")
STEPS = (1, 2, 3, 4, 5, 6, 2, 3, 5, 13, 20)
"""Mostly few; some faults are those of long solves."""


class Gradients(NamedTuple):
    """The sample and the gradients by name, None where there is none."""

    x: Tensor
    of: dict[str, Tensor | None]


class Built(NamedTuple):
    """Arguments of ``sample`` made anew, and their leaves by name."""

    arguments: dict[str, Any]
    leaves: dict[str, Tensor]


@dataclass(frozen=True)
class Solve(Case):
    """A call of ``sample`` whose gradients reach x_T, conditioning, guidance, weights, noise and what nobody declared.

    The conditioning is two tensors, ``style`` in a nest and ``tone``.

    Args:
        solver, steps, eta, kind, prediction, schedule: of the sampler; the grid is uniform in lambda from -2 to 2.
        noise: for eta > 0: ``"fixed"`` increments as leaves, ``"shifted"`` a replayed path with shifts as leaves,
            ``"replayed"`` a path without leaves.
        hidden: the network is a function, its weights are found in the graph alone.
        latent: x_T requires a gradient.
        trajectory: all states are returned.
        batch: number of samples, of shape (3,).
        scheduled: the conditioning, and the guidance with it, changes from step to step: a tensor or a list per step.
        guided: ``"none"``, or guidance whose scale and unconditional tensors are leaves, in one call or two.
        dtype: of everything.
    """

    solver: Solver = field(default_factory=Euler)
    steps: int = 2
    eta: float = 0.0
    kind: str = "data"
    noise: str = "fixed"
    prediction: str = "epsilon"
    schedule: Schedule = field(default_factory=VPLinear)
    hidden: bool = False
    latent: bool = True
    trajectory: bool = False
    batch: int = 2
    scheduled: bool = False
    guided: str = "none"
    dtype: torch.dtype = torch.float64

    def build(self) -> Built:
        """Fresh tensors, equal for equal cases."""
        frame = Frame(self.schedule, self.eta, self.kind)
        t_max, t_min = (float(self.schedule.time(lam)) for lam in (-2.0, 2.0))
        grid = uniform_logsnr(self.schedule, self.steps, t_max=t_max, t_min=t_min)
        x_T = self._numbers(self.batch, 3, seed=1).requires_grad_(self.latent)
        leaves = {"x_T": x_T} if self.latent else {}
        cond, guidance = self._conditioning(leaves)
        module = self._network(leaves)
        noise = self._noise(frame, grid, x_T, leaves) if self.eta > 0 else None
        arguments = {
            "denoiser": Denoiser(module, self.schedule, self.prediction, guidance=guidance),
            "x_T": x_T,
            "frame": frame,
            "grid": grid,
            "solver": self.solver,
            "noise": noise,
            "cond": cond,
            "trajectory": self.trajectory,
        }
        return Built(arguments, leaves)

    def _network(self, leaves: dict[str, Tensor]) -> Any:
        network = Network((3,)).to(self.dtype)
        leaves |= {n: p for n, p in network.named_parameters() if p.requires_grad}
        if not self.hidden:
            return network
        leaves["hidden"] = scale = torch.tensor(0.8, dtype=self.dtype, device="cpu").requires_grad_()

        def module(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return network(x, t, **cond) * scale

        return module

    def _conditioning(self, leaves: dict[str, Tensor]) -> tuple[dict[str, Any], Guidance | None]:
        """``cond`` and the guidance; their tensors are added to the leaves."""

        def values(name: str, batch: int, seed: int) -> dict[str, Any]:
            style: Any
            times = (self.steps,) if self.scheduled else ()
            style, tone = (self._numbers(*times, batch, 4, seed=seed + k) for k in range(2))
            leaves[f"{name}.tone"] = tone.requires_grad_()
            if not self.scheduled:
                leaves[f"{name}.style"] = style.requires_grad_()
                return {"style": {"style": [style]}, "tone": tone}
            style = [value.clone().requires_grad_() for value in style]
            leaves.update({f"{name}.style of step {n}": value for n, value in enumerate(style)})
            return {"style": {"style": [Scheduled(style)]}, "tone": Scheduled(tone)}

        cond = values("cond", self.batch, 10)
        if self.guided == "none":
            return cond, None
        scale = 1.5 + 0.1 * self._numbers(*((self.steps,) if self.scheduled else ()), seed=20)
        leaves["guidance.scale"] = scale.requires_grad_()
        unconditional = values("guidance", 1 if self.guided == "batched" else self.batch, 30)
        given = Scheduled(scale) if self.scheduled else scale
        return cond, Guidance(given, unconditional, batched=self.guided == "batched")  # type: ignore[arg-type]

    def _numbers(self, *shape: int, seed: int) -> Tensor:
        return numbers(*shape, seed=seed, dtype=self.dtype)

    def _noise(self, frame: Frame, grid: Tensor, x_T: Tensor, leaves: dict[str, Tensor]) -> Noise:
        path, levy = BrownianPath(seed=3), self.solver.claims.levy != "none"
        if self.noise == "replayed":
            return path
        drawn = [path.increments(frame, grid, x_T)] + ([path.levy_areas(frame, grid, x_T)] if levy else [])
        if self.noise == "shifted":
            drawn = [0.1 * part for part in drawn]
        leaves |= {name: part.requires_grad_() for name, part in zip(("dB", "H"), drawn, strict=False)}
        return FixedNoise(*drawn) if self.noise == "fixed" else ShiftedNoise(path, *drawn)

    def gradients(self, adjoint: Adjoint) -> Gradients:
        """The sample and its gradients for one fixed cotangent."""
        arguments, leaves = self.build()
        x = sample(adjoint=adjoint, **arguments)
        found = torch.autograd.grad(x, list(leaves.values()), cotangent(x), allow_unused=True)
        return Gradients(x.detach(), dict(zip(leaves, found, strict=True)))

    def code(self, name: str) -> str:
        lines = [
            *(["import torch"] if self.dtype != torch.float64 else []),
            "from sdeadjoint import *",
            "from sdeadjoint.testing.problems import Solve",
            f"case = {self!r}",
            f"print(case.gradients({name}))",
            "print(case.gradients(Direct()))",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Recomputed(Case):
    """A ``Solve`` with the solver that is checked, under an adjoint that relies on the solver's contract."""

    adjoint: Adjoint
    steps: int = 5
    eta: float = 0.0
    kind: str = "data"
    noise: str = "fixed"

    def solve(self, solver: Solver) -> Solve:
        return Solve(solver, self.steps, self.eta, self.kind, self.noise)

    def code(self, name: str) -> str:
        solve = f"Solve({name}, {self.steps}, {self.eta}, {self.kind!r}, {self.noise!r})"
        lines = ["from sdeadjoint import *", "from sdeadjoint.testing.problems import Solve"]
        return "\n".join([*lines, *(f"print({solve}.gradients({adjoint}))" for adjoint in (self.adjoint, "Direct()"))])


ANY: tuple[Solver, ...] = (Euler(), Heun(), DPMSolverPP2M(), ShARK(), SRA1())
REVERSIBLE: tuple[Solver, ...] = (Coupled(Euler()), Coupled(Heun()), ReversibleHeun())


def known(compute: Callable[[Solve], T], case: Solve) -> T:
    """``compute(case)``; with this library's own solvers it is the same for every adjoint, so it is computed once."""
    if any(case.solver is solver for solver in (*ANY, *REVERSIBLE)):
        found: T = _kept(compute, case)
        return found
    return compute(case)


@lru_cache(maxsize=512)
def _kept(compute: Callable[[Solve], Any], case: Solve) -> Any:
    return compute(case)


def cotangent(x: Tensor) -> Tensor:
    """What the sample's gradient is pulled back from: no two entries alike."""
    return torch.linspace(-1, 2, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)


def solves(solvers: Sequence[Solver], *, trajectory: bool = False) -> st.SearchStrategy[Solve]:
    """Problems for any of the solvers, ODE and SDE, with every kind of leaf."""
    return st.builds(
        Solve,
        solver=st.sampled_from(list(solvers)),
        steps=st.sampled_from(STEPS),
        eta=st.sampled_from([0.0, 1.0, 0.3]),
        kind=st.sampled_from(KINDS),
        noise=st.sampled_from(NOISES),
        prediction=st.sampled_from(PREDICTIONS),
        schedule=st.sampled_from([VPLinear(), RectifiedFlow(), VPCosine()]),
        hidden=st.booleans(),
        latent=st.sampled_from([True, False]),
        trajectory=st.booleans() if trajectory else st.just(False),
        batch=st.integers(1, 3),
        scheduled=st.booleans(),
        guided=st.sampled_from(GUIDED),
        dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]),
    ).map(lambda case: case if case.eta > 0 else replace(case, noise=NOISES[0]))
