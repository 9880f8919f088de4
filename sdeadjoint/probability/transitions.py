"""Probabilities of a sampler's steps and paths: Gaussians whose mean the network gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint, Direct
from ..arguments import check_state, check_types, is_integer, named
from ..compiling import eagerly
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from ..equation import Equation
from ..recursion import Recursion
from ..solvers import Solver
from .joined import rows
from .pinned import Pinned, Pinning, called_nodes, grouped

Steps = Sequence[int] | Tensor | None
"""Which steps: their indices from 0, or a mask with one bool per step; None is all of them."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """The laws of some steps of a path, ``x_{n+1} ~ N(mean, variance I)`` given the states before, and where it went.

    Args:
        states: ``x_{n+1}``, (steps, batch, ...), in the dtype of the trajectory.
        mean: (steps, batch, ...), float64.
        variance: (steps,), float64, on the CPU: ``w_{n+1}^2 dnu``, the same for all numbers of the state.

    Everything is in the user's coordinates x, in float64, and differentiable.
    """

    states: Tensor
    mean: Tensor
    variance: Tensor

    @property
    def log_prob(self) -> Tensor:
        """``log N(x_{n+1}; mean, variance I)``, (steps, batch), summed over each sample's numbers, in nats."""
        squares = _summed((self.states.double() - self.mean) ** 2)
        v = self._variance
        return -0.5 * (squares / v + self._numbers * (2 * math.pi * v).log())

    def kl(self, reference: Transitions) -> Tensor:
        """The Kullback-Leibler divergence of each step from a reference's, (steps, batch), in closed form.

        KL(N(m, v) || N(m', v')) = |m - m'|^2 / (2 v') + D/2 (v/v' - 1 - log(v/v'))
        """
        v, other = self._matched(reference)
        ratio = v / other
        return _summed((self.mean - reference.mean) ** 2) / (2 * other) + 0.5 * self._numbers * (
            ratio - 1 - ratio.log()
        )

    def log_ratio(self, reference: Transitions) -> Tensor:
        """``log p - log p'`` of each step, (steps, batch), without the cancellation of the two.

        With equal variances it is Girsanov's formula, discrete and exact: ``<d, r> / v - |d|^2 / (2 v)`` for the
        difference d of the means and the reference's residual r, which is ``sqrt(v)`` times a standard normal if the
        path is the reference's own.
        """
        v, other = self._matched(reference)
        residual = self.states.double() - reference.mean
        d = self.mean - reference.mean
        scales = 0.5 * self._numbers * (other / v).log() + 0.5 * (1 / other - 1 / v) * _summed(residual**2)
        return scales + (_summed(residual * d) - 0.5 * _summed(d**2)) / v

    @property
    def _numbers(self) -> int:
        return self.mean[0, 0].numel()

    @property
    def _variance(self) -> Tensor:
        return self.variance.to(self.mean.device)[:, None]

    def _matched(self, reference: Transitions) -> tuple[Tensor, Tensor]:
        check_types(("reference", reference, Transitions, "the transitions of another denoiser on the same path"))
        if reference.mean.shape != self.mean.shape or not torch.equal(reference.states, self.states):
            raise ValueError(
                f"reference: is of other steps or of another path (means {tuple(reference.mean.shape)} and "
                f"{tuple(self.mean.shape)}); pass transitions of the same trajectory and steps"
            )
        return self._variance, reference._variance


def _summed(values: Tensor) -> Tensor:
    """Sums over the numbers of each sample: (steps, batch)."""
    return values.reshape(*values.shape[:2], -1).sum(2)


