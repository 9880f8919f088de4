"""Bring your own solver: write it in a few lines, have it checked and measured, then differentiate through it.

The task: a published method that the library lacks, Roessler's SRA3 (Roessler, 2010; SIAM J. Numer. Anal. 48), of order
3 without noise and of strong order 1.5 with additive noise, as a ``Solver`` with its ``claims``. Then what a user does
with a method that he has just typed in from a paper:

1. ``check_solver`` holds it against the solver's contract and its own claims: nothing is said, so it holds. The same
   line on the same method with a slip in it, the path's time average taken as half of its increment, prints what is
   wrong and the smallest case that shows it. Without noise the slip is invisible.
2. ``convergence.measure`` measures the strong order of both on the same Brownian paths, and the order without noise.
3. ``sample`` draws handwritten digits with it, and ``Checkpoint()`` gives the exact gradient in the injected noise:
   Adam moves the noise until the samples are the digits that were wished for.

Look at: the slope of the method as typed is above 1.5, that with the slip is 1; and the digits below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.output import COLOURS, figure, main, show, table
from sdeadjoint.solvers import Drift, State
from sdeadjoint.testing import ContractError, check_solver

STEPS, ITERATIONS, RATE = 12, 40, 0.3  # of the samples, of the descent
SEED = 0
LEVEL = 0.2  # noise is moved while sigma / alpha is above: later noise would draw on the image, not choose it
WISHES = (0, 1, 2, 3, 4, 5)


@dataclass(frozen=True)
class SRA3(sa.Solver):
    """Roessler's SRA3 for ``dy = F(s, y) ds + dB``. With ``J = 1/h int (B_r - B_0) dr = dB/2 + H``:

    Y2 = y0 + ds F(s0, y0),      Y3 = y0 + ds/4 (F(s0, y0) + F(s1, Y2)) + 3/2 J,
    y1 = y0 + ds/6 (F(s0, y0) + F(s1, Y2) + 4 F(s0 + ds/2, Y3)) + dB
    """

    area: float = 1.0  # the part of H in J; 0 is the slip
    claims: ClassVar[sa.Claims] = sa.Claims(ode=3, strong=1.5, evaluations=3, levy="space-time")

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        ds, dB = interval.ds, interval.dB
        J = dB / 2 + self.area * interval.H
        F1 = drift(interval.s0, y)
        F2 = drift(interval.s1, y + ds * F1)
        F3 = drift(interval.at(0.5), y + ds / 4 * (F1 + F2) + 1.5 * J)
        return y + ds / 6 * (F1 + F2 + 4 * F3) + dB, state


TYPED, SLIPPED = SRA3(), SRA3(area=0.0)
BY_DESIGN = ("straight path",)  # stages that see no increment, as the second here, are this item's stated exception


@dataclass(frozen=True)
class Result:
    """``found``: what the check says of the slip. ``nearest``: the class of the data's image nearest to each sample.

    ``images``: (3, digits, 1, 8, 8), before, after and wished for.
    """

    found: str
    strong: sa.convergence.Convergence
    slipped: sa.convergence.Convergence
    ode: sa.convergence.Convergence
    losses: tuple[float, ...]
    nearest: tuple[int, ...]
    images: Tensor


def checked() -> str:
    """What ``check_solver`` says of the slip; of the method itself it says nothing."""
    check_solver(TYPED, skip=BY_DESIGN)
    try:
        check_solver(SLIPPED, skip=BY_DESIGN)
    except ContractError as error:
        return str(error)
    return ""


def measured(solver: SRA3, setting: sa.convergence.Setting) -> sa.convergence.Convergence:
    study = sa.convergence.Study(solver, setting=setting, steps=(16, 32, 64, 128, 256), paths=300)
    return sa.convergence.measure(study)


def descend() -> tuple[tuple[float, ...], tuple[int, ...], Tensor]:
    """Move the injected noise until the samples are images of the data: losses, nearest labels, before and after."""
    digits, schedule = sa.problems.Digits(), sa.VPLinear()
    denoiser, frame = digits.denoiser(schedule), sa.Frame(schedule, eta=1.0)
    grid = sa.uniform_logsnr(schedule, STEPS)
    targets = torch.stack([digits.images[digits.labels == label][0] for label in WISHES])
    x_T = torch.randn(targets.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    path, late = sa.BrownianPath(seed=SEED), schedule.lam(grid[1:]) > -torch.tensor(LEVEL).log()
    size = frame.noise_clock(grid).diff().sqrt().masked_fill(late, 0.0)[:, None, None, None, None]
    shifts = torch.zeros(STEPS, *x_T.shape, dtype=torch.float64, requires_grad=True)  # in standard deviations
    optimizer, losses, images = torch.optim.Adam([shifts], lr=RATE), [], []
    for _ in range(ITERATIONS + 1):
        noise = sa.ShiftedNoise(path, size * shifts)
        x = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=TYPED, noise=noise, adjoint=sa.Checkpoint())
        loss = (x - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        images.append(x.detach())
    distances = (images[-1][:, None] - digits.images).flatten(2).norm(dim=2)
    nearest = digits.labels[distances.argmin(1)]
    return tuple(losses), tuple(nearest.tolist()), torch.stack([images[0], images[-1], targets])


def draw(path: Path, result: Result) -> None:
    """``sa.convergence.draw_orders([result.strong, result.slipped], "orders.png")`` draws more of the left half."""
    with figure(path, 10.0, 4.2) as made:
        axis = made.add_axes((0.07, 0.13, 0.4, 0.76))
        for study, colour, name in ((result.strong, 0, "SRA3"), (result.slipped, 1, "with the slip")):
            label = f"{name}: order {study.slope:.2f}, claim {study.verdict.outcome}"
            axis.loglog(study.steps, study.rms, "o-", color=COLOURS[colour], label=label)
        claimed = [4 * result.strong.rms[0] * (result.strong.steps[0] / n) ** 1.5 for n in result.strong.steps]
        axis.loglog(result.strong.steps, claimed, ":", color="0.4", label="order 1.5, as claimed")
        axis.set(xlabel="steps", ylabel="rms error on the same paths")
        axis.set_xticks(result.strong.steps, [str(n) for n in result.strong.steps])
        axis.minorticks_off()
        axis.legend(frameon=False, loc="lower left")
        names = ("before", f"after {ITERATIONS}\ngradients", "wished for")
        for row, (name, images) in enumerate(zip(names, result.images, strict=True)):
            for k, image in enumerate(images):
                axis = made.add_axes((0.58 + 0.07 * k, 0.64 - 0.27 * row, 0.064, 0.25))
                show(axis, image)
                if k == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)


def run(out: Path) -> Result:
    found = checked()
    mild, line = sa.convergence.settings.mild(), sa.convergence.settings.line()
    strong, slipped, ode = measured(TYPED, mild), measured(SLIPPED, mild), measured(TYPED, line)
    result = Result(found, strong, slipped, ode, *descend())
    print(f"check_solver of the method: nothing is said.\nOf the one with the slip:\n\n{found}\n")
    rows = (
        (name, f"{study.verdict.claimed:g}", f"{study.slope:.2f}", "[{:.2f}, {:.2f}]".format(*study.interval), outcome)
        for name, study, outcome in (
            ("strong order", strong, strong.verdict.outcome),
            ("strong order with the slip", slipped, slipped.verdict.outcome),
            ("order without noise", ode, ode.verdict.outcome),
        )
    )
    table("Measured orders of SRA3", ("", "claimed", "measured", "95 % interval", "the claim"), rows)
    ends = (("before", result.losses[0]), (f"after {ITERATIONS} gradients", result.losses[-1]))
    table("Digits: mean squared distance from those wished for", ("", "loss"), ((n, f"{v:.4f}") for n, v in ends))
    draw(out / "own_solver.png", result)
    return result


if __name__ == "__main__":
    main(run, __doc__)
