"""Gradients of samplers against balls that contain the true ones: ``python -m tests.enclosures`` prints a table.

The recursion of a sampler on a grid, and its derivative in x_T, are computed afresh in ball arithmetic (python-flint's
``arb``) with 256 bits, from the same float64 numbers: clocks, weights, levels, coefficients and increments. Methods and
the mixture's posterior mean are written out here, and derivatives run forwards, so that nothing is shared with the
package but these numbers. The ball proves what the discrete gradient is, to some 70 digits.

How far may float64 be from it? The same recursion is run on a tape (``tests/tape.py``), differentiated backwards step
by step. The tape knows by how much a gradient g moves if any operation, forward or backward, is off by a relative
delta. Operations of PyTorch are off by ``ULPS`` = 4 units in the last place at most. Exp, log and softmax need that
many; for the others it leaves room for the two or three roundings of a fused operation that stands for one of the tape.
So to first order

    |g - ball| <= ULPS eps sum over operations of |dg/dv| |v|

and terms of second order are some 1e-13 of that. The derivatives are the actual ones of this calculation, not bounds
of them. For ``Reversible()`` the tape holds the inverse steps too, and the gradient is taken at the states that they
find. The tape takes the mixture's formula with the package's cancellations: squares in the plane are expanded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from flint import arb, ctx
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.adjoints import Adjoint
from sdeadjoint.diffusion.equation import Diffusion

from .tape import Number, condition, given, pulled

BITS = 256
ULPS = 4
ZETA = 0.999
SCHEDULE = sa.VPLinear()
ADJOINTS: tuple[Adjoint, ...] = (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(snapshots=2))
PROBLEMS = {
    "line": sa.problems.Mixture([0.4, 0.6], [-1.0, 1.0], [0.5, 0.3]),
    "plane": sa.problems.Mixture([0.3, 0.3, 0.4], [[1.0, 0.5], [-1.0, 0.3], [0.2, -1.2]], 0.6),
}
SOLVERS: dict[str, sa.Solver] = {
    "Euler": sa.Euler(),
    "Heun": sa.Heun(),
    "DPM-Solver++(2M)": sa.DPMSolverPP2M(),
    "SRA1": sa.SRA1(),
    "Coupled(Heun)": sa.Coupled(sa.Heun(), ZETA),
}


# ---------------------------------------------------------------- balls with derivatives


@dataclass(frozen=True, eq=False)
class Jet:
    """A ball and the balls of its derivatives in x_T."""

    value: arb
    slopes: tuple[arb, ...]

    def __add__(self, other: Jet | arb) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.value + other.value, tuple(a + b for a, b in zip(self.slopes, other.slopes, strict=True)))
        return Jet(self.value + other, self.slopes)

    def __neg__(self) -> Jet:
        return Jet(-self.value, tuple(-a for a in self.slopes))

    def __sub__(self, other: Jet | arb) -> Jet:
        return self + -other

    def __mul__(self, other: Jet | arb) -> Jet:
        if isinstance(other, Jet):
            pairs = zip(self.slopes, other.slopes, strict=True)
            return Jet(self.value * other.value, tuple(a * other.value + self.value * b for a, b in pairs))
        return Jet(self.value * other, tuple(a * other for a in self.slopes))

    def __truediv__(self, other: Jet | arb) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.value / other, tuple(a / other for a in self.slopes))
        ratio = self.value / other.value
        pairs = zip(self.slopes, other.slopes, strict=True)
        return Jet(ratio, tuple((a - ratio * b) / other.value for a, b in pairs))

    def exp(self) -> Jet:
        value = self.value.exp()
        return Jet(value, tuple(value * a for a in self.slopes))


Scalar = Any
"""A ball (``arb``), one with derivatives (``Jet``), or a number of the tape; floats are exact in each arithmetic."""

Vector = list[Scalar]
Drift = Callable[[float, Vector], Vector]
Lift = Callable[[float], Scalar]


def add(y: Vector, *terms: tuple[Scalar, Vector]) -> Vector:
    """``y + sum_i c_i v_i``."""
    for factor, v in terms:
        y = [a + b * factor for a, b in zip(y, v, strict=True)]
    return y


def total(values: Sequence[Scalar]) -> Scalar:
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def posterior_mean(problem: sa.problems.Mixture, x: Vector, alpha: float, sigma: float, lift: Lift) -> Vector:
    """``c + sum_k r_k (sigma^2 o_k + alpha v_k X) / P_k``, with ``X = x - alpha c``, ``o_k = m_k - c``, c the mean.

    ``r`` is proportional to ``w_k N(X; alpha o_k, P_k)``.
    """
    a, s, count = lift(alpha), lift(sigma), len(problem.weights)
    means = [[lift(c) for c in mean] for mean in problem.means.reshape(count, -1).tolist()]
    weights = [lift(w) for w in problem.weights.tolist()]
    centre = [total([w * m[i] for w, m in zip(weights, means, strict=True)]) for i in range(len(x))]
    X = [b - a * c for b, c in zip(x, centre, strict=True)]
    weighed: list[Scalar] = []
    parts: list[Vector] = []
    for w, m, v in zip(weights, means, problem.variances.expand(count).tolist(), strict=True):
        P = a * a * v + s * s
        o = [b - c for b, c in zip(m, centre, strict=True)]
        logs = (P.log() + math.log(2 * math.pi)) * len(x)
        weighed.append(((squares(X, a, o) / P + logs) * -0.5 + w.log()).exp())
        parts.append([b * (a * v / P) + s * s / P * c for b, c in zip(X, o, strict=True)])
    norm = total(weighed)
    r = [value / norm for value in weighed]
    return [total([p * part[i] for p, part in zip(r, parts, strict=True)]) + centre[i] for i in range(len(x))]


def squares(X: Vector, a: Scalar, o: Vector) -> Scalar:
    """``|X - a o|^2``, expanded where there is more than one dimension."""
    if len(X) == 1:
        return (X[0] - a * o[0]) * (X[0] - a * o[0])
    crossed = total([b * c for b, c in zip(X, o, strict=True)])
    return total([b * b for b in X]) - crossed * (a * 2) + a * a * total([c * c for c in o])


# ---------------------------------------------------------------- the methods, written out


class Step(NamedTuple):
    """One step: the clock at its ends, its length, increment and Levy area."""

    s0: float
    s1: float
    h: Scalar
    dB: Vector
    H: Vector

    @property
    def back(self) -> Step:
        return Step(self.s1, self.s0, -self.h, [-b for b in self.dB], self.H)


def euler(drift: Drift, step: Step, y: Vector, past: Any) -> tuple[Vector, Any]:
    return add(y, (step.h, drift(step.s0, y)), (1.0, step.dB)), None


def heun(drift: Drift, step: Step, y: Vector, past: Any) -> tuple[Vector, Any]:
    return add(y, (1.0, _heun(drift, step, y))), None


def _heun(drift: Drift, step: Step, y: Vector) -> Vector:
    """What Heun's method adds to y."""
    F = drift(step.s0, y)
    G = drift(step.s1, add(y, (step.h, F), (1.0, step.dB)))
    return add([(a + b) * (step.h * 0.5) for a, b in zip(F, G, strict=True)], (1.0, step.dB))


