"""The reverse diffusion as an equation: in a frame, on a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_types, finite_flag
from ..conditioning import at_step, check_schedules, scheduled
from ..equation import Equation
from ..ledger import require
from ..noise import BoundNoise, Noise
from ..solvers import Drift
from .denoiser import Denoiser
from .frames import Frame
from .grids import validate_grid
from .predictions import convert
from .schedules.base import check_schedule

_SQRT_EPS = math.sqrt(torch.finfo(torch.float64).eps)


@dataclass(frozen=True)
class Diffusion(Equation):
    """``dy = F(s, y) ds + dB_nu`` with ``y = x / w``, and ``F`` the denoiser's prediction: see ``Frame``.

    Tables of times, clocks and weights are computed once, in float64, and read by the forward and the backward
    pass alike, so that both evaluate the network at bitwise the same times. Two ends are not plain solver steps:

    * where the frame's weight is infinite at the start (alpha(T) = 0 with eta > 0), ``y_0 = 0``, and at this time
      the network sees x_T itself;
    * a last step to sigma = 0 is the predicted x_0, without noise, whatever the solver.

    Args:
        denoiser: the network with its schedule and prediction kind.
        frame: the member of the family and the coordinates.
        cond: conditioning, by the names of the network's arguments.
        times, clocks, weights: of the nodes, in the frame.
        noise_clock: of the nodes; None where eta = 0.
        start: x_T; None before ``starting_at``.
        slots: which value of a ``Scheduled`` each step sees; None is its own.
        levels: alpha and sigma at the times that were met so far, the same for this equation on other tensors.
        places: time and weight at the clocks between the nodes that were met so far, in the same way.
    """

    denoiser: Denoiser
    frame: Frame
    cond: Mapping[str, Any]
    times: tuple[float, ...]
    clocks: tuple[float, ...]
    weights: tuple[float, ...]
    noise_clock: tuple[float, ...] | None
    start: Tensor | None = None
    slots: tuple[int, ...] | None = None
    levels: dict[float, tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)
    places: dict[float, tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def create(
        cls, denoiser: Denoiser, frame: Frame, grid: Tensor | Sequence[float], cond: Mapping[str, Any]
    ) -> Diffusion:
        """Tables for a grid; arguments that make no diffusion, and ends that no limit makes regular, are refused."""
        check_diffusion(denoiser, frame, cond)
        times = validate_grid(grid, frame.schedule)
        clocks, weights = frame.clock(times), frame.weight(times)
        if weights[0] == 0:
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
        alpha, sigma = frame.schedule.alpha(times), frame.schedule.sigma(times)
        # The rounding of s moves x by w s eps, which the flow kind's weight alone makes large (theory/frames.md).
        if (weights.isfinite() & (weights * clocks.abs() > (alpha + sigma) / _SQRT_EPS)).any():
            raise ValueError(
                f"grid: {frame!r} loses more than half of float64's digits at its noisy end; "
                "pass Frame(..., kind='data'), which loses none, a smaller eta, or a grid that starts later"
            )
        check_schedules(cond, len(times) - 1, "cond")
        if denoiser.guidance is not None:
            check_schedules(denoiser.guidance.tensors, len(times) - 1, "guidance")
            denoiser.guidance.check_times(times[:-1].tolist())
        noise_clock = _floats(frame.noise_clock(times)) if frame.eta > 0 else None
        found = cls(denoiser, frame, cond, _floats(times), _floats(clocks), _floats(weights), noise_clock)
        found.levels.update(zip(found.times, zip(_floats(alpha), _floats(sigma), strict=True), strict=True))
        return found

    def starting_at(self, x: Tensor) -> Diffusion:
        return replace(self, start=x)

    # The network and what it is given.

    @property
    def module(self) -> Denoiser:
        return self.denoiser

    @property
    def tensors(self) -> dict[str, Any]:
        guidance = self.denoiser.guidance
        return {
            "start": self.start,
            "cond": self.cond,
            "guidance": None if guidance is None else guidance.tensors,
        }

    def on(self, tensors: Mapping[str, Any]) -> Diffusion:
        denoiser, guidance = self.denoiser, self.denoiser.guidance
        if guidance is not None:
            denoiser = denoiser.guided_by(replace(guidance, **tensors["guidance"]))
        return replace(self, denoiser=denoiser, cond=tensors["cond"], start=tensors["start"])

    def drift(self, n: int) -> Drift:
        def drift(s: float, y: Tensor) -> Tensor:
            t, weight = self.at(n, s)
            if math.isinf(weight):
                assert self.start is not None, "call starting_at(x_T) first"
                x = self.start
            else:
                x = weight * y
            return self.predict(n, x, t, self.frame.prediction).to(y.dtype)

        return drift

    @property
    def projects(self) -> bool:
        """Whether the last step goes to sigma = 0."""
        return self._sigma_ends_at_zero

    @cached_property
    def _sigma_ends_at_zero(self) -> bool:
        return math.isinf(float(self.frame.schedule.log_sigma(self.times[-1])))

    def project(self, y: Tensor) -> Tensor:
        """The predicted x_0 at the last time but one: the limit of a step to sigma = 0 in the data kind."""
        n = self.steps - 1
        return self.predict(n, self.scaled(n, y), self.times[n], "sample").to(y.dtype)

    def scaled(self, n: int, y: Tensor) -> Tensor:
        """See ``Equation``; at node 0 it is x_T itself, not x_T rounded twice."""
        return self.start.clone() if n == 0 and self.start is not None else super().scaled(n, y)

    def predict(self, n: int, x: Tensor, t: float, prediction: str) -> Tensor:
        """Return the network's prediction of a kind at ``(x, t)``, with the conditioning of step n."""
        denoiser, cond = self.conditioned(n)
        out: Tensor = denoiser(x, t, cond, prediction=prediction, level=self._level(t))
        was_finite = finite_flag(x)

        def refusal() -> ValueError:
            where = "the network's prediction" if was_finite else "the state"
            return ValueError(f"network: {where} is not finite (NaN or inf) at step {n} of {self.steps}, t={t}")

        require(finite_flag(out), refusal)
        return out

    def _level(self, t: float) -> tuple[float, float]:
        """alpha and sigma at a time, which the backward pass asks for again."""
        if t not in self.levels:
            schedule = self.denoiser.schedule
            self.levels[t] = float(schedule.alpha(t)), float(schedule.sigma(t))
        return self.levels[t]

    def conditioned(self, n: int) -> tuple[Denoiser, Mapping[str, Any]]:
        """The denoiser and the conditioning of step n."""
        denoiser, guidance = self.denoiser, self.denoiser.guidance
        if not self._is_scheduled:
            return denoiser, self.cond
        slot = n if self.slots is None else self.slots[n]
        if guidance is not None:
            denoiser = denoiser.guided_by(replace(guidance, **at_step(guidance.tensors, slot)))
        return denoiser, at_step(self.cond, slot)

    @cached_property
    def _is_scheduled(self) -> bool:
        return any(scheduled(self.tensors))

    # Noise.

    def bind(self, noise: Noise | None, like: Tensor, *, levy: bool) -> BoundNoise | None:
        if noise is None and self.frame.eta > 0:
            raise ValueError(
                f"noise: got None, but eta = {self.frame.eta} > 0 injects noise; pass noise=BrownianPath(seed=0), "
                "or Frame(..., eta=0.0) for the probability-flow ODE"
            )
        return super().bind(noise, like, levy=levy)

    @property
    def kind(self) -> str:
        return self.frame.kind

    @property
    def driven(self) -> str:
        return f"eta = {self.frame.eta} > 0" if self.frame.eta > 0 else ""

    @property
    def tamer(self) -> str:
        return "" if self.frame.kind == "flow" else f"Frame(..., eta={self.frame.eta}, kind='flow'), "

    # Other nodes, and the way back.

    def at(self, n: int, s: float) -> tuple[float, float]:
        for end in (n, n + 1):
            if s == self.clocks[end]:
                return self.times[end], self.weights[end]
        if s not in self.places:
            time = self.frame.time(s)
            self.places[s] = float(time), float(self.frame.weight(time))
        return self.places[s]

    def abscissa(self, times: Sequence[float]) -> list[float]:
        """lambda, or -t where a lambda of the grid is infinite."""
        inner = self.times[: self.steps + (not self.projects)]
        if any(math.isinf(value) for value in self._lam(inner)):
            return [-t for t in times]
        return self._lam(times)

    def recast(self, kind: str | None, times: Sequence[float], slots: Sequence[int]) -> Diffusion:
        frame = self.frame if kind is None else replace(self.frame, kind=kind)
        table = validate_grid(times, frame.schedule)
        clocks, weights = frame.clock(table), frame.weight(table)
        regular = torch.isfinite(clocks).all() and torch.isfinite(weights).all() and (weights > 0).all()
        if not regular or (clocks.diff() == 0).any():
            raise ValueError(
                f"kind: {frame!r} has clock values from {clocks[0].item()} to {clocks[-1].item()} on this grid, "
                "which float64 cannot tell apart or hold; pass another kind (None is the sampler's) or a "
                "coarser grid"
            )
        return replace(
            self,
            frame=frame,
            times=tuple(times),
            clocks=_floats(clocks),
            weights=_floats(weights),
            noise_clock=_floats(frame.noise_clock(table)) if frame.eta > 0 else None,
            slots=tuple(slots),
            places={},
        )

    def noising(self, n: int, x: Tensor, z: Tensor) -> Tensor:
        """Continue the plain forward process, ``x_n = (alpha_n/alpha_{n+1}) x_{n+1} + std z``; of any eta."""
        (alpha0, sigma0), (alpha1, sigma1) = (
            (float(self.frame.schedule.alpha(t)), float(self.frame.schedule.sigma(t))) for t in self.times[n : n + 2]
        )
        ratio = alpha0 / alpha1
        return ratio * x + math.sqrt(sigma0**2 - (ratio * sigma1) ** 2) * z

    def reversal(self, n: int, x: Tensor, z: Tensor) -> Tensor:
        """``x_n`` from ``x_{n+1}`` and a standard normal: the forward process of this member of the family.

            x_n = alpha_n x0 + sigma_n (e^(-eta h) eps + sqrt(1 - e^(-2 eta h)) z),    h = lambda_{n+1} - lambda_n

        With the prediction x0 constant over the step it is exact, and it is Markov in x: no step knows the image. For
        eta = 1 the prediction drops out, and it is the plain forward process. See ``theory/encoding.md``.
        """
        frame, times = self.frame, self.times[n : n + 2]
        table = torch.tensor(times, dtype=torch.float64, device="cpu")
        (a0, a1), (s0, s1) = frame.schedule.alpha(table).tolist(), frame.schedule.sigma(table).tolist()
        lam0, lam1 = self._lam(times)
        kept, fresh = math.exp(-frame.eta * (lam1 - lam0)), math.sqrt(-math.expm1(-2 * frame.eta * (lam1 - lam0)))
        if frame.eta == 1:
            return (a0 / a1) * x + (s0 * fresh) * z
        F = self.drift(n)(self.clocks[n + 1], x / self.weights[n + 1])
        x0 = convert(F, x, a1, s1, frame.prediction, "sample").to(x.dtype)
        return a0 * x0 + s0 * (kept / s1 * (x - a1 * x0) + fresh * z)

    def _lam(self, times: Sequence[float]) -> list[float]:
        return _floats_list(self.frame.schedule.lam(torch.tensor(times, dtype=torch.float64, device="cpu")))


def check_diffusion(denoiser: Denoiser, frame: Frame, cond: Mapping[str, Any]) -> None:
    """Refuse what does not make a reverse diffusion."""
    check_types(
        ("denoiser", denoiser, Denoiser, "Denoiser(network, schedule, prediction)"),
        ("frame", frame, Frame, "Frame(schedule, eta, kind), or the first of a pair such as samplers.ddim(schedule)"),
        ("cond", cond, Mapping, "a mapping from the network's keyword names to values"),
    )
    if strange := [name for name in cond if not isinstance(name, str)]:
        raise TypeError(f"cond: got the key {strange[0]!r}; pass the names of the network's keyword arguments")
    check_schedule(denoiser.schedule)
    if denoiser.schedule is frame.schedule:
        return
    check_schedule(frame.schedule)
    if denoiser.schedule != frame.schedule:
        raise ValueError(
            f"frame: its schedule is {frame.schedule!r}, but the denoiser's is {denoiser.schedule!r}; "
            "pass one schedule to both"
        )


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _floats_list(values: Tensor) -> list[float]:
    found: list[float] = values.tolist()
    return found
