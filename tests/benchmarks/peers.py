"""One gradient by what people use: seconds, peak memory, error; ``python -m tests.benchmarks.peers [--out DIR]``.

Three solves of ``dy = F(s, y) ds (+ dB)`` in the data kind's coordinates, so that every program gets the same drift on
the same clock: a U-Net's ODE (DDIM), the ODE of an 8-dimensional mixture with its exact denoiser, and the mixture's SDE
(eta = 1, where the noise clock is the clock itself and the diffusion coefficient is 1). Each takes 20 Euler steps.

The loss is the sum of squares of the last state, and the gradient is taken in the first state and in the weights. Its
error is relative, in the Euclidean norm, against plain autograd in float64 through the same 20 steps on the same noise.

- plain autograd: the loop as one writes it;
- checkpoint loop: ``torch.utils.checkpoint`` around each step;
- torchdiffeq: ``odeint_adjoint`` with ``euler`` on the same clock; torchsde: ``sdeint_adjoint`` with ``euler``, its
  noise from its own ``BrownianInterval`` and its steps of one size, as it takes no others: the clock is uniform there;
- diffrax, if it is installed: the mixture's ODE by ``RecursiveCheckpointAdjoint``, on the CPU, after compilation;
- ours: ``Checkpoint()``, ``Checkpoint(snapshots=5)``, and ``Reversible()`` with ``Coupled(Euler())``, whose error is
  against autograd through that solver.

Seconds are medians of interleaved rounds on one thread, in multiples of plain autograd's. Memory is that of all tensors
alive at once, by ``sdeadjoint.memory.PeakMemory``; it does not see diffrax's.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchsde
from matplotlib.lines import Line2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint_adjoint

import sdeadjoint as sa
from examples.output import COLOURS, figure, table
from sdeadjoint.memory import PeakMemory

STEPS = 20
SCHEDULE = sa.VPLinear()

Gradient = tuple[Tensor, ...]


def time_at(frame: sa.Frame, s: Tensor | float) -> Tensor:
    """The schedule's time; torchdiffeq rounds the clock to the state's dtype, and so past the schedule's end."""
    return frame.time(torch.as_tensor(s, dtype=torch.float64).clamp(min=float(frame.clock(1.0))))


class UNet(nn.Module):
    """Predicts x_0 at ``x = w y``: a small diffusers U-Net with cross attention, at the times of the clock."""

    def __init__(self, frame: sa.Frame) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        self.frame = frame
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        ).eval()
        self.register_buffer("words", torch.randn(1, 8, 32))

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        t = time_at(self.frame, s)
        x = self.frame.weight(t).to(y.dtype) * y
        words = self.words.to(y.dtype).expand(len(y), -1, -1)
        return self.unet(x, 999 * t.to(y.dtype), words, return_dict=False)[0]


class Exact(nn.Module):
    """Predicts x_0 at ``x = w y``: the posterior mean of a mixture of 16 Gaussians in 8 dimensions; its means learn."""

    def __init__(self, frame: sa.Frame) -> None:
        super().__init__()
        self.frame = frame
        generator = torch.Generator().manual_seed(0)
        self.means = nn.Parameter(torch.randn(16, 8, generator=generator, dtype=torch.float64))

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        t = time_at(self.frame, s)
        alpha, sigma = (part.to(y.dtype) for part in (self.frame.schedule.alpha(t), self.frame.schedule.sigma(t)))
        x, v = self.frame.weight(t).to(y.dtype) * y, 0.04
        means, variance = self.means, alpha**2 * v + sigma**2
        responsibility = (-((x[:, None] - alpha * means).square()).sum(-1) / (2 * variance)).softmax(-1)
        mean = responsibility @ means
        return mean + alpha * v / variance * (x - alpha * mean)


@dataclass(frozen=True)
class Case:
    """One equation: its drift, its first state and clock, and the noise on it (None for an ODE)."""

    title: str
    drift: nn.Module
    y: Tensor
    clock: Tensor
    noise: torchsde.BrownianInterval | None = None

    def start(self) -> Tensor:
        return self.y.clone().requires_grad_()

    def gradient(self, y: Tensor, last: Tensor) -> Gradient:
        return torch.autograd.grad(last.square().sum(), [y, *self.drift.parameters()])

    def increments(self) -> list[Tensor | None]:
        if self.noise is None:
            return [None] * STEPS
        return [self.noise(a, b) for a, b in zip(self.clock[:-1], self.clock[1:], strict=True)]

    def step(self, n: int, y: Tensor, dB: Tensor | None) -> Tensor:
        out = y + float(self.clock[n + 1] - self.clock[n]) * self.drift(self.clock[n], y)
        return out if dB is None else out + dB


