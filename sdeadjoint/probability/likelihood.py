"""Log-likelihoods of samples by the probability-flow ODE, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint, Direct
from ..arguments import check_state, check_types, is_number, named
from ..compiling import eagerly
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from ..solve import Call
from ..solvers import Solver
from .augmented import Flow, augmented
from .divergence import Divergence, ExactDivergence, generators

Prior = Callable[[Tensor], Tensor]
"""``prior(x_T)``: the log-density of the latent, (batch,), from x_T in float64."""


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """What ``log_likelihood`` returns.

    Args:
        log_prob: (batch,), float64, in nats.
        x_T: the latent, of the shape and dtype of x_0.
        standard_error: (batch,), of the divergence's estimate: zeros where it is exact, None for a single probe. Errors
            of the solver come on top.
    """

    log_prob: Tensor
    x_T: Tensor
    standard_error: Tensor | None

    def bits_per_dimension(self, width: float) -> Tensor:
        """Return ``-(log_prob / D + log(width)) / log 2``, (batch,): bits per number of data in bins of a width.

        For dequantised data, ``dequantise(x, width)``, its mean is an upper bound of the bits of the discrete data
        (Theis et al., 2016). ``width`` is that of a bin in the unit of x_0: 2/256 for bytes scaled to [-1, 1).
        """
        if not is_number(width) or not width > 0:
            raise ValueError(f"width: got {width!r}; pass the width of a bin in the unit of x_0, such as 2 / 256")
        return -(self.log_prob / self.x_T[0].numel() + math.log(width)) / math.log(2)


def dequantise(x: Tensor, width: float, *, seed: int | Sequence[int] = 0) -> Tensor:
    """Return ``x + width (u - 1/2)`` with u uniform on [0, 1): data in bins spread over their bins.

    A discrete value has no density; a model's density at it can be made as large as one likes. ``x`` holds the bins'
    centres. ``seed``: one integer, or one for each sample; drawn in float64 on the CPU by a generator of its own.
    Source: Theis, van den Oord and Bethge (2016), section 3.1.
    """
    check_state("x", x)
    if not is_number(width) or not width > 0:
        raise ValueError(f"width: got {width!r}; pass the width of a bin in the unit of x, such as 2 / 256")
    draws = [torch.rand(x.shape[1:], generator=g, dtype=torch.float64, device="cpu") for g in generators(seed, len(x))]
    return x + (width * (torch.stack(draws) - 0.5)).to(x)


@eagerly
def log_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    grid: Tensor | Sequence[float],
    solver: Solver,
    frame: Frame | None = None,
    cond: Mapping[str, Any] | None = None,
    divergence: Divergence = ExactDivergence(),  # noqa: B008 (frozen)
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    prior: Prior | None = None,
    progress: bool = False,
) -> LogLikelihood:
    """Return the model's log-density at ``x_0``, by the probability-flow ODE from ``grid[-1]`` up to ``grid[0]``.

        found = sa.log_likelihood(denoiser, x_0, grid=grid, solver=sa.Heun(), divergence=sa.Hutchinson(probes=4))
        found.log_prob, found.x_T, found.standard_error, found.bits_per_dimension(2 / 256)

    In a frame with eta = 0 the flow is ``dy/ds = F(s, y)`` with ``x = w y``, and along it ``d log p(y) / ds = -tr
    dF/dy``. The frame has integrated the linear part, so the volume that it makes is exact, and

        log p(x_0) = log p_T(x_T) + D log(w_T / w_0) + int tr(dF/dy) ds          from s(grid[-1]) to s(grid[0])

    State and integral are solved together as one equation, ``dy = F ds, dl = tr dF/dy ds``, by any solver and any
    adjoint: gradients reach x_0, cond, guidance and weights, and with ``Checkpoint()`` one step's graph is alive at a
    time. The solver's order is that of the log-density too (``theory/likelihood.md``, L1).

    Args:
        denoiser, cond: as for ``sample``.
        x_0: the state at ``grid[-1]``, (batch, ...), float64, float32 or bfloat16: the network's dtype. The ODE itself
            is solved in float64.
        grid: N + 1 falling times, as for ``sample``. The density is that of the model at ``grid[-1]``: of data with
            noise of size sigma there.
        solver: of the ODE; a high order pays, as nothing is injected: Heun, RK4, Dopri5.
        frame: with eta = 0; None is ``Frame(schedule, kind="flow")``, which is regular at both ends of a schedule.
        divergence: ``ExactDivergence()`` or ``Hutchinson(probes)``.
        adjoint: as for ``sample``.
        prior: ``prior(x_T)``, the log-density of the latent, (batch,), differentiable. None is N(0, sigma^2) with sigma
            at ``grid[0]``: what the sampler starts from.
        progress: show a progress bar (needs tqdm).

    Returns ``log_prob`` (batch,) in float64 and nats, ``x_T``, and the ``standard_error`` of the probes.
    Cost: one network call per stage with one vector-Jacobian product (``Hutchinson``) or D of them (exact); gradients
    two to three times that. Memory with gradients: the graph of one step, which for the exact divergence holds D
    products.
    Needs second derivatives of the network for gradients. Attention kernels that have none raise PyTorch's error: run
    within ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, there and in the backward pass.
    Errors: ``ValueError`` for eta > 0, for a frame that is singular on the grid, for a prior that does not return
    one number per sample, and those of ``sample``;
    ``RuntimeError`` for a network that hides its graph, and in ``torch.inference_mode`` (use ``no_grad``).
    Not for judging images by: likelihoods of pixels are mostly about noise. They are for reweighting, for science, and
    for comparing models of one kind on one set of data.
    Source: Chen et al. (2018), section 4; Grathwohl et al. (2019); Song et al. (2021b), section 4.3.
    """
    equation = _equation(denoiser, frame, grid, cond)
    check_state("x_0", x_0)
    check_types(("divergence", divergence, Divergence, "ExactDivergence() or Hutchinson(probes=4)"))
    if torch.is_inference_mode_enabled():
        raise RuntimeError("x_0: a divergence needs autograd, which inference_mode switches off; use torch.no_grad()")
    probes = divergence.probes_for(x_0)
    flow = Flow(equation, divergence, x_0.dtype)
    y = x_0.double() / equation.weights[-1]
    if torch.is_grad_enabled() and not y.requires_grad:
        y.requires_grad_()  # the first step's divergence is taken with respect to a state that has a graph
    state = {"y": y, "volume": torch.zeros(len(y), divergence.columns, dtype=torch.float64, device=y.device)}
    call = Call(solver, None, adjoint, False, None, None, progress)
    end = call.run(augmented(equation, state, flow, probes), state, "x_0", "solving")
    x_T = equation.weights[0] * end["y"]
    base = _base(prior, x_T, equation)
    weights = x_0[0].numel() * (math.log(equation.weights[0]) - math.log(equation.weights[-1]))
    return LogLikelihood(base + weights + end["volume"].mean(1), x_T.to(x_0.dtype), divergence.error(end["volume"]))


class Pushforward(NamedTuple):
    """A sample and its log-density, (batch,), under the discrete sampler."""

    x_0: Tensor
    log_prob: Tensor


@eagerly
def pushforward_log_prob(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
) -> Pushforward:
    """Return the sample from ``x_T`` and its exact log-density under the sampler's own, discrete steps.

    ``log p(x_0) = log p_T(x_T) - log |det dx_0/dx_T|``, with the Jacobian of the whole sampler by plain autograd: no
    discretisation of a divergence, so it is what ``log_likelihood`` tends to with more steps, for the same solver. It
    may have any solver, and ends at sigma > 0 or 0. Differentiable, once more.

    Args: as for ``sample`` and ``log_likelihood``. Pass ``x_T`` in float64: the determinant is as exact as its dtype.
    Cost: D vector-Jacobian products of the whole sampler, memory of all its activations: for small dimensions D.
    Errors: ``ValueError`` for eta > 0, where x_0 is not a function of x_T, and for a prior of another shape.
    """
    equation = _equation(denoiser, frame, grid, cond, ends=False)
    check_state("x_T", x_T)
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        start = x_T if x_T.requires_grad else x_T.detach().requires_grad_()
        x_0 = Call(solver, None, Direct(), False, None, None, False).run(equation, start, "x_T", "sampling")
        flat = x_0.reshape(len(x_0), -1)
        rows = [
            torch.autograd.grad(flat[:, i].sum(), start, create_graph=wanted, retain_graph=True)[0]
            for i in range(flat.shape[1])
        ]
        J = torch.stack([row.reshape(len(x_0), -1) for row in rows], 1).double()
        log_prob = _base(prior, start.double(), equation) - torch.linalg.slogdet(J)[1]
    return Pushforward(x_0, log_prob) if wanted else Pushforward(x_0.detach(), log_prob.detach())


def _equation(
    denoiser: Denoiser,
    frame: Frame | None,
    grid: Tensor | Sequence[float],
    cond: Mapping[str, Any] | None,
    *,
    ends: bool = True,
) -> Diffusion:
    """The probability-flow ODE on the grid; ``ends``: it is to be solved from the grid's last time."""
    check_types(("denoiser", denoiser, Denoiser, "Denoiser(network, schedule, prediction)"))
    frame = Frame(denoiser.schedule, kind="flow") if frame is None else frame
    equation = Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)
    if frame.eta > 0:
        raise ValueError(
            f"frame: eta = {frame.eta} > 0, but densities are those of the probability-flow ODE; pass "
            f"Frame(schedule, kind={frame.kind!r}), whose marginals are the same"
        )
    if ends and not (math.isfinite(equation.clocks[-1]) and equation.weights[-1] > 0):
        raise ValueError(
            f"grid: ends at sigma = 0, where the {frame.kind} kind is singular; pass a grid that ends at sigma > 0, or "
            "frame=Frame(schedule, kind='flow')"
        )
    return equation


def _base(prior: Prior | None, x_T: Tensor, equation: Diffusion) -> Tensor:
    """The log-density of the latent, one number per sample."""
    if prior is None:
        return _normal(x_T, float(equation.frame.schedule.sigma(equation.times[0])))
    base = prior(x_T)
    if not isinstance(base, Tensor) or base.shape != x_T.shape[:1]:
        got = f"shape {tuple(base.shape)}" if isinstance(base, Tensor) else named(base)
        raise ValueError(
            f"prior: returned {got}; return the log-density of each sample, a tensor of shape {tuple(x_T.shape[:1])}, "
            "summed over the sample's numbers"
        )
    return base


def _normal(x: Tensor, sigma: float) -> Tensor:
    """``log N(x; 0, sigma^2)`` of each sample."""
    squares = (x**2).reshape(len(x), -1).sum(1) / sigma**2
    return -0.5 * (squares + x[0].numel() * math.log(2 * math.pi * sigma**2))
