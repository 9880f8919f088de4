"""Time, memory and round-off on an accelerator, in under six minutes: ``python -m tests.benchmarks.gpu``.

The network has the modules and the size of Stable Diffusion 1.5's U-Net (860 million weights), with random weights. The
sampler takes DDIM's steps, and the loss is the sum of squares of the last state. Five tables:

- the floor: ``Checkpoint()`` over a loop written by hand, which keeps the states and recomputes each step; float16 and
  bfloat16, batches of 1 and 8, weights frozen and trained, and one row with the network compiled;
- memory: ``torch.cuda.max_memory_allocated`` of one gradient over what lay there before, at 10, 100 and 1000 steps;
- noise: a step of the SDE with increments drawn on the host, over the same with increments that lie on the device;
- gradients: those of ``Checkpoint()`` against those of ``Direct()``, relatively;
- round-off: how far one step recomputed differs from itself, relatively, and what is allowed to it: with PyTorch's
  default kernels, and with its deterministic ones.

Seconds are the least of a few interleaved rounds. Without CUDA there is nothing to measure; ``--trial`` runs the script
on the CPU with a network of toy size, to see that it works: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adjoints.replay.backward import round_off
from sdeadjoint.memory import PeakMemory

SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.ddim(SCHEDULE)


class Noise(nn.Module):
    """Predicts the noise: the U-Net, at the times of the schedule."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        found: Tensor = self.unet(x, 999 * t, words, return_dict=False)[0]
        return found


@dataclass(frozen=True)
class Bench:
    """The machine and the size of what runs on it."""

    device: torch.device
    rounds: int
    steps: int
    lengths: tuple[int, ...]
    size: int
    width: int
    options: dict[str, object]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def full(cls) -> Bench:
        options = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
        return cls(torch.device("cuda"), 3, 50, (10, 100, 1000), 64, 768, options, (torch.float16, torch.bfloat16))

    @classmethod
    def trial(cls) -> Bench:
        options = {
            "block_out_channels": (8, 8, 8, 8),
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
        }
        return cls(torch.device("cpu"), 1, 2, (2, 4), 8, 8, options, (torch.float32,))

    def network(self, dtype: torch.dtype) -> Noise:
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        unet = UNet2DConditionModel(in_channels=4, out_channels=4, sample_size=self.size, **self.options)
        return Noise(unet.eval()).to(self.device, dtype)

    def problem(self, network: Noise, dtype: torch.dtype, batch: int, steps: int) -> Problem:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(batch, 4, self.size, self.size, generator=generator).to(self.device)
        words = torch.randn(batch, 77, self.width, generator=generator).to(self.device, dtype)
        denoiser = sa.Denoiser(network, SCHEDULE, "epsilon", network_dtype=dtype)
        return Problem(denoiser, x, words, sa.uniform_logsnr(SCHEDULE, steps))

    def seconds(self, functions: Sequence[Callable[[], object]]) -> list[float]:
        """The least of some rounds of each, interleaved; one round before them warms up."""
        best = [math.inf] * len(functions)
        for n in range(self.rounds + 1):
            for k, function in enumerate(functions):
                self.wait()
                start = time.perf_counter()
                function()
                self.wait()
                best[k] = min(best[k], time.perf_counter() - start) if n else math.inf
        return best

    def peak(self, function: Callable[[], object]) -> float:
        """The most MiB beyond what lay there before."""
        if self.device.type != "cuda":
            with PeakMemory() as memory:
                function()
            return memory.peak / 2**20
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Problem:
    """One gradient: in x_T, in the words, and in those weights that require one. The states are float32."""

    denoiser: sa.Denoiser
    x: Tensor
    words: Tensor
    grid: Tensor

    @property
    def weights(self) -> list[Tensor]:
        return [weight for weight in self.denoiser.parameters() if weight.requires_grad]

    def gradient(
        self,
        adjoint: sa.Adjoint,
        *,
        frame: sa.Frame = FRAME,
        solver: sa.Solver = SOLVER,
        noise: sa.Noise | None = None,
    ) -> list[Tensor]:
        x, words = (tensor.clone().requires_grad_() for tensor in (self.x, self.words))
        last = sa.sample(
            self.denoiser, x, frame=frame, grid=self.grid, solver=solver, noise=noise, cond={"words": words},
            adjoint=adjoint,
        )  # fmt: skip
        return list(torch.autograd.grad(last.square().sum(), [x, words, *self.weights], allow_unused=True))

    def by_hand(self) -> None:
        """The floor: states kept, each step recomputed, weights' gradients added."""
        levels = [(float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))) for t in self.grid]
        dtype = self.words.dtype

        def step(n: int, x: Tensor, words: Tensor) -> Tensor:
            (a0, s0), (a1, s1) = levels[n : n + 2]
            t = self.grid[n].to(x).expand(len(x))
            return a1 / a0 * x + (s1 - a1 / a0 * s0) * self.denoiser.network(x.to(dtype), t, words)

        states, steps = [self.x], len(self.grid) - 1
        with torch.no_grad():
            for n in range(steps):
                states.append(step(n, states[n], self.words))
        cotangent, words = 2 * states[-1], self.words.clone().requires_grad_()
        wanted = [words, *self.weights]
        totals = [torch.zeros_like(tensor) for tensor in wanted]
        for n in reversed(range(steps)):
            x = states[n].detach().requires_grad_()
            cotangent, *parts = torch.autograd.grad(step(n, x, words), [x, *wanted], cotangent)
            torch._foreach_add_(totals, parts)


