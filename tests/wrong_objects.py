"""Solvers, schedules and noise with one fault each, for checks that must find them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.noise import BoundNoise, FixedNoise, Increment, ShiftedNoise
from sdeadjoint.solvers import Drift, State, Tableau

# ---------------------------------------------------------------- solvers


TWO = sa.Claims(ode=2, strong=1.0, evaluations=2)


@dataclass(frozen=True)
class Odd(sa.Heun):
    """Heun's method with the fault that its name says, and claims that may be too high."""

    fault: str = ""
    claimed: sa.Claims = TWO

    @property
    def claims(self) -> sa.Claims:  # type: ignore[override]
        return self.claimed

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        s0, s1, dB, ds = interval.s0, interval.s1, interval.dB, interval.ds
        first_order = {
            "Euler under no_grad": not torch.is_grad_enabled(),
            "Euler in inference mode": torch.is_inference_mode_enabled(),
            "Euler with a graph": y.requires_grad,
            "Euler on falling clocks": ds < 0,
        }
        if first_order.get(self.fault):
            return y + ds * drift(s0, y) + dB, state
        if self.fault == "draws":
            torch.rand(1)
        if self.fault == "reads the seed":
            y = y + 1e-14 * (torch.initial_seed() % 1000)
        if self.fault == "through bfloat16" and y.dtype == torch.float32:
            y = y.bfloat16().float()
        if self.fault == "default dtype":
            F, c = drift(s0, y), torch.tensor(2 / 3)  # Ralston's method
            return y + ds * (F + 3 * drift(interval.at(float(c)), y + c * (ds * F + dB))) / 4 + dB, state
        if self.fault == "edits y":
            y.add_(0.0).mul_(1.0 + 1e-9)
        if self.fault == "edits dB" and isinstance(dB, Tensor):
            dB.mul_(1.0 + 1e-9)
        if self.fault == "loses dB":
            dB = 0.99 * dB
        if self.fault == "rising only":
            ds = abs(ds)
        if self.fault == "detaches y":
            y = y.detach()
        if self.fault == "detaches dB" and isinstance(dB, Tensor):
            dB = dB.detach()
        seen = dB / math.sqrt(abs(ds)) / 10 + dB if self.fault == "scales dB" else dB
        F0 = drift(s1 + 0.1 * ds if self.fault == "looks ahead" else s0, y)
        if self.fault == "mixes samples":
            F0 = F0 - 0.01 * (F0 - F0.mean(0, keepdim=True))
        Y = y + ds * F0 + seen
        F1 = drift(s1, Y.double() if self.fault == "widens" else Y)
        if self.fault == "detaches drift":
            F1 = F1.detach()
        if self.fault == "calls once more":
            drift(s1, Y)
        y1 = y + 0.5 * ds * (F0 + F1) + dB
        if self.fault == "flattens":
            y1 = y1.reshape(-1)
        if self.fault == "raises" and s0 >= 2:
            raise ZeroDivisionError("no step from s = 2 on")
        if self.fault == "returns y":
            return y1  # type: ignore[return-value]
        return y1, ({"F": F0},) if self.fault == "keeps a dict" else state


class Keeping(sa.Solver):
    """The two-step Adams-Bashforth method, its past on the object."""

    claims = sa.Claims(ode=2, strong=1.0, evaluations=1)

    def __init__(self) -> None:
        self.past: Tensor | None = None

    def __repr__(self) -> str:
        return "Keeping()"

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        F = drift(interval.s0, y)
        D = F if self.past is None or self.past.shape != F.shape else 1.5 * F - 0.5 * self.past
        self.past = F
        return y + interval.ds * D + interval.dB, ()


class Tallying(sa.Solver):
    """Euler's method, with a number of its own that grows."""

    claims = sa.Claims(ode=1, strong=1.0, evaluations=1)

    def __init__(self) -> None:
        self.steps = 0

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        self.steps += 1
        return y + interval.ds * drift(interval.s0, y) + interval.dB, state


_first: list[Tensor] = []


class Remembering(sa.Solver):
    """Euler's method, with a hundredth of the first drift of the latest solve, wherever that was."""

    claims = sa.Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        F = drift(interval.s0, y)
        if not state:
            _first[:] = [F.detach()]
        return y + interval.ds * (F + 0.01 * _first[0].mean()) + interval.dB, (1,)


_calls = [0]