@eagerly
def transitions(
    denoiser: Denoiser | Equation,
    trajectory: Tensor,
    *,
    frame: Frame | None = None,
    grid: Tensor | Sequence[float] | None = None,
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    steps: Steps = None,
    batch_size: int | None = None,
) -> Transitions:
    """Return the Gaussian laws of a sampler's steps along a trajectory: means, variances, log-probabilities.

        path = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise, trajectory=True)
        laws = sa.transitions(denoiser, path, frame=frame, grid=grid, solver=solver)
        laws.log_prob, laws.mean, laws.variance, laws.kl(others), laws.log_ratio(others)

    In the frame a step is ``y_{n+1} = m_n + dB_n`` with ``dB_n ~ N(0, dnu_n)``, where ``m_n`` is made of the drifts at
    the states before, if the solver calls the network at these only. In the user's coordinates ``x = w y`` it is
    ``x_{n+1} ~ N(w_{n+1} m_n, w_{n+1}^2 dnu_n)``: exactly the law of the discrete sampler, of any eta > 0 and kind.

    Args:
        denoiser: the network with its schedule and prediction kind; or an ``Equation`` of your own with additive noise
            and one tensor as its state, then without frame, grid and cond.
        trajectory: (steps + 1, batch, ...), x_T first: what ``sample(..., trajectory=True)`` returns. Any path will do,
            also one that another denoiser made.
        frame, grid, solver, cond: as for ``sample``, of which they are to be the same. The solver is Euler,
            DPMSolverPP2M, AdamsBashforth without a start of its own, UniPC, or one of yours that calls the network at
            the step's start only.
        adjoint: ``Checkpoint()``, in the memory of one step, or ``Direct()``, which keeps all activations.
        steps: the steps that are asked for, as indices from 0 or as a mask with one bool per step; the result has
            their order. The network is called for these only, and for the past that a multistep solver needs.
        batch_size: the most samples in one call of the network. Several steps are joined in a call where they fit, and
            a batch that does not fit is split. Tensors of cond and guidance whose first dimension is the batch or 1
            have one row per sample then, and ``Guidance(batched=True)`` makes it
            twice as many. None: one step per call, of the batch as it is, as in ``sample``.

    Gradients reach the weights, cond, the guidance and the trajectory, each exactly: the states before and after a step
    alike. Detach a trajectory that was sampled with gradients and is to be data (policy gradients).
    dtypes: means and all that follows are float64, the network is called in the trajectory's dtype. A state of relative
    rounding error e moves a log-probability by about ``e |x| / std`` times the residual in standard deviations.
    Cost: one network call per step, and one more with its vector-Jacobian product in the backward pass.
    Memory: the activations of one call, and some float64 states per step.

    Errors: ``ValueError`` where a step has no density: eta = 0, and a last step to sigma = 0, which is the predicted
    x_0 (leave it out by ``steps``, and add the gradient that the loss has through it); for a solver whose step sees its
    noise before its last network call (Heun, RK4, SRA1, ...); for shapes that do not fit.
    Not for likelihoods of images: that is ``log_likelihood``; nor for paths whose states an ``after_step`` changed.
    Source: Black et al. (2024), DDPO, section 4.3, for policy gradients on such steps; Liu et al. (2025), Flow-GRPO.
    """
    equation = _equation(denoiser, frame, grid, cond, trajectory)
    _check(equation, trajectory, solver, adjoint)
    wanted = _wanted(steps, equation.steps)
    variance = _variances(equation, wanted)
    batch = trajectory.shape[1]
    called = called_nodes(solver, equation.clocks, wanted)
    size = _size(batch_size, batch, equation)
    spans = grouped(max(wanted), called, max(1, size // batch))
    path = trajectory[:-1].unbind(0)
    pinned = Pinned(equation, path, spans, called)
    pinning = Pinning(solver, equation.clocks, frozenset(wanted))
    width = min(size, batch)
    parts = [slice(start, start + width) for start in range(0, batch, width)]
    means = torch.cat([_means(_of(pinned, part, batch), pinning, adjoint) for part in parts], 1)
    weights = torch.tensor([equation.weights[n + 1] for n in wanted], dtype=torch.float64, device=means.device)
    order = [sorted(wanted).index(n) for n in wanted]
    scaled = weights.reshape(-1, *[1] * (means.ndim - 1)) * means[order]
    return Transitions(trajectory[[n + 1 for n in wanted]], scaled, variance)


@eagerly
def transition_log_prob(
    denoiser: Denoiser | Equation,
    trajectory: Tensor,
    *,
    frame: Frame | None = None,
    grid: Tensor | Sequence[float] | None = None,
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    steps: Steps = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return ``log p(x_{n+1} | x_n, ...)`` of each step of a trajectory: (steps, batch), float64, in nats.

        path = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise, trajectory=True).detach()
        log_prob = sa.transition_log_prob(denoiser, path, frame=frame, grid=grid, solver=solver)
        (-(advantage * log_prob).sum(0).mean()).backward()                    # REINFORCE, DDPO, GRPO

    The density of the state in the user's coordinates x, summed over the numbers of a sample. (Published code often
    takes the mean over these instead: divide by their number.) It is ``transitions(...).log_prob``: see there for the
    arguments, the dtypes, the cost and the errors.
    """
    return transitions(
        denoiser,
        trajectory,
        frame=frame,
        grid=grid,
        solver=solver,
        cond=cond,
        adjoint=adjoint,
        steps=steps,
        batch_size=batch_size,
    ).log_prob


@eagerly
def transition_kl(
    denoiser: Denoiser,
    reference: Denoiser,
    trajectory: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    steps: Steps = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the KL divergence of each step from the reference denoiser's: (steps, batch), float64, in nats.

    ``|mean - mean'|^2 / (2 variance)`` at the trajectory's states: what keeps a fine-tuned model near its origin.
    Freeze the reference (``requires_grad_(False)``), or its weights get gradients too. Summed over the steps and
    averaged over trajectories of ``denoiser`` it is the divergence of the two laws of paths. Arguments and errors:
    those of ``transitions``, which has the reference's other conditioning too: ``transitions(a, ...).kl(b)``.
    """
    own, other = _both(denoiser, reference, trajectory, frame, grid, solver, cond, adjoint, steps, batch_size)
    return own.kl(other)


@eagerly
def path_log_weight(
    denoiser: Denoiser,
    reference: Denoiser,
    trajectory: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    steps: Steps = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return ``log (dP / dP')`` of whole paths: (batch,), for P the denoiser's and P' the reference's law of paths.

    Girsanov's theorem for the discrete sampler, exact: the sum of the steps' log-ratios, both denoisers starting from
    x_T of one law. With trajectories of the reference, ``E[exp(log_weight) f(x_0)]`` is the mean of f under the
    denoiser. Its variance grows like the exponential of the divergence: watch the effective sample size. Arguments
    and errors: those of ``transitions``.
    """
    own, other = _both(denoiser, reference, trajectory, frame, grid, solver, cond, adjoint, steps, batch_size)
    return own.log_ratio(other).sum(0)


def _both(
    denoiser: Denoiser,
    reference: Denoiser,
    trajectory: Tensor,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    cond: Mapping[str, Any] | None,
    adjoint: Adjoint,
    steps: Steps,
    batch_size: int | None,
) -> tuple[Transitions, Transitions]:
    """The transitions of two denoisers."""
    check_types(("reference", reference, Denoiser, "Denoiser(network, schedule, prediction)"))
    own, other = (
        transitions(
            one,
            trajectory,
            frame=frame,
            grid=grid,
            solver=solver,
            cond=cond,
            adjoint=adjoint,
            steps=steps,
            batch_size=batch_size,
        )
        for one in (denoiser, reference)
    )
    return own, other


def _means(pinned: Pinned, pinning: Pinning, adjoint: Adjoint) -> Tensor:
    """``m_n`` of all wanted steps, rising: (steps, batch, ...)."""
    like = torch.zeros_like(pinned.path[0], dtype=torch.float64, requires_grad=False).detach()
    recursion = Recursion(pinned, pinning)
    return torch.cat(adjoint.solve(recursion, like, keep=True, observe=lambda n, carry: None))


def _of(pinned: Pinned, part: slice, batch: int) -> Pinned:
    """The equation of a few samples."""
    return pinned if part.stop - part.start >= batch else pinned.on(rows(pinned.tensors, part, batch))


def _equation(
    denoiser: Denoiser | Equation,
    frame: Frame | None,
    grid: Tensor | Sequence[float] | None,
    cond: Mapping[str, Any] | None,
    trajectory: Tensor,
) -> Equation:
    """The equation that the path was solved with; it is started at the path's own start."""
    check_types(("trajectory", trajectory, Tensor, "what sample(..., trajectory=True) returns"))
    if isinstance(denoiser, Equation):
        for name, value in (("frame", frame), ("grid", grid), ("cond", cond)):
            if value is not None:
                raise ValueError(f"{name}: the equation has its own; leave it out, or pass a denoiser")
        equation = denoiser
    else:
        for name, given, wanted in (
            ("frame", frame, "Frame(schedule, eta=1.0)"),
            ("grid", grid, "the grid that the trajectory was sampled on"),
        ):
            if given is None:
                raise TypeError(f"{name}: missing; pass {wanted}")
        equation = Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)  # type: ignore[arg-type]
    return equation.starting_at(trajectory[0]) if trajectory.ndim else equation


def _check(equation: Equation, trajectory: Tensor, solver: Solver, adjoint: Adjoint) -> None:
    check_state("trajectory", trajectory)
    if trajectory.ndim < 2 or len(trajectory) != equation.steps + 1:
        raise ValueError(
            f"trajectory: got shape {tuple(trajectory.shape)}, but the grid has {equation.steps} steps; pass "
            f"({equation.steps + 1}, batch, ...), x_T first, as sample(..., trajectory=True) returns it"
        )
    check_types(("solver", solver, Solver, "the solver that sampled, such as Euler()"))
    if not isinstance(adjoint, Checkpoint | Direct):
        raise TypeError(
            f"adjoint: got {named(adjoint)}; pass Checkpoint() or Direct(): given the trajectory no step depends on "
            "another one's result, so there is nothing to invert or to cut short (steps= chooses steps)"
        )


def _wanted(steps: Steps, total: int) -> list[int]:
    """The indices of the steps that are asked for, in the order asked for."""
    if steps is None:
        return list(range(total))
    found = steps.tolist() if isinstance(steps, Tensor) else list(steps) if isinstance(steps, Sequence) else steps
    if isinstance(found, range):
        found = list(found)
    if isinstance(found, list) and found and all(isinstance(chosen, bool) for chosen in found):
        if len(found) != total:
            raise ValueError(f"steps: got a mask of {len(found)} values, but the grid has {total} steps")
        found = [n for n, chosen in enumerate(found) if chosen]
    if not isinstance(found, list) or not all(is_integer(n, 0) and n < total for n in found):
        raise ValueError(f"steps: got {steps!r}; pass indices from 0 to {total - 1}, or a mask of {total} bools")
    if not found or len(set(found)) != len(found):
        raise ValueError(f"steps: got {steps!r}; pass at least one step, and each once")
    return found


def _variances(equation: Equation, wanted: Sequence[int]) -> Tensor:
    """``w^2 dnu`` of the wanted steps; a step without noise is refused."""
    nu, weights = equation.noise_clock, equation.weights
    if nu is None:
        raise ValueError(
            "frame: eta = 0, whose steps have no noise and so no density; pass a frame with eta > 0, or log_likelihood "
            "for the density of samples"
        )
    found = []
    for n in wanted:
        variance = 0.0 if equation.is_projected(n + 1) else weights[n + 1] ** 2 * (nu[n + 1] - nu[n])
        if not (0 < variance < math.inf):
            raise ValueError(
                f"grid: step {n} of {equation.steps} has no noise, as it goes to sigma = 0 or its noise clock stands "
                f"still, so it has no density; pass steps=range({n}) or any others without it (a loss on its result "
                "has a gradient through it, which no log-probability holds), or a grid that ends at sigma > 0"
            )
        found.append(variance)
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _size(batch_size: int | None, batch: int, equation: Equation) -> int:
    """The most samples in one call."""
    if batch_size is None:
        return batch
    if not is_integer(batch_size, 1):
        raise ValueError(f"batch_size: got {batch_size!r}; pass the most samples in one network call, or None")
    if not isinstance(equation, Diffusion) and batch_size != batch:
        raise ValueError("batch_size: an equation of your own is called step by step; pass None")
    return batch_size
