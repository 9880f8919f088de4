"""Errors along Brownian paths that the tests of ``theory/`` measure: ``python -m tests.measured_paths`` prints slopes.

Each function returns the errors on grids that halve, coarse to fine, on one set of 2000 paths. Where a solution is
needed, it is ShARK's on 512 steps. The clocks are those of the noise and the flow kind with eta = 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing.strategies import SOLVERS

from .driven import PATHS, Noise, back, drift, levels, randn, slope, solve, trajectory

FRAMES = ("noise, eta = 0.5", "flow, eta = 0.5")
ONE_STEP = [solver for solver in SOLVERS if isinstance(solver, RungeKutta)]
Errors = list[Tensor]

# ---------------------------------------------------------------- gradients: D3


def taught(s: float, y: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """A drift with conditioning z and a weight w; its derivative in w grows like y, as in any first layer."""
    return 2 * math.cos(s) * torch.tanh(w * y + z) + 0.6 * torch.sin(2 * y) + 0.5 * w * y


def gradients_of_everything(solver: sa.Solver, s: Tensor, noise: Noise) -> Tensor:
    """Of ``sin(y_N)`` in the start, the conditioning and the weight of each path, (3, paths)."""
    leaves = [randn(PATHS, seed=3), torch.full((PATHS,), 0.3).double(), torch.full((PATHS,), 0.8).double()]
    y, z, w = (leaf.requires_grad_() for leaf in leaves)
    out = solve(solver, lambda s, y: taught(s, y, z, w), s.tolist(), y, noise)
    return torch.stack(torch.autograd.grad(out.sin().sum(), (y, z, w)))


@cache
def true_gradients(name: str) -> Tensor:
    s, _, noise = levels(name)[-1]
    return gradients_of_everything(sa.ShARK(), s, noise)


def of_gradients(solver: sa.Solver, name: str, grids: int = 4) -> list[Errors]:
    """D3: of the three gradients, on the first of the grids of 16 to 128 steps."""
    found = [gradients_of_everything(solver, s, noise) for s, _, noise in levels(name)[:grids]]
    return [[gradients[of] - exact for gradients in found] for of, exact in enumerate(true_gradients(name))]


# ---------------------------------------------------------------- gradients of the noise: N3, C7


def noise_gradients(solver: sa.Solver, s: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states, their adjoints for L = sum sin(y_N), and the gradients in dB and H: (N + 1 or N, paths)."""
    dB, H = ([part.clone().requires_grad_() for part in parts] for parts in noise)
    states, _ = trajectory(solver, drift, s.tolist(), randn(PATHS, seed=3).requires_grad_(), (dB, H))
    leaves, steps = [*states, *dB, *H], len(dB)
    found = torch.stack(torch.autograd.grad(states[-1].sin().sum(), leaves, allow_unused=True, materialize_grads=True))
    return torch.stack(states).detach(), found[: steps + 1], found[steps + 1 : 2 * steps + 1], found[2 * steps + 1 :]


@cache
def fine_adjoint(name: str) -> Tensor:
    s, _, noise = levels(name)[-1]
    return noise_gradients(sa.ShARK(), s, noise)[1]


