"""Clocks whose steps are chosen: an error estimate, a controller, and the steps it accepts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from .solvers import Drift, Interval, RungeKutta

NORMS = ("batch", "sample")

Increments = Callable[[float, float], tuple[Tensor, Tensor]]
"""``noise(s_a, s_b) -> (dB, H)``: what one fixed Brownian path does between two clock values."""

_SLOWEST, _FASTEST = 0.2, 5.0  # what a step may be multiplied by
_RESOLVED = 16 * torch.finfo(torch.float64).eps  # a step's least size in units of its clock values


@dataclass(frozen=True)
class Controller:
    """A PI controller: the size of the next step from the estimated errors of the last two.

    With ``size`` the estimated error of a step in units of what is allowed, ``before`` that of the
    accepted step before it and the error of a step of order ``h^k``, the next step is h times

        safety size^(-0.7/k) before^(0.4/k)        after an accepted step (size <= 1)
        safety size^(-1/k)                         after a rejected one

    but no less than a fifth and no more than five times h (before counts as 1e-4 at least, so that
    steps without error grow). On steps that change little the size
    settles where that is 1, at ``safety^(k/0.3)``.

    Args:
        rtol, atol: allowed is ``atol + rtol max(|y0|, |y1|)`` for each number of the state.
        safety: 0 < safety < 1, what of the step that the estimate allows is taken.
        smallest, largest: bounds of a step's length on the clock.
        norm: ``"batch"`` takes the root mean square over all numbers of the state; ``"sample"``
            that of each sample, of which the largest decides, so that no sample of a batch
            is less accurate than it would be alone.

    Errors: ``TypeError`` or ``ValueError`` that names the argument.
    Source: Gustafsson (1991); Soderlind (2003), PI.3.4; Hairer and Wanner (1996), section IV.2.
    """

    rtol: float
    atol: float
    safety: float = 0.9
    smallest: float = 0.0
    largest: float = math.inf
    norm: str = "batch"

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "safety", "smallest", "largest"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        for name in ("rtol", "atol"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}; pass a finite number >= 0")
        if self.rtol == self.atol == 0:
            raise ValueError("rtol, atol: got 0 for both; pass a positive number for one of them")
        if not 0 < self.safety < 1:
            raise ValueError(f"safety: got {self.safety}; pass a number between 0 and 1, like 0.9")
        if not 0 <= self.smallest < math.inf:
            raise ValueError(f"smallest: got {self.smallest}; pass the length of a step, 0 for any")
        if not self.largest > self.smallest:
            raise ValueError(
                f"largest: got {self.largest} for smallest={self.smallest}; pass a larger one"
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm: got {self.norm!r}; pass one of {NORMS}")

    def size(self, error: Tensor, y0: Tensor, y1: Tensor, unit: float = 1.0) -> float:
        """An error in units of what is allowed, with atol in units of ``unit``; not finite where the error is not."""
        wide = torch.promote_types(error.dtype, torch.float32)
        allowed = self.atol * unit + self.rtol * torch.maximum(y0.abs(), y1.abs()).to(wide)
        ratio = torch.where(error == 0, torch.zeros_like(allowed), error.to(wide) / allowed)
        samples = ratio.reshape(1 if self.norm == "batch" else len(ratio), -1)
        return float(samples.square().mean(1).sqrt().max())

    def accepts(self, size: float) -> bool:
        """Whether a step of this error is kept."""
        return size <= 1.0

    def factor(self, size: float, before: float, k: float) -> float:
        """What to multiply a step of this error by; a fifth where the error is not finite."""
        if not math.isfinite(size):
            return _SLOWEST
        size, before = max(size, 1e-10), max(before, 1e-4)
        if self.accepts(size):
            factor = self.safety * size ** (-0.7 / k) * before ** (0.4 / k)
        else:
            factor = self.safety * size ** (-1 / k)
        return min(max(factor, _SLOWEST), _FASTEST)


def choose_clock(
    drift: Drift,
    y0: Tensor,
    s0: float,
    s1: float,
    *,
    solver: RungeKutta,
    rtol: float,
    atol: float,
    first_step: float | None = None,
    smallest: float = 0.0,
    largest: float = math.inf,
    norm: str = "batch",
    noise: Increments | None = None,
    unit: Callable[[float], float] | None = None,
    max_steps: int = 10_000,
) -> Tensor:
    """Choose the clock of ``dy = F(s, y) ds + dB`` from ``y(s0) = y0``, rising or falling to s1.

    Steps are tried, estimated by the solver's embedded row, and accepted where a ``Controller``
    finds the estimate small enough; the clock is what it accepted. Nothing is differentiated: a
    solve on the clock that comes back, by any solver and adjoint, has the exact gradient of that
    solve.

    Args:
        drift: ``F(s, y)``, s a float.
        y0: a tensor of any shape, float64, float32 or bfloat16; samples along its first axis.
        s0, s1: the ends of the clock.
        solver: a method with an embedded row, ``Dopri5()`` or ``BogackiShampine()``.
        rtol, atol, smallest, largest, norm: those of ``Controller``. ``smallest`` is no floor:
            where a step of this length is not accurate enough the call ends with an error.
        first_step: the length that is tried first; without it, one call of the drift at the start
            and one beside it suggest a length.
        noise: on an SDE, ``noise(s_a, s_b)``, the increment and the space-time Levy area of one
            fixed path from s_a to s_b, for any two clock values. It is asked again for parts of a
            step that was rejected, so they must be parts of the same path: a refinable one.
        unit: of atol, as a function of s: where y is another quantity over a weight, one over
            the weight. 1 unless given.
        max_steps: how many steps may be tried, rejected ones included.

    Returns the accepted clock: float64 on the CPU, (steps + 1,), s0 first and s1 last, exactly. A
    solve on it makes the accepted steps, bit by bit, if it has the same solver and path.

    Cost: ``solver.claims.evaluations`` calls of the drift per step that is tried, two or three more
    in all, and one more per step that is tried with noise; memory of a few states.

    With noise the error of a step is ``-ds F_y H`` at leading order, ``O(h^(3/2))``, which no
    embedded row sees: its size is added to the estimate, by one difference of drifts. Orders are
    proved for clocks that do not depend on the path. On a clock that the path chose, errors of
    mean zero need not cancel, and no order above 1/2 is certain: measure the error.

    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit; ``ValueError`` for a
    drift that is not finite or has another shape or dtype than y, for a step that would have to be
    shorter than ``smallest`` or than float64 can tell, and for more than ``max_steps`` steps.

    Not for stiff problems: the stability of an explicit method, not its accuracy, decides its steps
    there. A feature between two stages, that none of them sees, is stepped over: pass ``largest``.
    Source: Hairer, Norsett and Wanner (1993), section II.4; Gaines and Lyons (1997) for
    steps that depend on the path.
    """
    controller = Controller(rtol, atol, smallest=smallest, largest=largest, norm=norm)
    _check(drift, y0, solver, controller, noise)
    s0, s1 = _clock_value("s0", s0), _clock_value("s1", s1)
    if s0 == s1:
        raise ValueError(f"s1: got {s1}, which is s0 too; pass another end")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps: got {max_steps!r}; pass an integer >= 1")
    search = _Search(drift, solver, controller, noise, s0, s1, max_steps, unit or (lambda s: 1.0))
    with torch.no_grad():
        nodes = search.nodes(y0.detach(), first_step)
    return torch.tensor(nodes, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class _Search:
    """The steps from s0 to s1 that a controller accepts."""

    drift: Drift
    solver: RungeKutta
    controller: Controller
    noise: Increments | None
    s0: float
    s1: float
    max_steps: int
    unit: Callable[[float], float]

    def nodes(self, y: Tensor, first_step: float | None) -> list[float]:
        F = _checked(self.drift(self.s0, y), y, self.s0)
        h = self._first_step(y, F) if first_step is None else self._given(first_step)
        nodes, before, grows = [self.s0], 1.0, True
        for _ in range(self.max_steps):
            h, end = self._fitted(nodes[-1], h)
            interval = self._interval(nodes[-1], end, y)
            y1, F1, size = self._attempt(interval, y, F)
            factor = self.controller.factor(size, before, self._order)
            if self.controller.accepts(size):
                nodes.append(end)
                if end == self.s1:
                    return nodes
                y, F, before = y1, F1, size
                # A step that was just too long is not tried again at once.
                h, grows = h * (factor if grows else min(factor, 1.0)), True
            else:
                h, grows = self._shortened(interval, h, factor, size), False
        raise ValueError(
            f"max_steps: {self.max_steps} steps reach s = {nodes[-1]} on the way from {self.s0} to "
            f"{self.s1}, {len(nodes) - 1} of them accepted; pass larger rtol or atol, or more steps"
        )

    @property
    def _order(self) -> float:
        """k: the error of a step is ``O(h^k)``."""
        return 1.5 if self.noise is not None else float(self.solver.claims.ode)

    def _attempt(self, interval: Interval, y: Tensor, F: Tensor) -> tuple[Tensor, Tensor, float]:
        """A step from the drift F at its start: its end, the drift there, the size of its error."""
        calls = [(interval.s0, y, F)]

        def remembered(s: float, Y: Tensor) -> Tensor:
            for at, state, value in (calls[0], calls[-1]):
                if s == at and Y is state:
                    return value
            calls.append((s, Y, _checked(self.drift(s, Y), Y, s, finite=False)))
            return calls[-1][2]

        y1, error = self.solver.step_with_error(remembered, interval, y)
        error = error.abs()
        if self.noise is not None:
            shifted = self.drift(interval.s0, y + interval.H)
            error = error + (interval.ds * (shifted - F)).abs()
        return y1, remembered(interval.s1, y1), self.controller.size(error, y, y1, self.unit(interval.s1))

    def _interval(self, start: float, end: float, y: Tensor) -> Interval:
        if self.noise is None:
            return Interval(start, end)
        dB, H = self.noise(start, end)
        for name, part in (("dB", dB), ("H", H)):
            if part.shape != y.shape:
                raise ValueError(
                    f"noise: returned {name} of shape {tuple(part.shape)} from {start} to {end}; "
                    f"return the state's, {tuple(y.shape)}"
                )
        return Interval(start, end, dB.to(y), H.to(y))

    def _fitted(self, s: float, h: float) -> tuple[float, float]:
        """A step's length within all bounds, and its end; what remains of s1 is one step or two."""
        remains = abs(self.s1 - s)
        h = max(min(h, self.controller.largest), self._least(s))
        if h >= remains * (1 - _RESOLVED):
            return remains, self.s1
        if 2 * h > remains and remains / 2 >= self._least(s):
            h = remains / 2
        return h, s + math.copysign(h, self.s1 - self.s0)

    def _least(self, s: float) -> float:
        return max(self.controller.smallest, _RESOLVED * max(abs(s), abs(self.s1)))

    def _shortened(self, interval: Interval, h: float, factor: float, size: float) -> float:
        """The length to try after a rejected one."""
        least = self._least(interval.s0)
        if h > least:
            return max(h * factor, least)
        if not math.isfinite(size):
            raise ValueError(
                f"drift: at s = {interval.s0} even a step of {h:.3g} meets values that are not "
                "finite (NaN or infinite); pass a drift that is finite on the way, or another s1"
            )
        if self.controller.smallest >= least:
            bound = "is the smallest that was asked for; pass a smaller one, or larger tolerances"
        else:
            bound = (
                "is as short as float64 resolves: the drift may jump, or the state run away; pass "
                "larger tolerances, or another s1"
            )
        raise ValueError(
            f"rtol, atol: at s = {interval.s0} even a step of {h:.3g} has {size:.3g} times the "
            f"error that rtol={self.controller.rtol} and atol={self.controller.atol} allow, and it "
            f"{bound}"
        )

    def _given(self, first_step: float) -> float:
        first_step = _real("first_step", first_step)
        smallest, largest = self.controller.smallest, self.controller.largest
        if not 0 < first_step < math.inf or not smallest <= first_step <= largest:
            raise ValueError(
                f"first_step: got {first_step}; pass a positive length from smallest={smallest} "
                f"to largest={largest}"
            )
        return first_step

    def _first_step(self, y: Tensor, F: Tensor) -> float:
        """Hairer, Norsett and Wanner, section II.4, with lengths in units of the span."""
        span, unit = abs(self.s1 - self.s0), self.unit(self.s0)

        def size(value: Tensor, a: Tensor, b: Tensor) -> float:
            return self.controller.size(value, a, b, unit)

        # The controller compares with what is allowed at y.
        state, slope = size(y, y, y), size(F, y, y)
        known = min(state, slope) > 1e-5 and math.isfinite(state / slope)
        h = min(0.01 * state / slope if known else 1e-6 * span, span, self.controller.largest)
        h, end = self._fitted(self.s0, h)
        Y = y + (end - self.s0) * F
        bend = size(_checked(self.drift(end, Y), Y, end, finite=False) - F, y, y) / h
        if not math.isfinite(bend):
            return h
        steepest = max(slope * span, bend * span**2)
        if steepest <= 1e-15:
            return max(1e-6 * span, 1e-3 * h)
        return min(100 * h, span * (0.01 / steepest) ** (1 / self.solver.claims.ode))


