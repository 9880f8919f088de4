"""A study as a value: everything that determines a measured order."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from ..solvers import Solver
from ..solvers.reference import reference_solver
from .fingerprint import fingerprint
from .quantities import Quantity, State
from .settings import Setting, mild


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

    A reference on a grid r times finer by a method of equal order p is off by ``r^-p`` of the finest error, and the
    errors read a slope too steep: 0.5 reads 0.62 with r = 4. The reference's own error is estimated on the finest grid
    of the study, from the same paths, and levels within four times of it are dropped.
    """

    solver: Solver
    setting: Setting = field(default_factory=mild)
    quantity: Quantity = State()  # noqa: RUF009 (frozen)
    steps: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    paths: int = 1000
    seed: int = 0
    finer: int = 4
    reference: Solver | None = None
    dtype: torch.dtype = torch.float64

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
            raise ValueError(f"paths: got {self.paths}; pass at least 30, or no interval keeps its promise")
        self.quantity.check(self.setting, self.steps)

    @property
    def finest(self) -> int:
        """The number of steps of the reference's grid."""
        return self.steps[-1] * self.finer

    @property
    def judge(self) -> Solver | None:
        """The solver of the reference; ``None`` is the exact solution."""
        if self.reference is not None:
            return self.reference
        if self.setting.exact is not None:
            return None
        noisy = self.setting.frame.eta > 0
        return reference_solver(self.solver, noisy=noisy, levy_areas=self.setting.has_levy_areas)

    @property
    def order(self) -> float:
        """The order that the solver's claims imply for this quantity in this setting."""
        return self.quantity.order(self.setting, self.solver)

    @property
    def subject(self) -> str:
        """The quantity and the equation in a line."""
        frame = self.setting.frame
        return f"{self.quantity.name}, eta = {frame.eta:g}, {frame.kind} kind, {self.paths} paths"

    def fingerprint(self) -> str:
        """Return a digest of all that determines the numbers, but for the machine; see ``fingerprint``.

        ``NoDigestError`` (a ``ValueError``) if something in it cannot be compared, such as a ``torch.Generator``.
        """
        return fingerprint(self)