def two_m(drift: Drift, step: Step, y: Vector, past: Any) -> tuple[Vector, Any]:
    u, u1 = math.log(step.s0), math.log(step.s1)
    F = drift(step.s0, y)
    D = F
    if past is not None:
        before, G = past
        D = add(F, (0.5 * (u1 - u) / (u - before), [a - b for a, b in zip(F, G, strict=True)]))
    return add(y, (step.h, D), (1.0, step.dB)), (u, F)


def sra1(drift: Drift, step: Step, y: Vector, past: Any) -> tuple[Vector, Any]:
    F = drift(step.s0, y)
    Y = add(y, (step.h * 0.75, F), (0.75, step.dB), (1.5, step.H))
    G = drift(step.s0 + 0.75 * (step.s1 - step.s0), Y)
    third = step.h / 3
    return add(y, (third, F), (third * 2, G), (1.0, step.dB)), None


def coupled(drift: Drift, step: Step, y: Vector, past: Any) -> tuple[Vector, Any]:
    yh = y if past is None else past
    mixed = add(yh, (ZETA, [a - b for a, b in zip(y, yh, strict=True)]))
    y = add(mixed, (1.0, _heun(drift, step, yh)))
    return y, add(yh, (-1.0, _heun(drift, step.back, y)))


def undone(drift: Drift, step: Step, y: Vector, yh: Vector) -> tuple[Vector, Vector]:
    """The step of ``coupled`` backwards."""
    yh = add(yh, (1.0, _heun(drift, step.back, y)))
    up = _heun(drift, step, yh)
    return [b + (a - b - c) / ZETA for a, b, c in zip(y, yh, up, strict=True)], yh


