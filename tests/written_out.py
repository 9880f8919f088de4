"""Solves of equations of our own, for ``sa.solve``, and the loops that they are, written out.

The loops know nothing of the package but ``solver.step``: they keep the state as one flat row of
numbers, whatever the nest, take each part of the noise by itself, and leave the gradient to autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.noise import Noise

DOUBLE = torch.float64
WIDTH = 3
RISING = (0.1, 0.3, 0.35, 0.8, 1.3, 1.35)
FALLING = (2.0, 1.7, 1.1, 1.05, 0.4)
CLOCK = torch.linspace(0, 1, 6, dtype=DOUBLE)
EXACT = 1e-12
"""Sums of some hundred numbers of size 1 round by some 1e-15."""


class Pair(NamedTuple):
    """A state as a named tuple."""

    x: Tensor
    v: Tensor


def flat(nest: Any) -> Iterator[Any]:
    """The leaves of a nest, in the order in which it was written."""
    if isinstance(nest, dict):
        nest = list(nest.values())
    if isinstance(nest, list | tuple):
        for value in nest:
            yield from flat(value)
    else:
        yield nest


def like(nest: Any, leaves: Iterator[Any]) -> Any:
    """The same nest with other leaves."""
    if isinstance(nest, dict):
        return {name: like(value, leaves) for name, value in nest.items()}
    if isinstance(nest, Pair):
        return Pair(*(like(value, leaves) for value in nest))
    if isinstance(nest, list | tuple):
        return type(nest)(like(value, leaves) for value in nest)
    return next(leaves)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)


STATES: dict[str, Any] = {
    "scalar": lambda: numbers(),
    "row": lambda: numbers(2),
    "batch": lambda: numbers(2, 3),
    "images": lambda: numbers(2, 2, 3).movedim(0, -1)[::2],
    "expanded": lambda: numbers(1, 3).expand(2, 3),
    "one in a dict": lambda: {"x": numbers(2, 3)},
    "dict": lambda: {"x": numbers(2, 3), "v": numbers(2, 2, 2, seed=1)},
    "dict without batch": lambda: {
        "x": numbers(),
        "v": numbers(3, seed=1),
        "w": numbers(2, 2, seed=2),
    },
    "list": lambda: [numbers(2, 3), numbers(2, 3, seed=1)],
    "tuple": lambda: (numbers(2, 3), numbers(4, seed=1)),
    "named tuple": lambda: Pair(numbers(2, 3), numbers(2, seed=1)),
    "nested": lambda: {
        "z": [numbers(2, 3), (numbers(2, seed=1),)],
        "a": Pair(numbers(2, 1), numbers(2, seed=2)),
    },
}


class Wild(nn.Module):
    """A smooth nonlinear drift in which every number depends on every other, on s, and on all tensors there are.

    ``shared`` is used twice, ``frozen`` requires no gradient, ``unused`` is not used, and ``hidden`` is a leaf that
    nobody declares: it hangs on a plain list.
    """

    def __init__(self, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__()
        self.shared = nn.Parameter(numbers(WIDTH, seed=3, dtype=dtype))
        self.frozen = nn.Parameter(numbers(WIDTH, seed=4, dtype=dtype), requires_grad=False)
        self.unused = nn.Parameter(numbers(2, seed=5, dtype=dtype))
        self.hidden = [numbers(seed=6, dtype=dtype).requires_grad_()]

    def forward(self, s: Tensor, y: Any, x: list[Tensor], push: Tensor) -> Any:
        inner = torch.stack([part.mean() for part in flat(y)]).sum()
        mixed = torch.sin(self.shared * inner + x[0]) * self.frozen + self.shared * s
        by = (mixed.mean() * self.hidden[0] + push).to(inner.dtype)
        return like(y, iter([torch.tanh(part * by + k) for k, part in enumerate(flat(y))]))


class Owner(nn.Module):
    """A drift with a start of its own, a dropout and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(numbers(4, 3))
        self.weight = nn.Parameter(numbers(3, 3, seed=1))
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(3).double()

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight + self.start)

    def dropped(self, s: Tensor, y: Tensor) -> Tensor:
        return self.dropout(self(s, y))

    def normed(self, s: Tensor, y: Tensor) -> Tensor:
        return self.norm(self(s, y))


