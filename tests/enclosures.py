"""Gradients of samplers against balls that contain the true ones: ``python -m tests.enclosures`` prints a table.

The recursion of a sampler on a grid, and its derivative in x_T, are computed afresh in ball arithmetic (python-flint's
``arb``) with 256 bits, from the same float64 numbers: clocks, weights, levels, coefficients and increments. Methods and
the mixture's posterior mean are written out here, and derivatives run forwards, so that nothing is shared with the
package but these numbers. The ball proves what the discrete gradient is, to some 70 digits.

How far may float64 be from it? The same recursion in balls of 53 bits widens each result by half a unit in the last
place and carries all earlier widths along. Its radius ``r`` is thus ``eps`` times a condition number of this
recursion with these numbers, worst case. An operation of PyTorch may be off by up to ``ULPS`` = 4 units, which exp,
log and softmax need, so that a gradient must lie within ``2 ULPS r`` of the ball. Backward accumulation has the same
products as forward accumulation, in another order. The bound is a worst case: balls do not know that errors cancel,
and the distances that are seen are some 1e-16 where bounds are 1e-13 to 1e-10. ``Reversible()`` finds its states by
the inverse steps, whose round-off is that of the forward steps again: it gets twice the bound and the inversion's own
factor ``zeta^-N``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from flint import arb, ctx
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.adjoints import Adjoint
from sdeadjoint.diffusion.equation import Diffusion

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

    def __truediv__(self, other: Jet) -> Jet:
        ratio = self.value / other.value
        pairs = zip(self.slopes, other.slopes, strict=True)
        return Jet(ratio, tuple((a - ratio * b) / other.value for a, b in pairs))

    def exp(self) -> Jet:
        value = self.value.exp()
        return Jet(value, tuple(value * a for a in self.slopes))


Vector = list[Jet]
Drift = Callable[[float, Vector], Vector]


def add(y: Vector, *terms: tuple[float | arb, Vector]) -> Vector:
    """``y + sum_i c_i v_i``."""
    for factor, v in terms:
        y = [a + b * arb(factor) for a, b in zip(y, v, strict=True)]
    return y


def push(y: Vector, factor: float, increment: Sequence[float]) -> Vector:
    """``y + c dB``."""
    return [a + arb(factor) * arb(b) for a, b in zip(y, increment, strict=True)]


def total(jets: Sequence[Jet]) -> Jet:
    first, *rest = jets
    for jet in rest:
        first = first + jet
    return first


def posterior_mean(problem: sa.problems.Mixture, x: Vector, alpha: float, sigma: float) -> Vector:
    """``sum_k r_k (sigma^2 m_k + alpha v_k x) / P_k``, with ``r`` proportional to ``w_k N(x; alpha m_k, P_k)``."""
    a, s = arb(alpha), arb(sigma)
    count = len(problem.weights)
    means = problem.means.reshape(count, -1).tolist()
    variances = problem.variances.expand(count).tolist()
    weighed: list[Jet] = []
    parts: list[Vector] = []
    for w, m, v in zip(problem.weights.tolist(), means, variances, strict=True):
        P = a * a * arb(v) + s * s
        squares = total([(c - a * arb(mu)) * (c - a * arb(mu)) for c, mu in zip(x, m, strict=True)])
        exponent = squares * (arb(-1) / (2 * P)) + (arb(w).log() - P.log() * arb(len(x)) / 2)
        weighed.append(exponent.exp())
        parts.append([(c * (a * arb(v)) + s * s * arb(mu)) * (1 / P) for c, mu in zip(x, m, strict=True)])
    norm = total(weighed)
    return [total([r * part[i] for r, part in zip(weighed, parts, strict=True)]) / norm for i in range(len(x))]


# ---------------------------------------------------------------- the methods, written out


class Step(NamedTuple):
    """The numbers of one step: clock, increment and Levy area."""

    s0: float
    s1: float
    dB: Sequence[float]
    H: Sequence[float]


def euler(drift: Drift, step: Step, y: Vector, past: object) -> tuple[Vector, object]:
    return push(add(y, (arb(step.s1) - arb(step.s0), drift(step.s0, y))), 1.0, step.dB), None


def heun(drift: Drift, step: Step, y: Vector, past: object) -> tuple[Vector, object]:
    return add(y, (arb(1), _heun(drift, step, y))), None


def _heun(drift: Drift, step: Step, y: Vector) -> Vector:
    """What Heun's method adds to y."""
    h = arb(step.s1) - arb(step.s0)
    F = drift(step.s0, y)
    G = drift(step.s1, push(add(y, (h, F)), 1.0, step.dB))
    return push([(a + b) * (h / 2) for a, b in zip(F, G, strict=True)], 1.0, step.dB)


