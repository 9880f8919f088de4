"""Grids made for a gradient: every step contributes the same to its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint
from ..conditioning import scheduled
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..diffusion.grids import karras, uniform_logsnr, uniform_time
from ..gradient_check.call import Call, Loss
from ..gradient_check.check import in_double
from ..noise import Noise
from ..solvers import Solver
from .refine import better, check_noise, dense, split

Array = NDArray[np.float64]

_REFERENCE_STEPS = 80  # at least; a multiple of the grid's own
_LEAST = 0.1  # of the mean density of nodes: no step is longer than ten average ones
_FAR = 1e6  # stands for a solve that is not finite
_LONGEST = 2.0  # how far polishing may stretch or shrink a step, as a logarithm


def goal_grid(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    loss: Loss,
    frame: Frame,
    steps: int,
    solver: Solver,
    t_max: float | None = None,
    t_min: float | None = None,
    noise: Noise | None = None,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    sweeps: int = 3,
    polish: int = 0,
) -> Tensor:
    """Choose the grid of so many steps on which the gradient is near that of the equation.

        grid = sa.goal_grid(denoiser, x_T, loss=loss, frame=frame, steps=10, solver=solver)
        x_0 = sa.sample(denoiser, other, frame=frame, grid=grid, solver=solver)
        loss(x_0).backward()

    Halving step n alone changes the gradient by about its share of the error, ``C_n = |psi_n| h_n^q``.
    Sweeps move the nodes so that all shares are equal, which makes their sum least: the density of
    nodes goes like ``C_n^(1/q) / h_n``, with ``q = p + 1`` for a solver of order p without noise and
    ``p + 1/2`` along SDE paths, where squares add up. With ``polish`` Gauss-Newton steps then move
    them on, to where shares of different signs cancel: in the mean square of the error itself,
    against a reference on a fine grid. Of all grids that were tried, ``uniform_logsnr``, ``karras`` and
    ``uniform_time`` among them, the one that is nearest to the reference on these starts is returned.

    Args:
        denoiser, x_T, frame, solver, noise, cond, adjoint: as for ``gradient_error``. x_T are the
            starts that the grid is made on: some ten for a grid that is good on others too. The
            gradients looked at are those of everything that requires one, or that in x_T if
            nothing does, each in units of its own size, x_T's sample by sample.
        loss: from the sample to one number, a sum over samples.
        steps: the number of steps N of the grid.
        t_max, t_min: its ends; ``schedule.t_max`` and ``schedule.t_min`` unless given. For a last
            step to sigma = 0 append that time.
        sweeps: how often the shares are measured.
        polish: the most Gauss-Newton steps; 0 for a grid of equal shares. They fit N - 1 lengths to
            these starts: with few of them, others may be the worse for it.

    Returns a float64 tensor (N + 1,) of decreasing times on the CPU.
    Cost: ``N + 1`` gradients of N calls per sweep, as many per Gauss-Newton step, and a reference of
    80 steps of RK4 at least (with noise, of ShARK). It is made once, for all calls that follow; the
    choice is not differentiated.
    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit.

    Not for losses that change with every call, nor made on starts that are unlike those to come:
    look at others with ``gradient_error``. Not for ``Scheduled`` conditioning, whose slots belong to
    the steps.
    Source: de Boor (1973) for equidistribution; Becker and Rannacher (2001) for errors of a goal.
    """
    for name, value, least in (("steps", steps, 1), ("sweeps", sweeps, 0), ("polish", polish, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}; pass an integer >= {least}")
    start = _start(frame, steps, t_max, t_min)
    call = Call(denoiser, x_T, loss, frame, start, solver, noise, {} if cond is None else cond)
    guided = {} if denoiser.guidance is None else denoiser.guidance.tensors
    if any(True for _ in scheduled([call.cond, guided])):
        raise ValueError("cond, guidance: Scheduled holds one value per step of one grid; pass one value for all steps")
    call = call.copied(torch.float64)
    check_noise(noise)
    if not call.leaves():
        call.x_T.requires_grad_()
    goal = _Goal.create(call, adjoint)
    places = goal.places(start)
    tried = [places, *goal.usual()]
    order = solver.claims.ode + 1 if frame.eta == 0 else solver.claims.strong + 0.5
    for _ in range(sweeps):
        places = equidistributed(places, goal.shares(places), order)
        tried.append(places)
    best = min(tried, key=goal.error)
    if polish and steps > 1:
        best = min(best, _polished(goal, best, polish), key=goal.error)
    return goal.grid(best)


@dataclass(frozen=True, eq=False)
class _Goal:
    """Gradients of a call on grids, as vectors whose squared length is a mean of squared relative sizes.

    Nodes have places: values of lambda, or of time where that is infinite at an end.
    """

    call: Call
    leaves: Mapping[str, Tensor]
    adjoint: Adjoint
    start: Tensor
    logarithmic: bool
    scales: Mapping[str, Tensor]
    reference: Array

    @classmethod
    def create(cls, call: Call, adjoint: Adjoint) -> _Goal:
        grid = torch.as_tensor(call.grid)
        steps = len(grid) - 1
        fine = split(call.frame.schedule, grid, [max(4, math.ceil(_REFERENCE_STEPS / steps))] * steps)
        leaves = call.leaves()
        with in_double():
            _, found = replace(better(call), grid=fine).gradients(Checkpoint(), leaves)
        scales = {name: _scale(name, dense(grad, leaves[name])) for name, grad in found.items() if grad is not None}
        finite = bool(torch.isfinite(call.frame.schedule.lam(grid)).all())
        goal = cls(call, leaves, adjoint, grid, finite, scales, np.zeros(0))
        return replace(goal, reference=goal._flat(found))

    def places(self, grid: Tensor) -> Array:
        table = self.call.frame.schedule.lam(grid) if self.logarithmic else -grid
        return table.numpy()

    def grid(self, places: Array) -> Tensor:
        table = torch.from_numpy(places)
        times = self.call.frame.schedule.time(table) if self.logarithmic else -table
        return torch.cat([self.start[:1], times[1:-1], self.start[-1:]])

    def usual(self) -> list[Array]:
        """Other grids that people take, from the same start to the same end."""
        if not self.logarithmic:
            return []
        first, last = float(self.start[0]), float(self.start[-1])
        schedule, steps = self.call.frame.schedule, len(self.start) - 1
        return [self.places(make(schedule, steps, t_max=first, t_min=last)) for make in (karras, uniform_time)]

    def gradient(self, places: Array) -> Array:
        _, found = replace(self.call, grid=self.grid(places)).gradients(self.adjoint, self.leaves)
        return self._flat(found)

    def error(self, places: Array) -> float:
        """Against the reference; infinite where the solve is not finite."""
        size = float(np.linalg.norm(self.gradient(places) - self.reference))
        return size if math.isfinite(size) else math.inf

    def shares(self, places: Array) -> Array:
        """How far halving each step alone moves the gradient."""
        whole = self.gradient(places)
        middles = (places[1:] + places[:-1]) / 2
        halved = (np.insert(places, n + 1, middle) for n, middle in enumerate(middles))
        return np.array([float(np.linalg.norm(self.gradient(nodes) - whole)) for nodes in halved])

    def _flat(self, found: Mapping[str, Tensor | None]) -> Array:
        parts = (dense(found[name], self.leaves[name]).double() * scale for name, scale in self.scales.items())
        return torch.cat([part.flatten().cpu() for part in parts]).numpy()


def equidistributed(places: Array, shares: Array, order: float) -> Array:
    """As many places between the same ends, so that shares that go like ``h^order`` come out equal.

    The density ``shares^(1/order) / h`` is taken as constant on each step, and as a tenth of its mean where it is less.
    """
    lengths = np.diff(places)
    if not shares.max() > 0 or not np.isfinite(shares).all():
        return places
    density = shares ** (1 / order) / lengths
    density = np.maximum(density, _LEAST * (density * lengths).sum() / lengths.sum())
    total = np.concatenate([[0.0], np.cumsum(density * lengths)])
    found = np.interp(np.linspace(0.0, total[-1], len(places)), total, places)
    found[0], found[-1] = places[0], places[-1]
    return np.asarray(found)


def _polished(goal: _Goal, places: Array, most: int) -> Array:
    """Gauss-Newton steps on the logarithms of the lengths, whose sum stays: the last one has no freedom."""
    start, span = places[0], places[-1] - places[0]
    lengths = np.log(np.diff(places) / span)

    def moved(freedom: Array) -> Array:
        parts = np.exp(np.append(freedom, lengths[-1]))
        found = start + span * np.concatenate([[0.0], np.cumsum(parts) / parts.sum()])
        found[-1] = places[-1]
        return found

    def missing(freedom: Array) -> Array:
        found = goal.gradient(moved(freedom)) - goal.reference
        return np.nan_to_num(found, nan=_FAR, posinf=_FAR, neginf=-_FAR)

    free = lengths[:-1]
    solved = least_squares(
        missing, free, bounds=(free - _LONGEST, free + _LONGEST), diff_step=1e-3, max_nfev=most
    )
    return moved(solved.x)


def _start(frame: Frame, steps: int, t_max: float | None, t_min: float | None) -> Tensor:
    """Equal steps of lambda, of time where lambda is infinite at an end."""
    schedule = frame.schedule
    ends = [schedule.t_max if t_max is None else t_max, schedule.t_min if t_min is None else t_min]
    finite = bool(torch.isfinite(schedule.lam(torch.tensor(ends, dtype=torch.float64))).all())
    make = uniform_logsnr if finite else uniform_time
    return make(schedule, steps, t_max=t_max, t_min=t_min)


def _scale(name: str, grad: Tensor) -> Tensor:
    """One over the size: of each sample of x_T, of any other tensor as a whole."""
    grad = grad.double()
    if name == "x_T":
        sizes = grad.reshape(len(grad), -1).norm(dim=1) * math.sqrt(len(grad))
        # A sample without a gradient must not decide: it counts by what is usual.
        sizes = sizes.clamp(min=max(1e-3 * float(sizes.mean()), 1e-300))
        return (1 / sizes).reshape(-1, *[1] * (grad.ndim - 1))
    return 1 / grad.norm().clamp(min=1e-300)
