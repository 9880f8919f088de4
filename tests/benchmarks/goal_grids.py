"""Errors of gradients against the equation's, estimated and reduced: ``python -m tests.benchmarks.goal_grids``.

Some ten minutes; ``python -m tests.benchmarks.goal_grids digits --only grids`` is about one problem, and one table.
First the error, in the root mean square over starts of its relative size, on grids of 10 and 20 steps: those that
``goal_grid`` makes on 8 starts, and the usual three, all on 16 starts that it has not seen. Then the effectivity of
``gradient_error``: the estimated error over the one against a reference of 600 steps of UniPC(3) (of 16 times as many
steps of ShARK on SDE paths). The mixture has three normals in 8 dimensions; the loss is a squared distance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.accuracy.refine import split

SCHEDULE = sa.VPLinear()
MAKERS: tuple[Callable[..., Tensor], ...] = (sa.uniform_logsnr, sa.karras, sa.uniform_time)
SOLVERS: tuple[sa.Solver, ...] = (sa.DPMSolverPP2M(), sa.UniPC(3))


def problems() -> dict[str, tuple[sa.Denoiser, tuple[int, ...]]]:
    means = 1.5 * torch.randn(3, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    mixture = sa.problems.Mixture([0.3, 0.3, 0.4], means.tolist(), [0.2, 0.3, 0.15])
    digits = sa.problems.Digits(bandwidth=0.3)
    return {"mixture": (mixture.denoiser(SCHEDULE), (8,)), "digits": (digits.denoiser(SCHEDULE), (1, 8, 8))}


def starts(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(x: Tensor) -> Tensor:
    ramp = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return (x - ramp).square().sum() / 2


def gradient(
    denoiser: sa.Denoiser, x: Tensor, frame: sa.Frame, grid: Tensor, solver: sa.Solver, noise: sa.Noise | None = None
) -> Tensor:
    x = x.detach().clone().requires_grad_()
    out = sa.sample(denoiser, x, frame=frame, grid=grid, solver=solver, noise=noise, adjoint=sa.Direct())
    return torch.autograd.grad(loss(out), x)[0]


def off(found: Tensor, true: Tensor) -> float:
    """The root mean square over samples of the relative error."""
    relative = (found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    return float(relative.square().mean().sqrt())


def effectivity(name: str, denoiser: sa.Denoiser, shape: tuple[int, ...]) -> None:
    x = starts(4, shape, 3).requires_grad_()
    for eta in (0.0, 1.0):
        frame, noise = sa.Frame(SCHEDULE, eta), sa.BrownianPath(3, refinable=True) if eta else None
        solvers: tuple[sa.Solver, ...] = (sa.Euler(), sa.Heun(), sa.DPMSolverPP2M(), sa.UniPC(3))
        if eta:
            solvers = (sa.DPMSolverPP2M(), sa.ShARK())
        true = torch.empty(0) if eta else gradient(denoiser, x, frame, sa.uniform_logsnr(SCHEDULE, 600), sa.UniPC(3))
        for steps in (20, 50, 100):
            grid = sa.uniform_logsnr(SCHEDULE, steps)
            if eta:
                true = gradient(denoiser, x, frame, split(SCHEDULE, grid, [16] * steps), sa.ShARK(), noise)
            for solver in solvers:
                found = sa.gradient_error(
                    denoiser, x, loss=loss, frame=frame, grid=grid, solver=solver, noise=noise, adjoint=sa.Direct()
                )
                missed = float((found.gradients["x_T"] - true).norm())
                reliable = "" if found.reliable else "; not reliable"
                print(
                    f"{name}, eta = {eta:g}, {steps} steps, {solver!r}: error {missed / float(true.norm()):.2%}, "
                    f"effectivity {found.absolute / missed:.2f}{reliable}",
                    flush=True,
                )


def grids(name: str, denoiser: sa.Denoiser, shape: tuple[int, ...], counts: Sequence[int] = (10, 20)) -> None:
    frame, made_on, held_out = sa.Frame(SCHEDULE), starts(8, shape, 1), starts(16, shape, 2)
    true = gradient(denoiser, held_out, frame, sa.uniform_logsnr(SCHEDULE, 600), sa.UniPC(3))
    for steps in counts:
        for solver in SOLVERS:
            tried = {make.__name__: make(SCHEDULE, steps) for make in MAKERS}
            seconds = {}
            for polish in (0, 6):
                began = time.perf_counter()
                tried[f"goal_grid, polish={polish}"] = sa.goal_grid(
                    denoiser,
                    made_on,
                    loss=loss,
                    frame=frame,
                    steps=steps,
                    solver=solver,
                    polish=polish,
                    adjoint=sa.Direct(),
                )
                seconds[f"goal_grid, polish={polish}"] = time.perf_counter() - began
            errors = {n: off(gradient(denoiser, held_out, frame, grid, solver), true) for n, grid in tried.items()}
            usual = min(errors[make.__name__] for make in MAKERS)
            print(f"{name}, {steps} steps, {solver!r}:")
            for n, error in errors.items():
                more = f", {usual / error:.1f} times nearer, {seconds[n]:.0f} s" if n in seconds else ""
                print(f"    {n}: {error:.2%}{more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="problems; both unless given", metavar="mixture | digits")
    parser.add_argument("--only", choices=("grids", "effectivity"), help="one of the two tables")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name, (denoiser, shape) in problems().items():
        if asked.names and name not in asked.names:
            continue
        if asked.only != "effectivity":
            grids(name, denoiser, shape)
        if asked.only != "grids":
            effectivity(name, denoiser, shape)


if __name__ == "__main__":
    main()