def plain(case: Case) -> Gradient:
    y = last = case.start()
    for n, dB in enumerate(case.increments()):
        last = case.step(n, last, dB)
    return case.gradient(y, last)


def checkpointed(case: Case) -> Gradient:
    y = last = case.start()
    for n, dB in enumerate(case.increments()):
        last = checkpoint(case.step, n, last, dB, use_reentrant=False)
    return case.gradient(y, last)


def by_torchdiffeq(case: Case) -> Gradient:
    y = case.start()
    path = odeint_adjoint(
        case.drift, y, case.clock, method="euler", adjoint_params=tuple(case.drift.parameters())
    )
    return case.gradient(y, path[-1])


class _Sde(nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: nn.Module) -> None:
        super().__init__()
        self.drift = drift

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        return self.drift(s, y)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(y)


def by_torchsde(case: Case) -> Gradient:
    y, sde = case.start(), _Sde(case.drift)
    ends, step = case.clock[[0, -1]], float(case.clock[1] - case.clock[0])
    path = torchsde.sdeint_adjoint(
        sde, y, ends, bm=case.noise, method="euler", dt=step, adjoint_params=tuple(case.drift.parameters())
    )
    return case.gradient(y, path[-1])


def ours(adjoint: sa.Adjoint, solver: sa.Solver) -> Callable[[Case], Gradient]:
    def gradient(case: Case) -> Gradient:
        y = case.start()
        increments = case.increments()
        noise = None if case.noise is None else sa.FixedNoise(torch.stack([dB for dB in increments if dB is not None]))
        last = sa.solve(case.drift, y, clock=case.clock, solver=solver, noise=noise, adjoint=adjoint)
        return case.gradient(y, last)

    return gradient


PAIRED = sa.Coupled(sa.Euler())

Way = tuple[str, Callable[[Case], Gradient], Callable[[Case], Gradient]]
"""A name, a program, and the program whose gradient it is to give."""


def ways(case: Case) -> list[Way]:
    theirs: list[Way] = [("torchdiffeq odeint_adjoint", by_torchdiffeq, plain)]
    if case.noise is not None:
        theirs = [("torchsde sdeint_adjoint", by_torchsde, plain)]
    return [
        ("plain autograd", plain, plain),
        ("torch.utils.checkpoint loop", checkpointed, plain),
        *theirs,
        ("sdeadjoint Checkpoint()", ours(sa.Checkpoint(), sa.Euler()), plain),
        ("sdeadjoint Checkpoint(snapshots=5)", ours(sa.Checkpoint(snapshots=5), sa.Euler()), plain),
        ("sdeadjoint Reversible()", ours(sa.Reversible(), PAIRED), ours(sa.Direct(), PAIRED)),
    ]


def frame_of(eta: float) -> sa.Frame:
    return sa.Frame(SCHEDULE, eta=eta, kind="data")


def unet(dtype: torch.dtype) -> Case:
    frame = frame_of(0.0)
    y = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clock = frame.clock(sa.uniform_logsnr(SCHEDULE, STEPS))
    return Case("a U-Net's ODE, float32", UNet(frame).to(dtype), y.to(dtype) / frame.weight(1.0).to(dtype), clock)


def mixture(dtype: torch.dtype) -> Case:
    frame = frame_of(0.0)
    y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clock = frame.clock(sa.uniform_logsnr(SCHEDULE, STEPS))
    return Case("an 8-d mixture's ODE, float64", Exact(frame).to(dtype), y.to(dtype) / frame.weight(1.0), clock)


def stochastic(dtype: torch.dtype) -> Case:
    frame = frame_of(1.0)
    y = torch.zeros(64, 8, dtype=dtype)
    # torchsde's steps are of one size, so the clock is uniform, down to sigma = alpha / 3.
    clock = torch.linspace(float(frame.clock(1.0)), 9.0, STEPS + 1, dtype=torch.float64)
    noise = torchsde.BrownianInterval(float(clock[0]), 9.0, size=y.shape, dtype=dtype, entropy=0)
    return Case("an 8-d mixture's SDE, float64", Exact(frame).to(dtype), y, clock, noise)


CASES: list[tuple[Callable[[torch.dtype], Case], torch.dtype]] = [
    (unet, torch.float32),
    (mixture, torch.float64),
    (stochastic, torch.float64),
]


@dataclass(frozen=True)
class Row:
    """One way: seconds over plain autograd's, bytes, and the relative error of the gradient."""

    name: str
    ratio: float
    peak: int
    error: float