def two_m(drift: Drift, step: Step, y: Vector, past: object) -> tuple[Vector, object]:
    u, u1 = math.log(step.s0), math.log(step.s1)
    F = drift(step.s0, y)
    D = F
    if past is not None:
        before, G = past  # type: ignore[misc]
        D = add(F, (0.5 * (u1 - u) / (u - before), [a - b for a, b in zip(F, G, strict=True)]))
    return push(add(y, (arb(step.s1) - arb(step.s0), D)), 1.0, step.dB), (u, F)


def sra1(drift: Drift, step: Step, y: Vector, past: object) -> tuple[Vector, object]:
    h = arb(step.s1) - arb(step.s0)
    F = drift(step.s0, y)
    Y = push(push(add(y, (h * 3 / 4, F)), 0.75, step.dB), 1.5, step.H)
    G = drift(step.s0 + 0.75 * (step.s1 - step.s0), Y)
    return push(add(y, (h / 3, F), (2 * h / 3, G)), 1.0, step.dB), None


def coupled(drift: Drift, step: Step, y: Vector, past: object) -> tuple[Vector, object]:
    yh: Vector = y if past is None else past  # type: ignore[assignment]
    back = Step(step.s1, step.s0, [-b for b in step.dB], step.H)
    mixed = [a * arb(ZETA) + b * (1 - arb(ZETA)) for a, b in zip(y, yh, strict=True)]
    y = add(mixed, (arb(1), _heun(drift, step, yh)))
    return y, add(yh, (arb(-1), _heun(drift, back, y)))


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

    def enclosure(self, bits: int) -> list[arb]:
        """Balls that contain the same gradient in exact arithmetic on the same numbers."""
        before = ctx.prec
        ctx.prec = bits
        try:
            return self._enclosed()
        finally:
            ctx.prec = before

    def _enclosed(self) -> list[arb]:
        start = self.x_T.flatten().tolist()
        unit = [tuple(arb(int(i == j)) for j in range(len(start))) for i in range(len(start))]
        first, last = arb(self.equation.weights[0]), arb(self.equation.weights[-1])
        y = [Jet(arb(x), slopes) * (1 / first) for x, slopes in zip(start, unit, strict=True)]
        past: object = None
        for n, step in enumerate(self._steps()):
            y, past = METHODS[self.name](self._drift(n), step, y, past)
        out = total([c * (last * arb(g)) for c, g in zip(y, self.cotangent.flatten().tolist(), strict=True)])
        return list(out.slopes)

    def _steps(self) -> Iterator[Step]:
        s, zero = self.equation.clocks, [0.0] * self.x_T.numel()
        for n in range(len(s) - 1):
            pair = (zero, zero) if self.noise is None else tuple(
                value[n].flatten().tolist() for value in (self.noise.increments, self.noise.levy_areas)
            )
            yield Step(s[n], s[n + 1], *pair)

    def _drift(self, n: int) -> Drift:
        """The mixture's prediction in the frame's kind, at float64 times, weights and levels."""
        kind = self.equation.frame.kind

        def drift(s: float, y: Vector) -> Vector:
            t, weight = self.equation.at(n, s)
            alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
            x = [c * arb(weight) for c in y]
            mean = posterior_mean(self.problem, x, alpha, sigma)
            if kind == "data":
                return mean
            eps = [(c - m * arb(alpha)) * (1 / arb(sigma)) for c, m in zip(x, mean, strict=True)]
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
    exact, rounded = case.enclosure(BITS), case.enclosure(53)
    factor = 2 * ULPS
    if isinstance(adjoint, sa.Reversible):
        factor = factor * 2 * ZETA ** -(len(case.grid) - 1)
    worst = []
    for g, ball, wide in zip(case.gradient(adjoint, solver).tolist(), exact, rounded, strict=True):
        before, ctx.prec = ctx.prec, BITS
        distance = float(abs(arb(g) - ball).upper())
        ctx.prec = before
        worst.append(Found(distance, factor * float(wide.rad()), float(ball.rad())))
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
