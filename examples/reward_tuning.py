"""Tune a digits model by a reward: towards the best image, or towards the law that the reward defines?

The base model is scikit-learn's digits with its exact score. The reward is linear in the pixels and likes threes, so
that the law to be reached, ``p(x) e^r(x) / Z``, is known exactly: ``problems.Digits.tilted``. What is tuned is a small
network that is added to the base's prediction and starts at zero. All methods have the same number of images, of which
each iteration samples a fresh batch:

- DRaFT (Clark et al., 2024) descends on minus the reward through the whole sampler, with ``Checkpoint()``;
- its low-variance form, ``LowVariance()``, through the last step, from a few noisings of the sample;
- a policy gradient (Black et al., 2024) needs no gradient of the reward: log-probabilities of the steps;
- Adjoint Matching (Domingo-Enrich et al., 2025) fits the change to lean adjoints, with ``eta = 1``; and, to show why it
  has to be, with ``eta = 0.1``, where the sample remembers its start.

Measured on fresh samples, as means over seeds with 95 % intervals: the reward; the energy distance to samples of the
exact law (zero if the laws agree, negative by chance); diversity, the mean distance of two samples; calls of the base,
forward and backward, in an iteration, and its peak memory. ``exact`` is a sample of the law itself.

Look at the picture for threes that differ from each other beside threes that do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from examples.equilibrium import Mean
from examples.output import COLOURS, figure, main, show, table
from sdeadjoint.memory import PeakMemory

SCHEDULE = sa.VPLinear()
BANDWIDTH = 0.3
LIKED = 3  # the digit that the reward likes
SPREAD = 1.5  # the reward's standard deviation on the base's images
STEPS, BATCH, ITERATIONS, RATE = 10, 32, 60, 1e-2
SEEDS = range(3)
SAMPLES = 400
SHOWN = 12

EXACT, BASE = "exact", "base"


class Counted:
    """The base, which counts its evaluations and the cotangents pulled back through them."""

    def __init__(self, denoiser: sa.Denoiser) -> None:
        self.denoiser, self.calls, self.products = denoiser, 0, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.denoiser(x, float(t[0]))
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, cotangent: Tensor) -> None:
        self.products += 1


class Tuned(nn.Module):
    """``base(x, t) + sigma^2 change(x, lambda)``, the predicted image; the change starts at zero."""

    def __init__(self, base: Counted) -> None:
        super().__init__()
        self.base = base
        self.change = nn.Sequential(nn.Linear(65, 64), nn.SiLU(), nn.Linear(64, 64)).double()
        last = self.change[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = SCHEDULE.lam(t)[:, None] / 4
        change = self.change(torch.cat([x.flatten(1), level], 1)).reshape(x.shape)
        sigma = SCHEDULE.sigma(t)[:, None, None, None]
        return self.base(x, t) + sigma**2 * change


@dataclass(frozen=True)
class Task:
    """The data, the reward, the law that it defines, and a model that is to be tuned to it."""

    data: sa.problems.Digits
    reward: sa.problems.Quadratic
    goal: sa.problems.Mixture

    @classmethod
    def load(cls) -> Task:
        data = sa.problems.Digits(bandwidth=BANDWIDTH)
        direction = data.images[data.labels == LIKED].mean(0) - data.images.mean(0)
        scores = (data.images * direction).flatten(1).sum(1)
        reward = sa.problems.Quadratic(direction * (SPREAD / scores.std()))
        return cls(data, reward, data.tilted(reward))

    def model(self, seed: int) -> Model:
        base = Counted(self.data.denoiser(SCHEDULE))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Tuned(base)
        return Model(self, base, denoiser(base), denoiser(network), network)


def denoiser(network: Callable[[Tensor, Tensor], Tensor]) -> sa.Denoiser:
    return sa.Denoiser(network, SCHEDULE, "sample", time_dtype=torch.float64)


@dataclass(frozen=True)
class Model:
    """A base, and what it is tuned to."""

    task: Task
    counted: Counted
    base: sa.Denoiser
    tuned: sa.Denoiser
    network: Tuned

    def sample(self, n: int, seed: int, eta: float, **options: Any) -> Tensor:
        """Images, or their trajectories, a function of the seed."""
        rng = torch.Generator().manual_seed(seed)
        x_T = torch.randn(n, 1, 8, 8, generator=rng, dtype=torch.float64)
        noise = sa.BrownianPath(seed)
        return sa.sample(self.tuned, x_T, noise=noise, solver=sa.Euler(), **how(eta), **options)


def how(eta: float) -> dict[str, Any]:
    """Frame and grid: as keyword arguments."""
    frame = sa.Frame(SCHEDULE, eta=eta)
    grid = sa.uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(2.5)))
    return {"frame": frame, "grid": grid}


def through_the_sampler(model: Model, seed: int, adjoint: Callable[[int], sa.Adjoint]) -> Tensor:
    """Minus the mean reward of a batch."""
    x = model.sample(BATCH, seed, 1.0, adjoint=adjoint(seed))
    return -model.task.reward(x).mean()


def policy_gradient(model: Model, seed: int) -> Tensor:
    """Minus the log-probabilities of a batch's paths, weighted by how good their images are."""
    with torch.no_grad():
        path = model.sample(BATCH, seed, 1.0, trajectory=True)
    reward = model.task.reward(path[-1])
    advantage = (reward - reward.mean()) / reward.std()
    log_prob = sa.transition_log_prob(model.tuned, path, solver=sa.Euler(), **how(1.0))
    return -(advantage * log_prob.sum(0)).mean()