def floors(bench: Bench) -> None:
    print("\n| dtype | batch | weights | network | by hand, ms a step | `Checkpoint()` | over it |")
    print("|---|---|---|---|---|---|---|")
    for dtype in bench.dtypes:
        network = bench.network(dtype)
        for batch in (1, 8):
            for frozen in (True, False):
                network.requires_grad_(not frozen)
                _floor(bench, bench.problem(network, dtype, batch, bench.steps), frozen, "eager")
    if bench.device.type == "cuda":  # a host's compiler takes minutes
        network.requires_grad_(False)
        network.unet.compile()
        _floor(bench, bench.problem(network, dtype, 1, bench.steps), True, "compiled")


def _floor(bench: Bench, problem: Problem, frozen: bool, mode: str) -> None:
    hand, ours = bench.seconds([problem.by_hand, lambda: problem.gradient(sa.Checkpoint())])
    name, each = named(problem.words.dtype), 1e3 / (len(problem.grid) - 1)
    print(
        f"| {name} | {len(problem.x)} | {'frozen' if frozen else 'trained'} | {mode} | {hand * each:.1f} "
        f"| {ours * each:.1f} | {ours / hand:.3f} |",
        flush=True,
    )


def memory(bench: Bench) -> None:
    print("\n| steps | weights | peak, MiB | states alone, MiB |")
    print("|---|---|---|---|")
    dtype = bench.dtypes[-1]
    network = bench.network(dtype)
    for frozen in (True, False):
        network.requires_grad_(not frozen)
        for steps in bench.lengths if frozen else bench.lengths[:2]:
            problem = bench.problem(network, dtype, 1, steps)
            peak = bench.peak(lambda problem=problem: problem.gradient(sa.Checkpoint()))
            states = steps * problem.x.numel() * problem.x.element_size() / 2**20
            print(f"| {steps} | {'frozen' if frozen else 'trained'} | {peak:.0f} | {states:.2f} |", flush=True)


def noise(bench: Bench) -> None:
    print("\n| batch | seeds | drawn on the host, ms a step | lying on the device | over it |")
    print("|---|---|---|---|---|")
    frame, solver = sa.samplers.sde_dpm_solver_pp_2m(SCHEDULE)
    dtype = bench.dtypes[-1]
    network = bench.network(dtype).requires_grad_(False)
    for batch in (1, 8):
        problem = bench.problem(network, dtype, batch, bench.steps)
        for path, seeds in ((sa.BrownianPath(seed=0), "one"), (sa.BrownianPath(seed=range(batch)), "one a sample")):
            fixed = sa.FixedNoise(path.increments(frame, problem.grid, problem.x))
            drawn, lying = bench.seconds(
                [
                    lambda noise=each, problem=problem: problem.gradient(
                        sa.Checkpoint(), frame=frame, solver=solver, noise=noise
                    )
                    for each in (path, fixed)
                ]
            )
            each = 1e3 / bench.steps
            print(f"| {batch} | {seeds} | {drawn * each:.1f} | {lying * each:.1f} | {drawn / lying:.3f} |", flush=True)


def gradients(bench: Bench) -> None:
    print("\n| dtype of the network | x_T | words | weights | eps |")
    print("|---|---|---|---|---|")
    for dtype in dict.fromkeys((torch.float32, *bench.dtypes)):
        problem = bench.problem(bench.network(dtype), dtype, 1, 4)
        got, want = problem.gradient(sa.Checkpoint()), problem.gradient(sa.Direct())
        parts = [_apart(got[k : k + 1], want[k : k + 1]) for k in (0, 1)] + [_apart(got[2:], want[2:])]
        shown = " | ".join(f"{part:.1e}" for part in parts)
        print(f"| {named(dtype)} | {shown} | {torch.finfo(dtype).eps:.1e} |", flush=True)


def rounding(bench: Bench) -> None:
    print("\n| dtype of the network | kernels | a step from itself, at most | allowed |")
    print("|---|---|---|---|")
    for dtype in dict.fromkeys((torch.float32, *bench.dtypes)):
        problem = bench.problem(bench.network(dtype), dtype, 1, 4)
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            with torch.no_grad():
                found = [problem.denoiser(problem.x, 0.5, {"words": problem.words}) for _ in range(20)]
            torch.use_deterministic_algorithms(False)
            worst = max(_apart([other], [found[0]]) for other in found)
            allowed = round_off(torch.float32, bench.device.type, dtype != torch.float32)
            kernels = "deterministic" if deterministic else "as they are"
            print(f"| {named(dtype)} | {kernels} | {worst:.1e} | {allowed:.1e} |", flush=True)


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _apart(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> float:
    pairs = [(f.double(), w.double()) for f, w in zip(found, wanted, strict=True) if f is not None and w is not None]
    off, size = (sum(float(v.square().sum()) for v in vs) for vs in ([f - w for f, w in pairs], [w for _, w in pairs]))
    return math.sqrt(off / size) if size else 0.0


PARTS = {"floors": floors, "memory": memory, "noise": noise, "gradients": gradients, "rounding": rounding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="on the CPU, of toy size: does the script work?")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if not (arguments.trial or torch.cuda.is_available()):
        parser.exit(2, "there is no CUDA device here; --trial runs the script with toy sizes on the CPU\n")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic kernels ask for
    if arguments.trial:
        torch.set_num_threads(1)
    bench = Bench.trial() if arguments.trial else Bench.full()
    card = "CPU, toy size: a trial" if arguments.trial else torch.cuda.get_device_name()
    print(f"{card}; PyTorch {torch.__version__}")
    start = time.perf_counter()
    for part in arguments.parts:
        PARTS[part](bench)
    print(f"\n{time.perf_counter() - start:.0f} seconds in all")


if __name__ == "__main__":
    main()
