"""The sampler as a recursion: the reverse equation in a frame, on a grid, as one pure step after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .conditioning import at_step, check_schedules, scheduled
from .denoiser import Denoiser
from .frames import Frame
from .grids import validate_grid
from .noise import BoundNoise, Increment, Noise
from .solvers import Drift, Interval, ReversibleSolver, Solver, State

_SQRT_EPS = math.sqrt(torch.finfo(torch.float64).eps)

Hook = Callable[[int, float, Tensor], Tensor | None]
"""``hook(n, t, a)`` in the backward pass, for n = N .. 1: ``a = dL/dx_n`` of the state at time t; what it returns, if
anything, goes on in its place."""


class Carry(NamedTuple):
    """What goes from one step to the next: the frame's state y (x_T itself before step 0) and the solver's memory."""

    y: Tensor
    state: State


@dataclass(frozen=True)
class Discretization:
    """``carry_{n+1} = step(n, carry_n, increment_n)`` for ``n = 0 .. steps - 1``.

    Tables of times, clocks and weights are computed once, in float64, and read by the forward and the backward
    pass alike, so that both evaluate the network at bitwise the same times. Two ends are not plain solver steps:

    * where the frame's weight is infinite at the start (alpha(T) = 0 with eta > 0), ``y_0 = 0`` and the first
      drift evaluation sees x_T itself;
    * a last step to sigma = 0 is the predicted x_0, without noise, whatever the solver.
    """

    denoiser: Denoiser
    frame: Frame
    solver: Solver
    cond: Mapping[str, Any]
    noise: BoundNoise | None
    times: tuple[float, ...]
    clocks: tuple[float, ...]
    weights: tuple[float, ...]
    hook: Hook | None = None

    @classmethod
    def create(
        cls, denoiser: Denoiser, frame: Frame, solver: Solver, grid: Tensor | Sequence[float], cond: Mapping[str, Any]
    ) -> Discretization:
        """Tables for a grid, without noise yet; singular ends that no limit makes regular are refused."""
        times = validate_grid(grid, frame.schedule)
        clocks, weights = frame.clock(times), frame.weight(times)
        if frame.kind == "noise" and torch.isneginf(frame.schedule.log_alpha(times[0])):
            raise ValueError(
                f"grid: starts at t={times[0].item()}, where alpha = 0 and the noise kind is singular; "
                "pass Frame(..., kind='data'), which is regular there, or a grid that starts later"
            )
        interior = clocks[:-1] if torch.isneginf(frame.schedule.log_sigma(times[-1])) else clocks
        if not torch.isfinite(interior).all() or (interior.diff() == 0).any():
            raise ValueError(
                f"grid: {frame!r} has clock values from {clocks[0].item()} to {clocks[-1].item()} on it, which float64 "
                "cannot tell apart or hold; pass a grid with larger steps or less extreme ends, or a smaller eta"
            )
        # The rounding of s moves x by w s eps, which the flow kind's weight alone makes large (theory/frames.md).
        size = frame.schedule.log_alpha(times).exp() + frame.schedule.log_sigma(times).exp()
        if (weights.isfinite() & (weights * clocks.abs() > size / _SQRT_EPS)).any():
            raise ValueError(
                f"grid: {frame!r} loses more than half of float64's digits at its noisy end; "
                "pass Frame(..., kind='data'), which loses none, a smaller eta, or a grid that starts later"
            )
        check_schedules(cond, len(times) - 1, "cond")
        check_schedules(denoiser.guidance and denoiser.guidance.tensors, len(times) - 1, "guidance")
        times_, clocks_, weights_ = (tuple(values.tolist()) for values in (times, clocks, weights))
        return cls(denoiser, frame, solver, cond, None, times_, clocks_, weights_)

    def driven_by(self, noise: Noise | None, like: Tensor) -> Discretization:
        """The same recursion with the injected noise bound to its clock and to x_T's shape, dtype and device."""
        if noise is None:
            if self.frame.eta > 0:
                raise ValueError(
                    f"noise: got None, but eta = {self.frame.eta} > 0 injects noise; pass noise=BrownianPath(seed=0), "
                    "or Frame(..., eta=0.0) for the probability-flow ODE"
                )
            return self
        if not isinstance(noise, Noise):
            raise TypeError(f"noise: got {type(noise).__name__}; pass BrownianPath(seed=...) or FixedNoise(increments)")
        clock = self.frame.noise_clock(torch.tensor(self.times, dtype=torch.float64, device="cpu"))
        levy = self.frame.eta > 0 and self.solver.claims.levy != "none"
        return replace(self, noise=noise.bind(clock, like, levy))

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def projects(self) -> bool:
        """Whether the last step goes to sigma = 0."""
        return math.isinf(float(self.frame.schedule.log_sigma(self.times[-1])))

    def start(self, x_T: Tensor) -> Carry:
        return Carry(x_T, self.solver.initial_state)

    def increment(self, n: int) -> Increment | None:
        """The noise of step n, None for an ODE."""
        return None if self.noise is None else self.noise.increment(n)

    def state(self, n: int, y: Tensor) -> Tensor:
        """``x_n`` from ``carry_n.y``, a tensor of its own."""
        if n == 0 or (n == self.steps and self.projects):
            return y.clone()
        return self.weights[n] * y

    def step(self, n: int, carry: Carry, increment: Increment | None) -> Carry:
        """One pure step; errors of the network are annotated with the step they happened at."""
        y = carry.y if n > 0 else carry.y / self.weights[0]
        try:
            if n == self.steps - 1 and self.projects:
                x = self.state(n, carry.y)
                out = Carry(self._predict(n, x, self.times[n], "sample").to(x.dtype), carry.state)
            else:
                interval = self.interval(n, increment, y)
                out = Carry(*self.solver.step(self.drift(n, carry.y), interval, y, carry.state))
        except Exception as error:
            error.add_note(f"(step {n} of {self.steps}, from t={self.times[n]} to t={self.times[n + 1]})")
            raise
        if self.hook is not None and out.y.requires_grad:
            out.y.register_hook(partial(self.hooked, n + 1))
        return out

    def invert(self, n: int, carry: Carry, increment: Increment | None) -> Carry:
        """``carry_n`` from ``carry_{n+1}``, for a ``ReversibleSolver`` and steps that do not go to sigma = 0."""
        assert isinstance(self.solver, ReversibleSolver)
        interval = self.interval(n, increment, carry.y)
        y, state = self.solver.invert(self.drift(n, carry.y), interval, carry.y, carry.state)
        return Carry(y if n > 0 else self.weights[0] * y, state)

    def interval(self, n: int, increment: Increment | None, like: Tensor) -> Interval:
        """Step n as a solver sees it, its noise in the dtype and on the device of ``like``."""
        dB: Tensor | float = 0.0 if increment is None else increment.dB.to(like)
        H: Tensor | float = 0.0 if increment is None or increment.H is None else increment.H.to(like)
        return Interval(self.clocks[n], self.clocks[n + 1], dB, H)

    def hooked(self, n: int, cotangent: Tensor) -> Tensor:
        """``dL/dy_n`` after the user's hook, which sees ``dL/dx_n``."""
        if self.hook is None:
            return cotangent
        weight = 1.0 if n == self.steps and self.projects else self.weights[n]
        changed = self.hook(n, self.times[n], cotangent / weight)
        if changed is None:
            return cotangent
        if not isinstance(changed, Tensor) or changed.shape != cotangent.shape:
            got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(
                f"hook: returned {got} for an adjoint of shape {tuple(cotangent.shape)}; "
                "return a tensor of that shape, or None to leave the adjoint as it is"
            )
        return changed.to(cotangent.dtype) * weight

    def drift(self, n: int, start: Tensor) -> Drift:
        """``F(s, y)`` on step n; at the step's own ends, times and weights come from the tables.

        ``start`` is what the network sees at a clock where the frame's weight is infinite: x_T.
        """
        ends = {self.clocks[m]: (self.times[m], self.weights[m]) for m in (n, n + 1)}

        def drift(s: float, y: Tensor) -> Tensor:
            if s in ends:
                t, weight = ends[s]
            else:
                time = self.frame.time(s)
                t, weight = float(time), float(self.frame.weight(time))
            x = start if math.isinf(weight) else weight * y
            return self._predict(n, x, t, self.frame.prediction).to(y.dtype)

        return drift

    @cached_property
    def _is_scheduled(self) -> bool:
        guidance = self.denoiser.guidance
        return any(scheduled([self.cond, None if guidance is None else guidance.tensors]))

    def _conditioned(self, n: int) -> tuple[Denoiser, Mapping[str, Any]]:
        """The denoiser and the conditioning of step n."""
        denoiser = self.denoiser
        if not self._is_scheduled:
            return denoiser, self.cond
        if denoiser.guidance is not None:
            denoiser = denoiser.guided_by(replace(denoiser.guidance, **at_step(denoiser.guidance.tensors, n)))
        return denoiser, at_step(self.cond, n)

    def _predict(self, n: int, x: Tensor, t: float, prediction: str) -> Tensor:
        denoiser, cond = self._conditioned(n)
        out: Tensor = denoiser(x, t, cond, prediction=prediction)
        if not torch.isfinite(out).all():
            where = "the state" if not torch.isfinite(x).all() else "the network's prediction"
            raise ValueError(f"network: {where} is not finite (NaN or inf) at step {n} of {self.steps}, t={t}")
        return out