def _check(
    drift: Drift, y0: Tensor, solver: RungeKutta, controller: Controller, noise: Increments | None
) -> None:
    if not callable(drift):
        raise TypeError(f"drift: got {type(drift).__name__}; pass a function F(s, y)")
    if noise is not None and not callable(noise):
        raise TypeError(
            f"noise: got {type(noise).__name__}; pass a function noise(s_a, s_b) -> (dB, H)"
        )
    if not isinstance(solver, RungeKutta) or not solver.tableau.embedded:
        got = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
        raise TypeError(
            f"solver: got {got}, which has no embedded row of weights to estimate its error with; "
            "pass Dopri5() or BogackiShampine()"
        )
    _check_state(y0, controller)


def _check_state(y0: Tensor, controller: Controller) -> None:
    if not isinstance(y0, Tensor) or not y0.is_floating_point() or y0.dtype == torch.float16:
        got = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
        raise TypeError(f"y0: got {got}; pass a tensor of float64, float32 or bfloat16")
    if y0.numel() == 0 or (controller.norm == "sample" and y0.dim() == 0):
        raise ValueError(
            f"y0: got shape {tuple(y0.shape)} for norm={controller.norm!r}; pass at least one "
            "number, and an axis of samples for norm='sample'"
        )
    y0 = y0.detach()
    if not torch.isfinite(y0).all():
        raise ValueError("y0: it holds NaN or infinite values; pass a finite state")
    eps, largest = torch.finfo(y0.dtype).eps, float(y0.abs().max())
    if controller.atol + controller.rtol * largest < eps * largest:
        raise ValueError(
            f"rtol, atol: got {controller.rtol} and {controller.atol} for a state of {y0.dtype}, "
            f"which rounds by {eps:.2g} of its size; pass rtol={10 * eps:.1g} or more, or a wider "
            "dtype"
        )


def _checked(F: Tensor, y: Tensor, s: float, *, finite: bool = True) -> Tensor:
    """A drift's value; at the start, where no shorter step would help, it must be finite."""
    if not isinstance(F, Tensor) or (F.shape, F.dtype) != (y.shape, y.dtype):
        got = f"{F.dtype} {tuple(F.shape)}" if isinstance(F, Tensor) else type(F).__name__
        raise ValueError(
            f"drift: returned {got} at s = {s} for a state of {y.dtype} {tuple(y.shape)}; "
            "return a tensor like the state"
        )
    if finite and not torch.isfinite(F).all():
        raise ValueError(f"drift: it is not finite (NaN or infinite) at s = {s}, the start")
    return F


def _clock_value(name: str, value: float) -> float:
    value = _real(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name}: got {value}; pass a finite clock value")
    return value


def _real(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}; pass a number")
    return float(value)
