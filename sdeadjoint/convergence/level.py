"""One grid of a study, ready to be solved on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..adjoints import Adjoint, Direct
from ..noise import FixedNoise, Noise
from ..sample import sample
from ..solvers import Solver
from .paths import Paths
from .settings import Setting


@dataclass(frozen=True, eq=False)
class Level:
    """One grid of a study: how to solve on it (``solver=None``: exactly), and the paths of all samples there.

    ``cells`` is the number of steps of the study's coarsest grid.
    """

    setting: Setting
    solver: Solver | None
    grid: Tensor
    paths: Paths | None
    x_T: Tensor
    cond: Mapping[str, Tensor]
    cells: int

    @property
    def noise(self) -> FixedNoise | None:
        return None if self.paths is None else self.paths.noise()

    def solve(self, adjoint: Adjoint = Direct()) -> Tensor:  # noqa: B008 (frozen)
        return self.driven_by(self.noise, adjoint)

    def driven_by(self, noise: Noise | None, adjoint: Adjoint) -> Tensor:
        if self.solver is None:
            assert self.setting.exact is not None
            return self.setting.exact(self.x_T, self.grid, noise)
        setting = self.setting
        return sample(
            setting.denoiser,
            self.x_T,
            frame=setting.frame,
            grid=self.grid,
            solver=self.solver,
            noise=noise,
            cond=self.cond,
            adjoint=adjoint,
        )

    def part(self, of: slice) -> Level:
        """The same for some of the paths."""
        paths = self.paths and Paths(self.paths.clock, self.paths.dB[:, of], self.paths.H[:, of])
        cond = {name: value[of] for name, value in self.cond.items()}
        return replace(self, paths=paths, x_T=self.x_T[of], cond=cond)
