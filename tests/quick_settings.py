"""The mixtures of ``sdeadjoint.convergence.settings`` with their drifts written out: the same equations in less time.

Most of a study's time goes into ``Denoiser``, ``Frame`` and ``Mixture``, which other tests are of. Here a drift is a
few operations on numbers that are computed once for each value of the clock. ``tests/test_convergence.py`` holds states
and gradients against those of the settings themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.convergence import Reverse, Setting
from sdeadjoint.convergence.settings import Steered
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.problems.base import PosteriorMean
from sdeadjoint.solvers import Drift

from .written_drifts import COMPONENTS
from .written_drifts import written_out as on_the_line

Numbers = tuple[float, ...]


def quick(setting: Setting) -> Setting:
    """The setting with its drift written out, for mixtures under ``VE`` in the plane, of one variance, and the line."""
    return replace(setting, equation=Quick(**_values(setting.equation)))


@dataclass(frozen=True)
class Quick(Reverse):
    """``Reverse`` with its drift written out."""

    def on(self, grid: Tensor, start: Tensor, cond: Mapping[str, Tensor]) -> WrittenOut:
        return WrittenOut(**_values(super().on(grid, start, cond)))


def _values(of: Any) -> dict[str, Any]:
    return {field.name: getattr(of, field.name) for field in fields(of)}


@dataclass(frozen=True)
class WrittenOut(Diffusion):
    """A diffusion whose drift calls no network."""

    def drift(self, n: int) -> Drift:
        network, kind, eta = self.denoiser.network, self.kind, self.frame.eta
        steered = network if isinstance(network, Steered) else None
        mean = network if steered is None else steered.mean
        assert isinstance(mean, PosteriorMean)
        problem = mean.problem
        assert isinstance(problem, sa.problems.Mixture)
        weights, v = tuple(problem.weights.tolist()), problem.variances
        if problem.event_shape == ():
            assert (weights, tuple(problem.means.tolist()), tuple(v.tolist())) == COMPONENTS
            return on_the_line(kind, eta)
        assert isinstance(self.frame.schedule, sa.VE)
        means, width = tuple(map(tuple, problem.means.tolist())), float(v)

        def drift(s: float, y: Tensor) -> Tensor:
            at = _coefficients(weights, means, width, kind, eta, s)
            share = torch.addmm(at.offset.to(y), y, at.odds.to(y)).softmax(1)
            x0 = torch.addmm(at.gain * y, share, at.centres.to(y))
            if steered is not None:
                x0 = x0 + at.bend * torch.tanh(x0 @ steered.matrix.T + self.cond["shift"])
            return x0 if kind == "data" else at.of_state * y + at.of_data * x0

        return drift


class Coefficients(NamedTuple):
    """``log share = offset + y odds``, ``x_0 = share centres + gain y``, ``F = of_state y + of_data x_0``.

    ``bend`` is the factor c of ``Steered``.
    """

    offset: Tensor
    odds: Tensor
    centres: Tensor
    gain: float
    bend: float
    of_state: float
    of_data: float


@cache
def _coefficients(
    weights: Numbers, means: tuple[Numbers, ...], v: float, kind: str, eta: float, s: float
) -> Coefficients:
    """By the documentation of ``Frame``, with alpha = 1 and sigma = r; P = v + sigma^2 for all components."""
    r = {
        "data": lambda: s ** (-1 / (1 + eta)),
        "noise": lambda: s / (1 + eta),
        "flow": lambda: (1 - s) ** (-1 / (1 + eta)) - 1,
    }[kind]()
    w = {"data": r ** (1 + eta), "noise": 1.0, "flow": (1 + r) ** (1 + eta)}[kind]
    P, m = v + r**2, torch.tensor(means, dtype=torch.float64)
    offset = torch.tensor(weights, dtype=torch.float64).log() - (m**2).sum(1) / (2 * P)
    of_data = {"data": 1.0, "noise": -1 / r, "flow": -1 / r - 1}[kind]
    return Coefficients(offset, w / P * m.T, r**2 / P * m, v * w / P, r**2 / (1 + r**2), w / r, of_data)
