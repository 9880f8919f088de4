"""What a gradient costs beside arithmetic, for networks of small operations: ``python -m tests.benchmarks.host_cost``.

A U-Net and a transformer of diffusers, with all their modules and a few channels, so that Python and autograd are what
is timed: the host's part of a step, which an accelerator waits for if its own part is shorter. All run in turn in one
process on one thread, and the least of the rounds is taken, as noise only adds:

- by hand: states kept under ``no_grad``, each step recomputed, ``autograd.grad``, the weights' gradients added up;
- checkpoint loop: ``torch.utils.checkpoint`` around each step;
- ours: ``Checkpoint()``, and ``Checkpoint(pure=True)``.

``--frozen`` freezes the weights: the gradient is then that of x_T and of the conditioning.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sdeadjoint as sa

SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.ddim(SCHEDULE)


class UNet(nn.Module):
    """The modules of Stable Diffusion's U-Net, 32 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.model = UNet2DConditionModel(
            sample_size=8,
            layers_per_block=2,
            block_out_channels=(32, 32, 32, 32),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.model(x, 999 * t, encoder_hidden_states=c, return_dict=False)[0]
        return out


class Transformer(nn.Module):
    """The modules of PixArt's transformer, with 12 blocks."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import PixArtTransformer2DModel

        self.model = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=12,
            cross_attention_dim=32,
            sample_size=8,
            caption_channels=32,
            use_additional_conditions=False,
        )

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.model(x, encoder_hidden_states=c, timestep=999 * t, return_dict=False)[0]
        return out


class Case:
    """One gradient of the squares of a DDIM sample, by several programs."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        self.network, self.steps = network, steps
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.grid = sa.uniform_logsnr(SCHEDULE, steps)
        self.alpha, self.sigma = SCHEDULE.alpha(self.grid).tolist(), SCHEDULE.sigma(self.grid).tolist()
        self.x, self.c = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 32)

    def step(self, n: int, x: Tensor, c: Tensor) -> Tensor:
        noise = self.network(x, self.grid[n].float().expand(1), c)
        ratio = self.alpha[n + 1] / self.alpha[n]
        return ratio * x + (self.sigma[n + 1] - ratio * self.sigma[n]) * noise

    def forward(self) -> None:
        x = self.x
        with torch.no_grad():
            for n in range(self.steps):
                x = self.step(n, x, self.c)

    def by_hand(self) -> Tensor:
        states = [self.x]
        with torch.no_grad():
            for n in range(self.steps):
                states.append(self.step(n, states[-1], self.c))
        c = self.c.clone().requires_grad_()
        adjoint, total = 2 * states[-1], [torch.zeros_like(tensor) for tensor in (c, *self.weights)]
        for n in reversed(range(self.steps)):
            x = states[n].detach().requires_grad_()
            adjoint, *parts = torch.autograd.grad(self.step(n, x, c), [x, c, *self.weights], adjoint)
            for whole, part in zip(total, parts, strict=True):
                whole += part
        return adjoint

    def by_checkpoints(self) -> Tensor:
        start, c = self.x.clone().requires_grad_(), self.c.clone().requires_grad_()
        x: Any = start
        for n in range(self.steps):
            x = checkpoint(self.step, n, x, c, use_reentrant=False)
        return self._gradient(x, start)

    def sample(self, adjoint: sa.Adjoint, start: Tensor, c: Tensor) -> Tensor:
        denoiser = sa.Denoiser(self.network, SCHEDULE, "epsilon")
        return sa.sample(
            denoiser, start, frame=FRAME, grid=self.grid, solver=SOLVER, cond={"c": c}, adjoint=adjoint
        )

    def ours(self, adjoint: sa.Adjoint) -> Tensor:
        start, c = self.x.clone().requires_grad_(), self.c.clone().requires_grad_()
        return self._gradient(self.sample(adjoint, start, c), start)

    def ours_forward(self, adjoint: sa.Adjoint) -> None:
        self.sample(adjoint, self.x.clone().requires_grad_(), self.c)

    def _gradient(self, sample: Tensor, start: Tensor) -> Tensor:
        sample.square().sum().backward()
        self.network.zero_grad(set_to_none=True)
        assert start.grad is not None
        return start.grad


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Milliseconds a step."""
    programs: dict[str, Callable[[], object]] = {
        "by hand": case.by_hand,
        "checkpoint loop": case.by_checkpoints,
        "Checkpoint()": lambda: case.ours(sa.Checkpoint()),
        "Checkpoint(pure=True)": lambda: case.ours(sa.Checkpoint(pure=True)),
        "forward, no_grad": case.forward,
        "forward, Checkpoint()": lambda: case.ours_forward(sa.Checkpoint()),
        "forward, Checkpoint(pure=True)": lambda: case.ours_forward(sa.Checkpoint(pure=True)),
    }
    least = dict.fromkeys(programs, float("inf"))
    for k in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            if k:  # the first round warms up
                least[name] = min(least[name], (time.perf_counter() - start) / case.steps * 1e3)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frozen", action="store_true", help="freeze the weights")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for make in (UNet, Transformer):
        torch.manual_seed(0)
        case = Case(make().eval().requires_grad_(not options.frozen), options.steps)
        hand, found = case.by_hand(), case.ours(sa.Checkpoint(pure=True))
        print(f"{make.__name__}, {options.steps} steps, weights {'frozen' if options.frozen else 'trained'}", end="; ")
        print(f"gradients agree to {float((hand - found).norm() / hand.norm()):.0e}")
        for name, ms in (least := measure(case, options.rounds)).items():
            floor = least["forward, no_grad" if name.startswith("forward") else "by hand"]
            print(f"  {name:32}{ms:8.1f} ms a step {ms / floor:8.2f}")


if __name__ == "__main__":
    main()