def distance(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The relative error, in the norm of all parts; parts that are not used are zeros."""
    a, b = (torch.cat([part.double().flatten() for part in parts]) for parts in (got, want))
    return float((a - b).norm() / b.norm())


def measure(make: Callable[[torch.dtype], Case], dtype: torch.dtype, rounds: int) -> tuple[Case, list[Row]]:
    case, exact = make(dtype), make(torch.float64)
    found = ways(case)
    columns: list[list[float]] = [[] for _ in found]
    for i in range(rounds + 1):
        for (_, way, _), column in zip(found, columns, strict=True):
            start = time.perf_counter()
            way(case)
            if i:  # the first round warms up
                column.append(time.perf_counter() - start)
    rows = []
    for (name, way, truth), column in zip(found, columns, strict=True):
        with PeakMemory() as memory:
            way(case)
        ratio = statistics.median(a / b for a, b in zip(column, columns[0], strict=True))
        rows.append(Row(name, ratio, memory.peak, distance(way(case), truth(exact))))
    return case, rows


def by_diffrax(case: Case, rounds: int) -> Row:
    """The mixture's ODE. Its own arithmetic, compiled; the time is over plain autograd's here."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    means, v = jnp.asarray(case.drift.means.detach().numpy()), 0.04
    clock, y0 = jnp.asarray(case.clock.numpy()), jnp.asarray(case.y.numpy())

    def field(s: Any, y: Any, means: Any) -> Any:
        # VP: alpha^2 + sigma^2 = 1, and s = alpha / sigma, w = sigma.
        sigma = 1 / jnp.sqrt(1 + s**2)
        alpha, x = s * sigma, sigma * y
        variance = alpha**2 * v + sigma**2
        logits = -((x[:, None] - alpha * means) ** 2).sum(-1) / (2 * variance)
        mean = jax.nn.softmax(logits, -1) @ means
        return mean + alpha * v / variance * (x - alpha * mean)

    def loss(y: Any, means: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Euler(),
            clock[0],
            clock[-1],
            None,
            y,
            means,
            stepsize_controller=diffrax.StepTo(clock),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        )
        return (solution.ys[-1] ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    got = [torch.from_numpy(jax.device_get(part).copy()) for part in gradient(y0, means)]
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(gradient(y0, means))
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        plain(case)
        ratios.append(seconds / (time.perf_counter() - start))
    return Row("diffrax, compiled", statistics.median(ratios), 0, distance(got, plain(case)))


def report(title: str, rows: Sequence[Row]) -> None:
    columns = ("way", "time over autograd", "peak memory", "gradient error")
    lines = [
        (row.name, f"{row.ratio:.2f}", f"{row.peak / 2**20:.2f} MiB" if row.peak else "not seen", f"{row.error:.1e}")
        for row in rows
    ]
    table(f"{title}: {STEPS} steps", columns, lines)


def draw(results: Sequence[tuple[Case, list[Row]]], path: Path) -> None:
    """Per case, time against gradient error; the area of a disc is its memory."""
    with figure(path, 11.0, 4.2) as made:
        axes = made.subplots(1, len(results), sharey=True)
        names = list(dict.fromkeys(row.name for _, rows in results for row in rows))
        colours = dict(zip(names, (*COLOURS, "#000000", "#999999"), strict=False))
        for axis, (case, rows) in zip(axes, results, strict=True):
            most = max(row.peak for row in rows)
            for row in rows:
                axis.scatter(
                    row.ratio,
                    max(row.error, 1e-17),
                    s=30 + 600 * row.peak / most,
                    color=colours[row.name],
                    alpha=0.7,
                    label=row.name,
                )
            axis.set_yscale("log")
            axis.set_ylim(1e-19, 1e2)
            axis.set_xlabel("time over plain autograd's")
            axis.set_title(case.title)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("relative error of the gradient")
        marks = [Line2D([], [], marker="o", linestyle="", color=colours[name], alpha=0.7) for name in names]
        made.legend(marks, names, loc="lower center", ncols=4, frameon=False, fontsize=8)
        made.text(0.5, 0.13, "area of a disc: peak memory; no error at all is drawn at $10^{-17}$", ha="center")
        made.subplots_adjust(bottom=0.3, left=0.08, right=0.98, top=0.9, wspace=0.12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where peers.png goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(make, dtype, arguments.rounds) for make, dtype in CASES]
    if importlib.util.find_spec("diffrax") is not None:
        results[1][1].append(by_diffrax(results[1][0], arguments.rounds))
    for case, rows in results:
        report(case.title, rows)
    if arguments.out is not None:
        draw(results, arguments.out / "peers.png")
        print(f"The picture is {arguments.out / 'peers.png'}")


if __name__ == "__main__":
    main()