class Counting(sa.Solver):
    """Euler's method, but every seventh call of any object is a little off."""

    claims = sa.Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        _calls[0] += 1
        return y + interval.ds * drift(interval.s0, y) * (1.001 if _calls[0] % 7 == 0 else 1.0) + interval.dB, ()


@dataclass(frozen=True)
class TwoStep(sa.Solver):
    """The two-step Adams-Bashforth method, as if steps of a ratio above ``uniform`` were equal; its past detached."""

    uniform: float = math.inf
    detached: bool = False

    @property
    def claims(self) -> sa.Claims:
        return sa.Claims(ode=2, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        F = D = drift(interval.s0, y)
        if state:
            ds, past = state
            ratio = interval.ds / ds
            D = F + 0.5 * (1.0 if ratio > self.uniform else ratio) * (F - past)
        return y + interval.ds * D + interval.dB, (interval.ds, F.detach() if self.detached else F)


def with_tableau(solver: sa.Solver, tableau: Tableau, claims: sa.Claims | None = None) -> sa.Solver:
    """A method of the same kind with other coefficients."""
    body: dict[str, Any] = {"tableau": tableau, "claims": claims or solver.claims}
    return type("Wrong", (type(solver),), body)()


@dataclass(frozen=True)
class OddPair(sa.BogackiShampine):
    """A pair of methods whose steps with an estimate have a fault."""

    fault: str

    def step_with_error(self, drift: Drift, interval: sa.Interval, y: Tensor) -> tuple[Tensor, Tensor]:
        y1, error = super().step_with_error(drift, interval, y)
        if self.fault == "ends elsewhere":
            return y1 - error, error
        return y1, error.float() if self.fault == "rounds" else 0.1 * (y1 - y)


@dataclass(frozen=True)
class WrongInverse(sa.Coupled):
    """A coupling whose way back has a fault."""

    fault: str = ""

    def invert(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        if self.fault == "forgets dB":
            interval = replace(interval, dB=0.0)
        if self.fault == "edits the state":
            state[0].add_(1e-9)
        back, kept = super().invert(drift, interval, y, state)
        if self.fault == "one per cent":
            back = y + 0.99 * (back - y)
        return back, (1.01 * kept[0],) if self.fault == "wrong state" else kept


# ---------------------------------------------------------------- schedules


@dataclass(frozen=True)
class OddSchedule(sa.RectifiedFlow):
    """A rectified flow with the fault that its name says."""

    fault: str = ""

    def _time(self, lam: Tensor) -> Tensor:
        t = super()._time(lam)
        return t * (1 - 0.01 * (1 - t)) if self.fault == "wrong time" else t

    def lam(self, t: float | Tensor) -> Tensor:
        lam = super().lam(t)
        if self.fault == "doubled lam":
            return 2 * lam
        if self.fault == "narrow lam":
            return lam.float()
        if self.fault == "flat lam":
            return lam.reshape(-1)
        return -lam if self.fault == "rising lam" else lam

    def _log_sigma(self, t: Tensor) -> Tensor:
        return super()._log_sigma(t) - (5 * t if self.fault == "falling sigma" else 0)

    def _log_alpha(self, t: Tensor) -> Tensor:
        value = super()._log_alpha(t) - (5 * t if self.fault == "falling sigma" else 0)
        if self.fault == "of the mean time":
            return value + 1e-6 * (t.mean() - t)
        if self.fault == "jump":
            return value - 0.01 * (t > 0.4)
        if self.fault == "NaN at the end":
            return (1 - t) * value / (1 - t)
        return value + 1e-6 * torch.rand(()).double() if self.fault == "random" else value

    def _times(self, t: float | Tensor) -> Tensor:
        if self.fault == "clamps":
            return torch.as_tensor(t, dtype=torch.float64, device="cpu").clamp(0, 1)
        times = super()._times(0.5 if self.fault == "takes NaN" and torch.as_tensor(t).isnan().any() else t)
        return times.mul_(1 - 1e-9) if self.fault == "edits t" else times

    @property
    def t_max(self) -> float:
        return 1.0 if self.fault == "singular t_max" else 0.999

    def __repr__(self) -> str:
        return "RectifiedFlow(fault=None)" if self.fault == "repr" else f"OddSchedule(fault={self.fault!r})"


# ---------------------------------------------------------------- noise


@dataclass(frozen=True)
class OddNoise(sa.Noise):
    """A Brownian path with the fault that its name says."""

    fault: str
    seed: int = 0
    refinable: bool = False

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        wide = like.double() if self.fault == "float64" else like
        seed = 5 if self.fault == "one seed" else self.seed
        if self.fault == "seed of the dtype" and like.dtype != torch.float64:
            seed += 1
        if self.fault == "reads the global generator":
            seed = torch.initial_seed() % 2**62
        if self.fault == "another path each time":
            _calls[0] += 1
            seed += _calls[0]
        levy = True if self.fault == "H always" else levy
        one = like.new_zeros(()) if self.fault == "entries alike" else wide
        if self.fault == "samples alike":
            one = wide[:1]
        path = sa.BrownianPath(seed, self.refinable).bind(clock, one, levy)
        return _Odd(path, self.fault, clock, like, {}, torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class _Odd(BoundNoise):
    path: BoundNoise
    fault: str
    clock: Tensor
    like: Tensor
    kept: dict[int, Increment]
    generator: torch.Generator

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def increment(self, n: int) -> Increment:
        if self.fault == "counts from the end" and -len(self.clock) < n < 0:
            n += len(self.clock) - 1
        if self.fault == "clamps n":
            n = min(n, len(self.clock) - 2)
        dB, H = self.path.increment(n)
        if self.fault == "repeats from the eighth step on" and n > 7:
            h = self.clock.diff().sqrt().tolist()
            dB, H = (part if part is None else part * (h[n] / h[7]) for part in self.path.increment(7))
            assert dB is not None
        narrow, still = dB.dtype, not 0 < float(self.clock[n + 1] - self.clock[n]) < math.inf
        dB, H = dB.double(), None if H is None else H.double()
        if self.fault == "never moves":
            dB = 0 * dB
        if self.fault == "moves to infinity" and math.isinf(self.clock[n + 1]):
            dB = dB + 1.0
        elif still and self.fault != "never still":
            return Increment(dB.to(narrow), None if H is None else H.to(narrow))
        if self.fault == "variance 1.05":
            dB = dB * math.sqrt(1.05)
        if self.fault == "drift":
            dB = dB + 0.2 * float(self.clock[n + 1] - self.clock[n]) ** 0.5
        if self.fault == "Levy variance 1.05" and H is not None:
            H = H * math.sqrt(1.05)
        if self.fault == "Levy sign" and H is not None:
            H = -H
        if self.fault == "Levy of dB" and H is not None:
            H = 0.995 * H + 0.0288 * dB
        if self.fault == "steps correlate" and n > 0:
            h = self.clock.diff().sqrt().tolist()
            if h[n - 1]:
                dB = 0.995 * dB + 0.1 * self.path.increment(n - 1).dB.double() * (h[n] / h[n - 1])
        if self.fault == "uniform":
            h = float(self.clock[n + 1] - self.clock[n])
            dB = (torch.special.ndtr(dB / h**0.5) - 0.5) * math.sqrt(12 * h)
        if self.fault == "in the order of questions":
            dB = dB.abs() * torch.randn(dB.shape, generator=self.generator).sign().double()
        if self.fault == "uses the global generator":
            torch.rand(())
        if self.fault == "uses numpy's generator":
            np.random.rand()
        if self.fault == "uses random":
            random.random()
        if self.fault in ("entries alike", "samples alike"):
            dB, H = dB.expand(self.like.shape) * 1.0, None if H is None else H.expand(self.like.shape) * 1.0
        if self.fault == "never still":
            dB = dB + (dB == 0) * 1e-6
        if self.fault == "hands out its own":
            return self.kept.setdefault(n, Increment(dB.to(narrow), None if H is None else H.to(narrow)))
        return Increment(dB.to(narrow), None if H is None else H.to(narrow))


@dataclass(frozen=True)
class Owned(sa.Noise):
    """Right noise: ``FixedNoise`` and ``ShiftedNoise`` made for whatever they are bound to."""

    kind: str
    seed: int = 0

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        wide = torch.zeros(like.shape, dtype=torch.float64)
        path = sa.BrownianPath(self.seed)
        bound = path.bind(clock, wide, True)
        drawn = [bound.increment(n) for n in range(len(clock) - 1)]
        dB, H = (torch.stack([increment[k] for increment in drawn]) for k in (0, 1))  # type: ignore[arg-type]
        if self.kind == "fixed":
            return FixedNoise(dB, H).bind(clock, like, levy)
        return ShiftedNoise(path, 0 * dB, 0 * H).bind(clock, like, levy)