@cache
def averages(name: str, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the solution's adjoint over each of so many steps, on the noise clock: its average, its average against
    ``-12 (nu - nu_m)/dnu``, and the adjoint itself at the nodes, on 512 steps and linear between them."""
    _, nu, _ = levels(name)[-1]
    a = fine_adjoint(name)
    cells = (steps, -1, PATHS)
    h, mean, fall = nu.diff()[:, None], (a[1:] + a[:-1]) / 2, (a[1:] - a[:-1])
    middle = (nu[1:] + nu[:-1])[:, None] / 2
    nodes = nu[:: 512 // steps]
    dnu, centre = nodes.diff()[:, None], (nodes[1:] + nodes[:-1])[:, None, None] / 2
    average = (h * mean).reshape(cells).sum(1) / dnu
    moment = ((h * mean).reshape(cells) * (middle.reshape(steps, -1, 1) - centre)).sum(1)
    moment = moment + (fall * h**2 / 12).reshape(cells).sum(1)
    return average, -12 * moment / dnu**2, a[:: 512 // steps]


def of_noise_gradients(solver: RungeKutta, name: str) -> tuple[Errors, Errors]:
    """N3: of the gradients in increments and in Levy areas, against their limits, 16 to 128 steps."""
    by_dB, by_H = [], []
    for s, _, noise in levels(name)[:4]:
        average, moment, _ = averages(name, len(s) - 1)
        found = noise_gradients(solver, s, noise)[2:]
        by_dB.append(found[0] - average)
        by_H.append(found[1] - moment)
    return by_dB, by_H


def of_means_and_falls(name: str) -> tuple[Errors, Errors]:
    """C7: of the solution's own adjoint, its mean and its fall over a step, 16 to 128 steps."""
    means, falls = [], []
    for steps in (16, 32, 64, 128):
        average, moment, a = averages(name, steps)
        means.append((a[:-1] + a[1:]) / 2 - average)
        falls.append(a[:-1] - a[1:] - moment)
    return means, falls


def of_mixed_differences(name: str) -> tuple[Errors, Errors]:
    """C5: what the adjoint changes by without the noise of one step, and its mixed second difference for two steps,
    16 to 256 steps."""
    first, second = [], []
    for s, _, noise in levels(name)[:5]:
        n, steps = len(s) // 3, len(s) - 1

        def adjoint(*silent: int, s: Tensor = s, noise: Noise = noise, steps: int = steps) -> Tensor:
            loud = torch.ones(steps, 1).double().index_fill(0, torch.tensor(silent, dtype=torch.long), 0.0)
            y = randn(PATHS, seed=3).requires_grad_()
            out = solve(sa.Euler(), drift, s.tolist(), y, (loud * noise[0], noise[1]))
            return torch.autograd.grad(out.sin().sum(), y)[0]

        whole, one, other, neither = adjoint(), adjoint(n), adjoint(2 * n), adjoint(n, 2 * n)
        first.append(whole - one)
        second.append(whole - one - other + neither)
    return first, second


# ---------------------------------------------------------------- there and back, and pairs: C6, R5, R8


@cache
def truth(name: str) -> list[Tensor]:
    s, _, noise = levels(name)[-1]
    return trajectory(sa.ShARK(), drift, s.tolist(), randn(PATHS, seed=3), noise)[0]


@cache
def there_and_back(solver: sa.Solver, name: str, level: int) -> tuple[Tensor, Tensor]:
    """The states in the middle and at the start that are found backwards from the end of a solve."""
    s, _, noise = levels(name)[level]
    end = solve(solver, drift, s.tolist(), randn(PATHS, seed=3), noise)
    states = back(solver, drift, s.tolist(), end, noise)
    return states[len(s) // 2].clone(), states[0].clone()  # and not views of all states


def of_reconstructions(solver: sa.Solver, name: str) -> Errors:
    """C6, 1: of states found backwards, against the solution at the node in the middle, 16 to 128 steps."""
    return [there_and_back(solver, name, level)[0] - truth(name)[256] for level in range(4)]


def of_returns(solver: sa.Solver, name: str) -> Errors:
    """R8: from the start, of a solve and its way back, 32 to 128 steps."""
    start = randn(PATHS, seed=3)
    return [there_and_back(solver, name, level)[1] - start for level in range(1, 4)]


def of_copies(base: RungeKutta, zeta: float, name: str) -> Errors:
    """R8: differences of the copies of ``Coupled`` at the end, 16 to 64 steps."""
    gaps = []
    for s, _, noise in levels(name)[:3]:
        _, (gap,) = trajectory(sa.Coupled(base, zeta), drift, s.tolist(), randn(PATHS, seed=3), noise)
        assert isinstance(gap, Tensor)
        gaps.append(gap)
    return gaps


def beside_heun(name: str, uneven: bool) -> tuple[Errors, Errors]:
    """R5: ``v - y`` of ``ReversibleHeun`` at the end, and its distance from Heun's method, 32 to 512 steps."""
    gaps, errors = [], []
    for s, _, noise in levels(name)[1:]:
        s, noise = unevenly(s, noise) if uneven else (s, noise)
        states, (gap, _) = trajectory(sa.ReversibleHeun(), drift, s.tolist(), randn(PATHS, seed=3), noise)
        assert isinstance(gap, Tensor)
        gaps.append(gap)
        errors.append(states[-1] - solve(sa.Heun(), drift, s.tolist(), randn(PATHS, seed=3), noise))
    return gaps, errors


def unevenly(s: Tensor, noise: Noise) -> tuple[Tensor, Noise]:
    """Steps of length 1 and 3 by turns, without Levy areas."""
    kept = [n for n in range(len(s)) if n % 4 in (0, 1)]
    dB = torch.stack([noise[0][n0:n1].sum(0) for n0, n1 in pairwise(kept)])
    return s[kept], (dB, torch.zeros_like(dB))


def texts(many: Iterable[Errors]) -> str:
    """The slope of each."""
    return ", ".join(f"{slope(errors):.2f}" for errors in many)


def main() -> None:
    torch.set_num_threads(1)
    for name in FRAMES:
        print(name)
        for solver in SOLVERS:
            print(f"  D3 {solver!r}: {texts(of_gradients(solver, name))}")
        for solver in ONE_STEP:
            print(f"  N3 {solver!r}: {texts(of_noise_gradients(solver, name))}")
        print(f"  C5: {texts(of_mixed_differences(name))}")
        print(f"  C7: {texts(of_means_and_falls(name))}")
        for solver in ONE_STEP:
            print(f"  C6, R8 {solver!r}: {texts([of_reconstructions(solver, name), of_returns(solver, name)])}")
        print(f"  R5: {texts(beside_heun(name, uneven=False))}")


if __name__ == "__main__":
    main()
