"""A study as a value: everything that determines a measured order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from ..solvers import Solver
from ..solvers.reference import reference_solver
from .fingerprint import fingerprint
from .quantities import Quantity, State
from .settings import Setting, standard

FULL = 2048  # numbers of a state below which a network call takes the same time for more paths
LEAST = 50  # paths solved together, unless they fill the memory
BUDGET = 2**24  # float64 numbers of dB held at once, and as many of H


@dataclass(frozen=True)
class Study:
    """Errors of a solver on nested grids, all on the same Brownian paths.

    Args:
        solver: what is measured.
        setting: the equation; see ``settings``.
        quantity: what is compared; see ``quantities``.
        steps: numbers of steps, increasing; each divides ``finer`` times the last one.
        paths: independent samples; each has its own x_T and Brownian path.
        seed: of all of them.
        finer: how many times finer than the finest grid the reference's grid is.
        reference: the solver of the reference. Unless given: none where the setting has an exact solution, else the
            choice of ``solvers.reference.reference_solver``.
        dtype: of the states; paths are drawn in float64 and rounded.
        batch: the most paths that are solved together. A batch has seeds of its own, and is the unit of work of an
            executor and of what an interruption can cost. Unless given: 50 paths; more where states are so small that
            a network call takes the same time for more of them (up to 2048 numbers in all: 1024 paths in the plane);
            fewer where their Brownian paths would fill the memory. The numbers belong to the batches, so a study with
            another ``batch`` is another study.

    A reference on a grid r times finer by a method of equal order p is off by ``r^-p`` of the finest error, and the
    errors read a slope too steep: 0.5 reads 0.62 with r = 4. The reference's own error is estimated on the finest grid
    of the study, from the same paths, and levels within four times of it are dropped.
    """

    solver: Solver
    setting: Setting = field(default_factory=standard)
    quantity: Quantity = State()  # noqa: RUF009 (frozen)
    steps: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    paths: int = 1000
    seed: int = 0
    finer: int = 4
    reference: Solver | None = None
    dtype: torch.dtype = torch.float64
    batch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver: got {self.solver!r}; pass a solver such as Heun()")
        if len(self.steps) < 3 or any(m <= n for n, m in pairwise(self.steps)):
            raise ValueError(f"steps: got {self.steps}; pass at least three increasing numbers")
        odd = [n for n in self.steps if n < 1 or self.finest % n]
        if odd:
            raise ValueError(f"steps: {odd} do not divide the reference's {self.finest}; grids must be nested")
        if self.finer < 2:
            raise ValueError(f"finer: got {self.finer}; the reference needs a grid at least 2 times finer")
        if self.paths < 30:
            raise ValueError(f"paths: got {self.paths}; pass at least 30: with fewer the interval is not reliable")
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise ValueError(f"batch: got {self.batch!r}; pass the most paths that are to be solved together, or None")
        units = sum(-(-paths // self.quantity.unit) for paths in self.batches)
        if units < 10:
            raise ValueError(
                f"paths: {self.paths} make only {units} blocks of {self.quantity.unit}, too few for an interval; pass "
                f"at least {10 * self.quantity.unit} paths, or a quantity with smaller blocks"
            )
        self.quantity.check(self.setting, self.steps)

    @property
    def finest(self) -> int:
        """The number of steps of the reference's grid."""
        return self.steps[-1] * self.finer

    @property
    def batches(self) -> list[int]:
        """How many paths are solved together, batch after batch: whole units of the quantity, about as many in each."""
        numbers, unit = math.prod(self.setting.shape), self.quantity.unit
        most = self.batch
        if most is None:
            held = numbers * self.finest if self.setting.is_noisy else numbers
            most = max(1, min(max(LEAST, FULL // numbers), BUDGET // held))
        even = -(-self.paths // -(-self.paths // most))
        size = -(-even // unit) * unit
        return [min(size, self.paths - first) for first in range(0, self.paths, size)]

    @property
    def judge(self) -> Solver | None:
        """The solver of the reference; ``None`` is the exact solution."""
        if self.reference is not None:
            return self.reference
        if self.setting.exact is not None:
            return None
        noisy = self.setting.is_noisy
        return reference_solver(self.solver, noisy=noisy, levy_areas=self.setting.has_levy_areas)

    @property
    def order(self) -> float:
        """The order that the solver's claims imply for this quantity in this setting."""
        return self.quantity.order(self.setting, self.solver)

    @property
    def subject(self) -> str:
        """The quantity and the equation in a line."""
        return f"{self.quantity.name}: {self.setting.title}, {self.paths} paths"

    def fingerprint(self) -> str:
        """Return a digest of all that determines the numbers, but for the machine; see ``fingerprint``.

        ``NoDigestError`` (a ``ValueError``) if something in it cannot be compared, such as a ``torch.Generator``.
        """
        return fingerprint(self)