METHODS = dict(zip(SOLVERS, (euler, heun, two_m, sra1, coupled), strict=True))


# ---------------------------------------------------------------- a case, both ways


@dataclass(frozen=True, eq=False)
class Case:
    """A sampler on a problem: its grid, start, increments and cotangent, all float64."""

    name: str
    problem: sa.problems.Mixture
    equation: Diffusion
    grid: Tensor
    x_T: Tensor
    cotangent: Tensor
    noise: sa.FixedNoise | None

    @classmethod
    def create(cls, name: str, problem: str, eta: float, kind: str, steps: int, seed: int = 0) -> Case:
        mixture, frame = PROBLEMS[problem], sa.Frame(SCHEDULE, eta, kind)
        ends = [float(SCHEDULE.time(lam)) for lam in (-1.5, 1.5)]
        grid = sa.uniform_logsnr(SCHEDULE, steps, t_max=ends[0], t_min=ends[1])
        grid[1:-1] += 0.2 * grid.diff()[1:] * torch.linspace(-1, 1, steps - 1, dtype=torch.float64)  # not uniform
        shape = (1, *mixture.event_shape)
        rng = torch.Generator().manual_seed(seed)
        x_T, cotangent = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
        equation = Diffusion.create(mixture.denoiser(SCHEDULE), frame, grid, {})
        noise = None
        if eta > 0:
            h = frame.noise_clock(grid).diff().reshape(-1, *[1] * len(shape))
            dB, H = (torch.randn(steps, *shape, generator=rng, dtype=torch.float64) for _ in range(2))
            noise = sa.FixedNoise(dB * h.sqrt(), H * (h / 12).sqrt())
        return cls(name, mixture, equation, grid, x_T, cotangent, noise)

    def gradient(self, adjoint: Adjoint, solver: sa.Solver | None = None) -> Tensor:
        """The package's: ``cotangent . x_0`` differentiated in x_T, flat."""
        x_T, frame = self.x_T.clone().requires_grad_(), self.equation.frame
        denoiser, method = self.problem.denoiser(SCHEDULE), SOLVERS[self.name] if solver is None else solver
        x = sa.sample(denoiser, x_T, frame=frame, grid=self.grid, solver=method, noise=self.noise, adjoint=adjoint)
        return torch.autograd.grad((x * self.cotangent).sum(), x_T)[0].flatten()

    @cached_property
    def ball(self) -> list[arb]:
        """Balls that contain the same gradient in exact arithmetic on the same numbers."""
        return self.enclosure(BITS)

    def enclosure(self, bits: int) -> list[arb]:
        before = ctx.prec
        ctx.prec = bits
        try:
            size = self.x_T.numel()
            units = [tuple(arb(int(i == j)) for j in range(size)) for i in range(size)]
            y = self._run([Jet(arb(x), unit) for x, unit in zip(self._start, units, strict=True)], arb)[-1][0]
            out = total([c * a for c, a in zip(y, self._last(arb), strict=True)])
            return list(out.slopes)
        finally:
            ctx.prec = before

    @cached_property
    def condition(self) -> list[float]:
        """By how much the gradient moves, each component, if all operations are off by a relative delta; over delta."""
        x_T = [Number(x) for x in self._start]
        y = self._run(x_T, given)[-1][0]
        return [condition(g) for g in pulled(y, self._last(given), x_T)]

    @cached_property
    def condition_undone(self) -> list[float]:
        """The same for a gradient at states that are found by undoing the steps."""
        x_T = [Number(x) for x in self._start]
        states, steps, method = self._run(x_T, given), list(self._steps(given)), METHODS[self.name]
        y, yh = states[-1]
        a = [*self._last(given), *(Number(0.0) for _ in y)]
        for n in range(len(steps) - 1, 0, -1):
            drift = self._drift(n, given)
            before = undone(drift, steps[n], y, yh)
            after = method(drift, steps[n], *before)
            a = pulled([*after[0], *after[1]], a, [*before[0], *before[1]])
            y, yh = before
        return [condition(g) for g in pulled([*states[1][0], *states[1][1]], a, x_T)]

    def _run(self, x_T: Vector, lift: Lift) -> list[tuple[Vector, Any]]:
        """All states of the recursion, with what the method remembers."""
        first = lift(self.equation.weights[0])
        states: list[tuple[Vector, Any]] = [([x / first for x in x_T], None)]
        for n, step in enumerate(self._steps(lift)):
            states.append(METHODS[self.name](self._drift(n, lift), step, *states[-1]))
        return states

    @property
    def _start(self) -> list[float]:
        return self.x_T.flatten().tolist()

    def _last(self, lift: Lift) -> Vector:
        """The cotangent of y_N."""
        last = lift(self.equation.weights[-1])
        return [last * g for g in self.cotangent.flatten().tolist()]

    def _steps(self, lift: Lift) -> Iterator[Step]:
        s, zero = self.equation.clocks, [0.0] * self.x_T.numel()
        for n in range(len(s) - 1):
            pair = (zero, zero) if self.noise is None else tuple(
                value[n].flatten().tolist() for value in (self.noise.increments, self.noise.levy_areas)
            )
            yield Step(s[n], s[n + 1], lift(s[n + 1]) - lift(s[n]), *([lift(b) for b in value] for value in pair))

    def _drift(self, n: int, lift: Lift) -> Drift:
        """The mixture's prediction in the frame's kind, at float64 times, weights and levels."""
        kind = self.equation.frame.kind

        def drift(s: float, y: Vector) -> Vector:
            t, weight = self.equation.at(n, s)
            alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
            x = [c * weight for c in y]
            mean = posterior_mean(self.problem, x, alpha, sigma, lift)
            if kind == "data":
                return mean
            eps = [(c - m * alpha) / lift(sigma) for c, m in zip(x, mean, strict=True)]
            return eps if kind == "noise" else [e - m for e, m in zip(eps, mean, strict=True)]

        return drift


