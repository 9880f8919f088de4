"""An equation from a drift that somebody wrote."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from scipy.integrate import quad
from torch import Tensor

from .arguments import check_types, finite_flag, named
from .conditioning import at_step, check_schedules, scheduled
from .equation import Equation
from .ledger import require
from .packing import MismatchError, Packing
from .solvers import Drift


@dataclass(frozen=True, eq=False)
class Field(Equation):
    """``dy = function(s, y, **cond) ds + dB_nu``; the user's state is ``y`` itself, or a nest that is packed.

    Args:
        function: the drift; gets the clock as a tensor of no dimension, and copies that it may change in place.
        cond: conditioning, by the names of the function's arguments.
        packing: of the state.
        clocks, times, weights, noise_clock: see ``Equation``; the times are the clocks, and the weights are ones.
        time_dtype: of the clock as the function gets it.
        start: the user's initial state.
        slots: which value of a ``Scheduled`` each step sees; None is its own.
    """

    function: Callable[..., Any]
    cond: Mapping[str, Any]
    packing: Packing
    clocks: tuple[float, ...]
    times: tuple[float, ...]
    weights: tuple[float, ...]
    noise_clock: tuple[float, ...] | None
    time_dtype: torch.dtype = torch.float64
    start: Any = None
    slots: tuple[int, ...] | None = None

    @classmethod
    def create(
        cls,
        function: Callable[..., Any],
        y0: Any,
        clock: Tensor | Sequence[float] | None,
        *,
        cond: Mapping[str, Any] | None,
        noise_clock: Tensor | Sequence[float] | None,
        time_dtype: torch.dtype,
    ) -> Field:
        """Check the arguments of ``sdeadjoint.solve`` and make tables of them."""
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"drift: got {named(function)}; pass a function drift(s, y, **cond) or a module")
        cond = {} if cond is None else cond
        check_types(("cond", cond, Mapping, "a mapping from the drift's keyword names to values"))
        if strange := [name for name in cond if not isinstance(name, str)]:
            raise TypeError(f"cond: got the key {strange[0]!r}; pass the names of the drift's keyword arguments")
        if not (isinstance(time_dtype, torch.dtype) and time_dtype.is_floating_point):
            raise TypeError(f"time_dtype: got {time_dtype!r}; pass a floating dtype such as torch.float32")
        clocks = strict_clock(clock)
        nu = None if noise_clock is None else _numbers("noise_clock", noise_clock)
        if nu is not None and len(nu) != len(clocks):
            raise ValueError(f"noise_clock: got {len(nu)} values, but the clock has {len(clocks)}; pass one for each")
        if nu is not None and any(b < a for a, b in pairwise(nu)):
            raise ValueError("noise_clock: must not fall; over a step it rises by the variance of the noise")
        check_schedules(cond, len(clocks) - 1, "cond")
        ones = (1.0,) * len(clocks)
        return cls(function, cond, Packing.of(y0, "y0"), clocks, clocks, ones, nu, time_dtype)

    def with_unit_noise(self) -> Field:
        """The same equation with the noise of ``dy = F ds + dW``: the clock itself, rising."""
        sign = 1.0 if self.clocks[-1] > self.clocks[0] else -1.0
        return replace(self, noise_clock=tuple(sign * s for s in self.clocks))

    def starting_at(self, x: Any) -> Field:
        return replace(self, start=x)

    @property
    def tensors(self) -> dict[str, Any]:
        return {"start": self.start, "cond": self.cond}

    def on(self, tensors: Mapping[str, Any]) -> Field:
        return replace(self, start=tensors["start"], cond=tensors["cond"])

    @property
    def module(self) -> Callable[..., Any]:
        return self.function

    def enter(self, x: Any, n: int = 0) -> Tensor:
        return self.packing.pack(x)

    def leave(self, n: int, y: Tensor) -> Any:
        return self.packing.unpack(y)

    def outward(self, n: int, a: Tensor) -> Any:
        return self.packing.unpack(a)

    def inward(self, n: int, a: Any) -> Tensor:
        return self.packing.pack(a)

    def drift(self, n: int) -> Drift:
        cond = self.cond
        if self._is_scheduled:
            cond = at_step(self.cond, n if self.slots is None else self.slots[n])

        def drift(s: float, y: Tensor) -> Tensor:
            at = torch.full((), s, dtype=self.time_dtype, device=y.device)
            F = self._packed(self.function(at, self.packing.unpack(y), **cond)).to(y.dtype)
            was_finite = finite_flag(y)

            def refusal() -> ValueError:
                where = "what it returned" if was_finite else "the state"
                return ValueError(f"drift: {where} is not finite (NaN or inf) at step {n} of {self.steps}, s={s}")

            require(finite_flag(F), refusal)
            return F

        return drift

    def _packed(self, out: Any) -> Tensor:
        """What the function returned, as one tensor: a copy, as the function may use its own memory again."""
        try:
            tensors = self.packing.tensors(out)
        except MismatchError as error:
            raise ValueError(f"drift: returned {error}; return a derivative like y") from None
        if strange := [tensor.dtype for tensor in tensors if not tensor.is_floating_point()]:
            raise TypeError(f"drift: returned dtype {strange[0]}; it must return real floating-point tensors")
        return self.packing.joined(tensors)

    @cached_property
    def _is_scheduled(self) -> bool:
        return any(scheduled(self.cond))

    # What the continuous adjoints ask for.

    @property
    def driven(self) -> str:
        return "" if self.noise_clock is None else "the equation has noise"

    def recast(self, kind: str | None, times: Sequence[float], slots: Sequence[int]) -> Field:
        if kind is not None:
            raise ValueError(
                f"adjoint: it asks for the kind {kind!r}, but only a diffusion has kinds of coordinates; "
                "pass ContinuousAdjoint(kind=None), or Checkpoint()"
            )
        clocks = tuple(times)
        rising = all(a < b for a, b in pairwise(clocks))
        if not rising and not all(a > b for a, b in pairwise(clocks)):
            raise ValueError("grid: must strictly rise or fall like the clock that the equation was solved on")
        ones, nu = (1.0,) * len(clocks), self.noise_clock and tuple(map(self._noise_at, clocks))
        return replace(self, clocks=clocks, times=clocks, weights=ones, noise_clock=nu, slots=tuple(slots))

    def _noise_at(self, s: float) -> float:
        """The noise clock at any value of the clock, by straight lines."""
        assert self.noise_clock is not None
        sign = 1.0 if self.clocks[-1] > self.clocks[0] else -1.0
        n = min(max(bisect_right(self.clocks, sign * s, key=lambda c: sign * c) - 1, 0), self.steps - 1)
        part = (s - self.clocks[n]) / (self.clocks[n + 1] - self.clocks[n])
        return self.noise_clock[n] if part == 0 else (1 - part) * self.noise_clock[n] + part * self.noise_clock[n + 1]


def noise_clock(g: Callable[[float], float | Tensor], clock: Tensor | Sequence[float]) -> Tensor:
    """Return ``nu_n = |int_{s_0}^{s_n} g(s)^2 ds|`` at the points of a clock: the variance of ``int g dW`` so far.

        clock = torch.linspace(0, 1, 21)
        sa.solve(drift, y0, clock=clock, noise_clock=sa.noise_clock(lambda s: 0.3 * math.exp(-s), clock), ...)

    Args:
        g: the diffusion coefficient, a function of the clock alone: a float in, a float or a 0-dimensional tensor out.
            Coefficients that depend on the state are multiplicative noise, which this library does not solve.
        clock: N + 1 numbers, rising or falling.

    Returns a float64 tensor (N + 1,), 0 first. Each step is integrated by adaptive Gauss-Kronrod quadrature
    (``scipy.integrate.quad``) to a relative error of 1e-12 of what the clock has gained. It carries no gradient: what
    depends on parameters of g belongs into the drift, or into a factor of ``FixedNoise``.
    Errors: ``ValueError`` for a g that is not a real number, that requires a gradient, or whose square is not
    integrated to 1e-9: it has no finite integral, jumps between the points of the clock (put a point there), or is
    computed in float32.
    """
    if not callable(g):
        raise TypeError(f"g: got {named(g)}; pass a function of the clock such as lambda s: 0.3")
    nodes, total = strict_clock(clock), [0.0]
    for a, b in pairwise(nodes):
        value, error, *_ = quad(partial(_square, g), a, b, epsabs=0.0, epsrel=1e-12, limit=200, full_output=1)
        # What diverges is extrapolated to a finite part, which has the wrong sign.
        if not (math.isfinite(value) and error <= 1e-9 * abs(value) and value * (b - a) >= 0):
            raise ValueError(
                f"g: the integral of its square from {a} to {b} is found to be {value} with an error of {error:.1e} "
                "and no less; pass a smooth g in float64, a clock with a point wherever it jumps, and stay off poles"
            )
        total.append(total[-1] + abs(value))
    return torch.tensor(total, dtype=torch.float64, device="cpu")


def _square(g: Callable[[float], float | Tensor], s: float) -> float:
    value = g(s)
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError("g: returned a tensor that requires a gradient, which a clock cannot carry; detach it")
    try:
        return float(value) ** 2
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"g: returned {named(value)} at s={s}; return one real number ({error})") from None


def strict_clock(clock: Tensor | Sequence[float] | None) -> tuple[float, ...]:
    """Return the numbers of a clock; others than such as strictly rise or strictly fall are refused."""
    found = _numbers("clock", clock)
    sign = 1.0 if found[-1] > found[0] else -1.0
    for n, (s0, s1) in enumerate(pairwise(found)):
        if not sign * s0 < sign * s1:
            raise ValueError(
                f"clock: must strictly rise or strictly fall, but step {n} of {len(found) - 1} goes from {s0} to {s1}"
            )
    return found


def _numbers(name: str, values: Tensor | Sequence[float] | None) -> tuple[float, ...]:
    """At least two finite numbers."""
    if values is None:
        raise TypeError(f"{name}: got None; pass N + 1 numbers for N steps, such as torch.linspace(0, 1, 21)")
    given = [values] if isinstance(values, Tensor) else values
    if isinstance(given, list | tuple) and any(isinstance(v, Tensor) and v.requires_grad for v in given):
        raise ValueError(f"{name}: requires a gradient, but no solve is differentiated in time; pass {name}.detach()")
    try:
        found = torch.as_tensor(values)
        if found.is_complex() or found.dtype == torch.bool:
            raise TypeError(f"of dtype {found.dtype}")
        found = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: got {named(values)}; pass a 1-D tensor or a sequence of numbers ({error})") from None
    if found.ndim == 0:
        raise ValueError(f"{name}: got the number {values}; pass N + 1 numbers for N steps, such as a linspace")
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"{name}: got shape {tuple(found.shape)}; pass one number per node, at least two")
    if not torch.isfinite(found).all():
        raise ValueError(f"{name}: holds NaN or infinite numbers; pass finite ones")
    return tuple(found.tolist())