@dataclass
class Written:
    """A call of ``sa.solve`` with everything that can have a gradient.

    Args:
        solver, adjoint: of the solve.
        state: a name of ``STATES``.
        clock, noise_clock: the numbers.
        noise: ``"none"``, ``"fixed"``, ``"shifted"``, ``"path"``, ``"one path"`` for all parts, ``"seeds"``, or
            ``"second"``: None for all parts but the last.
        start: whether y0 requires a gradient.
        scheduled: whether the conditioning changes from step to step.
        after: whether something is done after each step.
        trajectory: whether all states are returned.
        dtype: of everything.
    """

    solver: sa.Solver
    state: str = "batch"
    clock: Sequence[float] = (0.1, 0.3, 0.35, 0.8)
    noise_clock: Sequence[float] | None = None
    noise: str = "none"
    start: bool = True
    scheduled: bool = True
    after: bool = False
    trajectory: bool = False
    dtype: torch.dtype = DOUBLE
    leaves: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        made = STATES[self.state]()
        self.y0 = like(made, (self._leaf(part.to(self.dtype), self.start) for part in flat(made)))
        self.drift = Wild(self.dtype)
        self.x = self._leaf(numbers(WIDTH, seed=7, dtype=self.dtype))
        self.push = self._leaf(numbers(*[self.steps] * self.scheduled, seed=8, dtype=self.dtype))
        self.leaves += [self.drift.shared, self.drift.hidden[0]]
        self.parts = [self._noise(k, part) for k, part in enumerate(flat(self.y0))]

    def _leaf(self, tensor: Tensor, wanted: bool = True) -> Tensor:
        tensor = tensor.detach().requires_grad_(wanted)
        self.leaves += [tensor] if wanted else []
        return tensor

    @property
    def steps(self) -> int:
        return len(self.clock) - 1

    @property
    def levy(self) -> bool:
        return self.solver.claims.levy != "none"

    @property
    def nu(self) -> Tensor:
        """What the noise clock is documented to be."""
        sign = 1 if self.clock[-1] > self.clock[0] else -1
        return torch.tensor(self.noise_clock or [sign * s for s in self.clock], dtype=DOUBLE)

    def _noise(self, k: int, part: Tensor) -> Noise | None:
        last = k == len(list(flat(self.y0))) - 1
        if self.noise in ("none", "one path") or (self.noise == "second" and not last):
            return None
        shape, size = (self.steps, *part.shape), self.nu.diff().reshape(-1, *[1] * part.ndim).sqrt()
        if self.noise in ("fixed", "shifted"):
            dB, H = (
                self._leaf(
                    (scale * size * numbers(*shape, seed=20 + 2 * k + i)).to(self.dtype),
                    i == 0 or self.levy,
                )
                for i, scale in enumerate((0.5, 0.2))
            )
            pair = (dB, H) if self.levy else (dB,)
            path = sa.BrownianPath(k, refinable=k % 2 == 1)
            return sa.FixedNoise(*pair) if self.noise == "fixed" else sa.ShiftedNoise(path, *pair)
        if self.noise == "seeds" and part.ndim:
            return sa.BrownianPath([100 * k + i for i in range(len(part))])
        return sa.BrownianPath(k, refinable=k % 2 == 0)

    def arguments(self) -> dict[str, Any]:
        noise = None if self.noise == "none" else like(self.y0, iter(self.parts))
        return {
            "clock": self.clock,
            "solver": self.solver,
            "noise": sa.BrownianPath(0) if self.noise == "one path" else noise,
            "noise_clock": self.noise_clock,
            "cond": {
                "x": [self.x],
                "push": sa.Scheduled(self.push) if self.scheduled else self.push,
            },
            "after_step": self.kept if self.after else None,
            "trajectory": self.trajectory,
        }

    def kept(self, n: int, s: float, y: Any) -> Any:
        """An after_step: a nonlinear map that depends on n and s."""
        return like(y, iter([torch.sin(part).mul_(1 + 0.1 * n + s) for part in flat(y)]))

    def solved(self, adjoint: sa.Adjoint) -> list[Tensor]:
        """By ``sa.solve``: the leaves of the result."""
        return list(flat(sa.solve(self.drift, self.y0, adjoint=adjoint, **self.arguments())))

    # The loop.

    def increments(self) -> list[tuple[Tensor | float, Tensor | float]]:
        """``(dB, H)`` of each step as flat rows; zeros for parts without noise."""
        parts: list[Tensor] = list(flat(self.y0))
        if self.noise == "none":
            return [(0.0, 0.0)] * self.steps
        if self.noise == "one path":
            together = {part.shape[:1] for part in parts}
            rows = (
                torch.cat([part.reshape(len(part), -1) for part in parts], 1)
                if len(together) == 1 and parts[0].ndim and len(parts) > 1
                else parts[0]
                if len(parts) == 1
                else torch.cat([part.reshape(-1) for part in parts])
            )
            return self._one_path(parts, rows)
        found = []
        for n in range(self.steps):
            dB, H = [], []
            for part, noise in zip(parts, self.parts, strict=True):
                drawn = None if noise is None else self._drawn(noise, part, n)
                dB.append(torch.zeros_like(part) if drawn is None else drawn[0])
                H.append(torch.zeros_like(part) if drawn is None else drawn[1])
            found.append((self._row(dB), self._row(H) if self.levy else 0.0))
        return found

    def _one_path(
        self, parts: list[Tensor], rows: Tensor
    ) -> list[tuple[Tensor | float, Tensor | float]]:
        """One path is drawn for the parts side by side: per sample if they have a batch in common."""
        bound, found = sa.BrownianPath(0).bind(self.nu, rows.detach(), self.levy), []
        for n in range(self.steps):
            own = []
            for drawn in bound.increment(n):
                if drawn is None:
                    own.append(0.0)
                elif drawn.ndim == 2 and len(parts) > 1:
                    cut = drawn.split([part.numel() // len(part) for part in parts], 1)
                    own.append(self._row(list(cut)))
                else:
                    own.append(drawn.reshape(-1))
            found.append((own[0], own[1]))
        return found

    def _drawn(self, noise: Noise, part: Tensor, n: int) -> tuple[Tensor, Tensor]:
        if isinstance(noise, sa.FixedNoise):
            areas = noise.levy_areas
            return noise.increments[n], torch.zeros_like(part) if areas is None else areas[n]
        path = noise.path if isinstance(noise, sa.ShiftedNoise) else noise
        dB, H = path.bind(self.nu, part.detach(), self.levy).increment(n)
        H = torch.zeros_like(part) if H is None else H
        if isinstance(noise, sa.ShiftedNoise):
            dB = dB + noise.shifts[n]
            H = H if noise.levy_shifts is None else H + noise.levy_shifts[n]
        return dB, H

    def _row(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts])

    def _nest(self, row: Tensor) -> Any:
        at, parts = 0, []
        for part in flat(self.y0):
            parts.append(row[at : at + part.numel()].reshape(part.shape))
            at += part.numel()
        return like(self.y0, iter(parts))

    def looped(self, *, cut: int = 0, hook: Any = None) -> list[Tensor]:
        """By the loop: the leaves of the result. ``cut``: the step before which the state is made a constant."""
        y, state = self._row(list(flat(self.y0))), self.solver.initial_state
        states, increments = [y], self.increments()
        for n, (s0, s1) in enumerate(pairwise(self.clock)):
            if cut and n == cut:
                y = y.detach()
                state = _detached(state)

            def drift(s: float, row: Tensor, n: int = n) -> Tensor:
                at = torch.tensor(s, dtype=DOUBLE)
                out = self.drift(
                    at,
                    self._nest(row),
                    x=[self.x],
                    push=self.push[n] if self.scheduled else self.push,
                )
                return self._row(list(flat(out))).to(row.dtype)

            y, state = self.solver.step(drift, sa.Interval(s0, s1, *increments[n]), y, state)
            if self.after:
                y = self._row(list(flat(self.kept(n + 1, s1, self._nest(y)))))
            if hook is not None:
                y.register_hook(
                    lambda a, n=n, s=s1: self._row(list(flat(hook(n + 1, s, self._nest(a)))))
                )
            states.append(y)
        if not self.trajectory:
            return list(flat(self._nest(y)))
        return [
            torch.stack(each)
            for each in zip(*(list(flat(self._nest(y))) for y in states), strict=True)
        ]

    def gradients(self, outputs: list[Tensor]) -> list[Tensor | None]:
        """Of one fixed weighted sum of the outputs, in all leaves."""
        cotangents = [
            numbers(*out.shape, seed=50 + k, dtype=out.dtype) for k, out in enumerate(outputs)
        ]
        return list(torch.autograd.grad(outputs, self.leaves, cotangents, allow_unused=True))

    def check(self, adjoint: sa.Adjoint, tolerance: float, **loop: Any) -> None:
        """``sa.solve`` and the loop agree, in values and in all gradients, relative to the norms."""
        self.check_each([adjoint], tolerance, **loop)

    def check_each(self, adjoints: Sequence[sa.Adjoint], tolerance: float, **loop: Any) -> None:
        """The same for several adjoints, with one loop for all of them."""
        want = self.looped(**loop)
        exact = self.gradients(want)
        for adjoint in adjoints:
            self._compare(self.solved(adjoint), want, exact, tolerance)

    def _compare(
        self, got: list[Tensor], want: list[Tensor], exact: list[Tensor | None], tolerance: float
    ) -> None:
        assert [out.shape for out in got] == [out.shape for out in want]
        assert {out.dtype for out in got} == {self.dtype}
        assert apart(got, want) <= tolerance
        names = range(len(self.leaves))
        for name, one, two in zip(names, self.gradients(got), exact, strict=True):
            zero = one if two is None else two
            if one is None or two is None:
                assert zero is None or not zero.any(), f"leaf {name}: None and not 0"
            else:
                assert one.dtype == two.dtype
                assert apart([one], [two]) <= tolerance, f"leaf {name} of shape {tuple(one.shape)}"


def _detached(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(_detached(value) for value in state)
    return state.detach() if isinstance(state, Tensor) else state


def apart(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The distance relative to the norm, or to 0.1 if that is more: everything here is of size 1, and what
    cancels is as exact as what it was made of."""
    one, two = (
        torch.cat([out.detach().double().reshape(-1) for out in outs]) for outs in (got, want)
    )
    return float((one - two).norm() / two.norm().clamp(min=0.1))