def matched(model: Model, seed: int, eta: float) -> Tensor:
    """The Adjoint Matching loss of a batch."""
    with torch.no_grad():
        path = model.sample(BATCH, seed, eta, trajectory=True)
    x = path[-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.task.reward(x).sum(), x)
    adjoints = sa.lean_adjoint(model.base, path, -slope, solver=sa.Euler(), **how(eta))
    loss = sa.adjoint_matching_loss(model.tuned, model.base, path, adjoints, **how(eta))
    return loss.mean()


Loss = Callable[[Model, int], Tensor]
METHODS: dict[str, tuple[Loss, float]] = {
    "DRaFT": (partial(through_the_sampler, adjoint=lambda seed: sa.Checkpoint()), 1.0),
    "DRaFT-LV": (partial(through_the_sampler, adjoint=lambda seed: sa.LowVariance(seed=seed)), 1.0),
    "policy gradient": (policy_gradient, 1.0),
    "Adjoint Matching": (partial(matched, eta=1.0), 1.0),
    "Adjoint Matching, eta = 0.1": (partial(matched, eta=0.1), 0.1),
}
"""Each with the eta that it samples with."""


class Row(NamedTuple):
    """What one method came to with one seed; no calls and memory where nothing is tuned."""

    reward: float
    distance: float
    diversity: float
    calls: int
    products: int
    peak: int
    images: Tensor


