"""The gradient methods that are compared."""

from __future__ import annotations

from dataclasses import dataclass

from ..adjoints import (
    Adjoint,
    Checkpoint,
    ContinuousAdjoint,
    Direct,
    LowVariance,
    Reversible,
    Truncated,
    adjoint_deis,
    adjoint_dpm,
)
from ..adjoints.checkpoint import parse_bytes
from ..adjoints.continuous.adjoint import STATES
from ..solvers import Coupled, Heun, ReversibleHeun, ReversibleSolver, Solver

EXACT, RECORDED, RECONSTRUCTED, TRUNCATED, OTHER = (
    "exact",
    "continuous, recorded states",
    "continuous, reconstructed states",
    "truncated",
    "other",
)


@dataclass(frozen=True)
class Method:
    """An adjoint under a name; with a solver of its own where it needs one, else the comparison's."""

    name: str
    adjoint: Adjoint
    solver: Solver | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: got {self.name!r}; pass what the table should call the method")
        if not isinstance(self.adjoint, Adjoint):
            raise TypeError(f"adjoint: got {type(self.adjoint).__name__}; pass an adjoint such as Checkpoint()")
        if not isinstance(self.solver, Solver | None):
            raise TypeError(f"solver: got {type(self.solver).__name__}; pass a solver, or None for the comparison's")

    @property
    def budget_bytes(self) -> int | None:
        """The memory that a checkpoint was given for what it keeps."""
        given = self.adjoint.memory if isinstance(self.adjoint, Checkpoint) else None
        return None if given is None else parse_bytes(given)

    @property
    def family(self) -> str:
        """The kind of gradient that it promises."""
        if isinstance(self.adjoint, Direct | Checkpoint | Reversible):
            return EXACT
        if isinstance(self.adjoint, Truncated | LowVariance):
            return TRUNCATED
        if isinstance(self.adjoint, ContinuousAdjoint):
            return RECORDED if self.adjoint.states == "recorded" else RECONSTRUCTED
        return OTHER


def default_methods(solver: Solver, memory: int | str = "1MiB") -> tuple[Method, ...]:
    """Every method of the package for a sampler with this solver; ``memory`` is the budget of one checkpoint.

    ``Reversible()`` gets the coupled form of a one-step solver, which is another sampler, compared with its own
    gradient; of a solver with memory there is none, and it gets ``ReversibleHeun()``.
    """
    return (
        Method("Direct()", Direct()),
        Method("Checkpoint()", Checkpoint()),
        Method("Checkpoint(snapshots=4)", Checkpoint(snapshots=4)),
        Method(f"Checkpoint(memory={memory!r})", Checkpoint(memory=memory)),
        _reversible(solver),
        *(
            Method(f"AdjointDEIS-{name}, {states}", adjoint_deis(order, states=states))
            for order, name in ((1, "1"), (2, "2M"))
            for states in STATES
        ),
        *(Method(f"AdjointDPM, {method}", adjoint_dpm(method)) for method in ("euler", "midpoint", "rk4")),
        Method("ContinuousAdjoint(Heun())", ContinuousAdjoint(Heun())),
        Method("Truncated(last=1)", Truncated(last=1)),
        Method("Truncated(last=5)", Truncated(last=5)),
        Method("LowVariance(copies=2)", LowVariance(copies=2)),
    )


def _reversible(solver: Solver) -> Method:
    if not isinstance(solver, ReversibleSolver):
        try:
            solver = Coupled(solver)
        except ValueError:  # it remembers earlier steps
            solver = ReversibleHeun()
    shown = f"Coupled({solver.base!r})" if isinstance(solver, Coupled) else repr(solver)
    return Method(f"Reversible(), {shown}", Reversible(), solver)