class Found(NamedTuple):
    """A gradient's distance from the ball, the bound of it, and the ball's own radius."""

    distance: float
    bound: float
    radius: float

    @property
    def holds(self) -> bool:
        return self.distance <= self.bound + self.radius


def compare(case: Case, adjoint: Adjoint, solver: sa.Solver | None = None) -> Found:
    """The worst component of a gradient against its ball."""
    unit = ULPS * torch.finfo(torch.float64).eps
    conditions = case.condition_undone if isinstance(adjoint, sa.Reversible) else case.condition
    worst = []
    for g, ball, size in zip(case.gradient(adjoint, solver).tolist(), case.ball, conditions, strict=True):
        before, ctx.prec = ctx.prec, BITS
        distance = float(abs(arb(g) - ball).upper())
        ctx.prec = before
        worst.append(Found(distance, unit * size, float(ball.rad())))
    return max(worst, key=lambda found: found.distance / found.bound)


def cases(steps: int, names: Sequence[str] = tuple(SOLVERS)) -> Iterator[tuple[str, Case]]:
    """Every method on both problems, in each kind; SRA1 with noise, Euler, Heun and 2M with and without."""
    for name in names:
        for problem in PROBLEMS:
            for kind in ("data", "flow", "noise"):
                if name == "DPM-Solver++(2M)" and kind == "flow":
                    continue  # the flow's clock is no exponential
                for eta in (0.5,) if name == "SRA1" else (0.0,) if name == "Coupled(Heun)" else (0.0, 0.5):
                    if name == "DPM-Solver++(2M)" and kind == "noise" and eta:
                        continue
                    yield f"{name}, {problem}, {kind}, eta {eta:g}", Case.create(name, problem, eta, kind, steps)


def adjoints(case: Case) -> tuple[Adjoint, ...]:
    return (*ADJOINTS, sa.Reversible()) if case.name.startswith("Coupled") else ADJOINTS


def main() -> None:
    torch.set_num_threads(1)
    print("| case, steps | adjoint | distance from the ball | bound | share | radius of the ball |")
    print("|---|---|---|---|---|---|")
    for steps in (6, 12):
        for title, case in cases(steps):
            for adjoint in adjoints(case):
                found = compare(case, adjoint)
                sizes = f"{found.distance:.1e} | {found.bound:.1e} | {found.distance / found.bound:.3f}"
                mark = "" if found.holds else " OUTSIDE"
                print(f"| {title}, {steps} | {adjoint!r} | {sizes} | {found.radius:.0e} |{mark}", flush=True)


if __name__ == "__main__":
    main()