class Result(NamedTuple):
    """Rows by method, one for each seed."""

    rows: dict[str, list[Row]]

    def mean(self, name: str, value: Callable[[Row], float]) -> Mean:
        return Mean.of([value(row) for row in self.rows[name]])


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of all pairs."""
    return torch.cdist(a.flatten(1), b.flatten(1))


def own(a: Tensor) -> float:
    """The mean distance of two different samples."""
    return float(pairwise(a, a).sum() / (len(a) * (len(a) - 1)))


def judged(task: Task, images: Tensor, seed: int) -> tuple[float, float, float]:
    """Reward, energy distance to the exact law (unbiased), and diversity."""
    exact = task.goal.sample(SAMPLES, seed=10_000 + seed)
    distance = 2 * float(pairwise(images, exact).mean()) - own(images) - own(exact)
    return float(task.reward(images).mean()), distance, own(images)


def tuned(task: Task, loss: Loss, eta: float, seed: int) -> Row:
    """Tune, count the last iteration, and judge fresh samples."""
    model = task.model(seed)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=RATE)
    for iteration in range(ITERATIONS):
        value = loss(model, 1000 * seed + iteration)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    counted = model.counted
    counted.calls = counted.products = 0
    loss(model, seed).backward()
    calls, products = counted.calls, counted.products
    optimizer.zero_grad()
    with PeakMemory() as memory:
        loss(model, seed).backward()
    with torch.no_grad():
        images = model.sample(SAMPLES, 50_000 + seed, eta)
    return Row(*judged(task, images, seed), calls, products, memory.peak, images)


def untuned(task: Task, name: str, seed: int) -> Row:
    """The exact law, or the base."""
    if name == EXACT:
        images = task.goal.sample(SAMPLES, seed=seed)
    else:
        with torch.no_grad():
            images = task.model(seed).sample(SAMPLES, 50_000 + seed, 1.0)
    return Row(*judged(task, images, seed), 0, 0, 0, images)


def run(out: Path) -> Result:
    """Tune by all methods for all seeds, print the table, and draw ``reward_tuning.png``."""
    task = Task.load()
    rows = {name: [untuned(task, name, seed) for seed in SEEDS] for name in (EXACT, BASE)}
    for name, (loss, eta) in METHODS.items():
        rows[name] = [tuned(task, loss, eta, seed) for seed in SEEDS]
    result = Result(rows)
    report(result)
    draw(out / "reward_tuning.png", result)
    return result


def report(result: Result) -> None:
    """The table, and two sentences."""

    def shown(name: str, value: Callable[[Row], float]) -> str:
        mean = result.mean(name, value)
        return f"{mean.value:.2f} ± {mean.value - mean.low:.2f}"

    lines = []
    for name, rows in result.rows.items():
        costs = ["", "", ""]
        if rows[0].calls:
            peak = statistics.fmean(row.peak for row in rows) / 1e6
            costs = [str(rows[0].calls), str(rows[0].products), f"{peak:.1f}"]
        values: list[Callable[[Row], float]] = [
            lambda row: row.reward,
            lambda row: row.distance,
            lambda row: row.diversity,
        ]
        lines.append((name, *(shown(name, value) for value in values), *costs))
    columns = ("method", "reward", "energy distance", "diversity", "calls", "products", "MB")
    images = ITERATIONS * BATCH
    table(f"After {images} images, {len(SEEDS)} seeds; calls and memory of an iteration", columns, lines)
    variance = float(result.rows[EXACT][0].images.var(0).mean())
    lost = sa.memoryless_deficit(**how(0.1), variance=variance)
    print(f"Of Gaussian data with the digits' variance, {variance:.2f}, eta = 0.1 loses {lost:.0%} of a tilt.")


def draw(path: Path, result: Result) -> None:
    """Samples of each method beside the exact law's, and rewards beside diversity."""
    with figure(path, 10.0, 4.2) as made:
        parts: Any = made.subfigures(1, 2, width_ratios=(2.0, 1.0))
        images, chart = parts
        place = {"left": 0.27, "right": 0.98, "top": 0.96, "bottom": 0.04, "wspace": 0.05, "hspace": 0.1}
        axes = images.subplots(len(result.rows), SHOWN, gridspec_kw=place)
        for line, (name, rows) in zip(axes, result.rows.items(), strict=True):
            for axis, image in zip(line, rows[0].images, strict=False):
                show(axis, image)
            line[0].text(-0.4, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
        axis = chart.subplots(gridspec_kw={"left": 0.17, "right": 0.97, "top": 0.95, "bottom": 0.14})
        for i, (name, rows) in enumerate(result.rows.items()):
            points = [(row.reward, row.diversity) for row in rows]
            marker = "*" if name == EXACT else "o"
            colour = "black" if name == EXACT else COLOURS[i % len(COLOURS)]
            axis.plot(*zip(*points, strict=True), marker, color=colour, label=name, alpha=0.8)
        axis.set(xlabel="mean reward", ylabel="diversity")
        axis.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    main(run, __doc__)
