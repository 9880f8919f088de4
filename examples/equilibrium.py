"""Equilibria or trajectories? The digits by a DEQ, two neural ODEs, and HomoODE with and without its shared start.

HomoODE (Ding, Cui, Wang and Ye, NeurIPS 2023) replaces the search for an equilibrium ``z = f(z; x)`` by a trajectory
``z' = f(z; x)`` that ends there, from a start that all inputs share. Its abstract says that it is more accurate than
deep equilibrium models and neural ODEs, at less memory, and that a learned start makes it faster. Here each model has
about nine thousand weights, sees the first 1437 of scikit-learn's digits in 120 batches, and is tested on the other
360, which are by other writers.

Measured, as means over five seeds with 95 % intervals (Student's t, of paired differences for the claims): accuracy;
evaluations of f in a training gradient of 128 images, forward, and backward together with the cotangents that are
pulled back; its peak memory; the gradient's error, relative to float64 autograd through all of the same steps, or
through 400 damped iterations for the DEQ; the length of a trajectory, and the steps that Dormand and Prince's method
would choose for it at the published tolerance of 1e-3. A second table has the gradients that are published for the
models, at the trained weights: one step for the DEQ, the continuous adjoint for HomoODE.

Look at the picture for accuracies that overlap, and at the trajectories of three digits, which leave one point for
different ends: with the learned start they are shorter.
"""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES
from examples.digits.implicit import (
    BATCH,
    AugmentedNeuralODE,
    DeepEquilibrium,
    HomoODE,
    Model,
    NeuralODE,
    Trajectory,
    train,
)
from examples.output import COLOURS, figure, main, table
from sdeadjoint import equilibria
from sdeadjoint.memory import PeakMemory

SEEDS = range(5)
PUBLISHED = 1e-3  # tolerance of HomoODE's solver
DRAWN = (0, 1, 4)  # digits whose trajectories are drawn

DEQ, NODE, ANODE, HOMO, SHARED = "DEQ", "neural ODE", "augmented neural ODE", "HomoODE", "HomoODE, shared start"
MODELS: dict[str, Callable[[], Model]] = {
    DEQ: DeepEquilibrium,
    NODE: NeuralODE,
    ANODE: AugmentedNeuralODE,
    HOMO: HomoODE,
    SHARED: lambda: HomoODE(shared=True),
}


class Cost(NamedTuple):
    """Of one training gradient: evaluations of f, products backward, peak bytes; and its relative error."""

    forward: int
    backward: int
    peak: int
    error: float


class Row(NamedTuple):
    """One model, one seed; what is said of trajectories is NaN for the DEQ."""

    weights: int
    accuracy: float
    cost: Cost
    missed: int
    length: float
    steps: float


class Mean(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        value, n = statistics.fmean(values), len(values)
        half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
        return cls(value, value - half, value + half)


class Claim(NamedTuple):
    """What the abstract says, the difference that would have to be positive, and what came out."""

    text: str
    difference: Mean
    unit: str

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "confirmed"
        return "contradicted" if self.difference.high < 0 else "not decided"


class Result(NamedTuple):
    """Rows by model, one for each seed; costs of other gradients; claims; two sets of trajectories."""

    rows: dict[str, list[Row]]
    gradients: dict[str, Cost]
    claims: list[Claim]
    paths: dict[str, Tensor]


class Data(NamedTuple):
    """Images (n, 64) in [-1, 1], float32, and labels (n,): to train, and to test."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls) -> Data:
        digits = sa.problems.Digits()
        images, n = digits.images.flatten(1).float(), TRAINING_IMAGES
        return cls(images[:n], digits.labels[:n], images[n:], digits.labels[n:])

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """The images on which gradients are measured."""
        return self.images[:BATCH], self.labels[:BATCH]


@contextmanager
def unreached_is_counted() -> Iterator[None]:
    """Equilibria that are not reached are counted by the model, and are no warnings here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", equilibria.EquilibriumWarning)
        yield


def gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Of the loss in all weights, as one vector."""
    loss = functional.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def exact(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """The same in float64, by plain autograd through every step."""
    double, x = copy.deepcopy(model).double(), images.double()
    if isinstance(double, Trajectory):
        double.homotopy.adjoint = sa.Direct()
        return gradient(double, x, labels)
    assert isinstance(double, DeepEquilibrium)
    loss = functional.cross_entropy(double.head(double.unrolled(x)), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(double.parameters()))])


def cost(model: Model, images: Tensor, labels: Tensor) -> Cost:
    """Measure one training gradient."""
    f = model.f
    f.evaluations = f.products = 0
    loss = functional.cross_entropy(model(images), labels)
    forward = f.evaluations
    found = torch.autograd.grad(loss, list(model.parameters()))
    backward = f.evaluations - forward + f.products
    with PeakMemory() as memory:
        gradient(model, images, labels)
    want = exact(model, images, labels)
    error = torch.cat([g.flatten() for g in found]).double() - want
    return Cost(forward, backward, memory.peak, float(error.norm() / want.norm()))


@torch.no_grad()
def measured(model: Model, data: Data) -> tuple[float, float, float]:
    """Accuracy on the test images, the mean length of their trajectories, and steps at the published tolerance."""
    x = data.test_images
    accuracy = float((model(x).argmax(1) == data.test_labels).double().mean())
    if not isinstance(model, Trajectory):
        return accuracy, math.nan, math.nan
    length = float(model.path(x).diff(dim=0).norm(dim=2).sum(0).mean())
    clock = sa.adaptive_clock(
        model.homotopy.drift, model.start(x), 0.0, 1.0, rtol=PUBLISHED, atol=PUBLISHED, cond=model.cond(x)
    )
    return accuracy, length, float(len(clock) - 1)


def made(name: str, data: Data, seed: int) -> tuple[Model, Row]:
    """A trained model, and its row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]()
    train(model, data.images, data.labels, seed)
    missed = model.missed if isinstance(model, DeepEquilibrium) else 0
    accuracy, length, steps = measured(model, data)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return model, Row(weights, accuracy, cost(model, *data.batch), missed, length, steps)


def other_gradients(models: dict[str, Model], data: Data) -> dict[str, Cost]:
    """The gradients that are published for the models, at the weights of the first seed."""
    deq, homo = models[DEQ], models[HOMO]
    assert isinstance(deq, DeepEquilibrium)
    assert isinstance(homo, HomoODE)
    found = {"DEQ: implicit": cost(deq, *data.batch)}
    for k in (1, 5):
        deq.gradient = equilibria.OneStep() if k == 1 else equilibria.Phantom(k, 0.5)
        found[f"DEQ: {deq.gradient!r}"] = cost(deq, *data.batch)
    found["HomoODE: Checkpoint()"] = cost(homo, *data.batch)
    for states in ("recorded", "reconstructed"):
        homo.homotopy.adjoint = sa.ContinuousAdjoint(sa.Heun(), states=states)
        found[f"HomoODE: continuous, {states}"] = cost(homo, *data.batch)
    return found


def claims_of(rows: dict[str, list[Row]]) -> list[Claim]:
    """The abstract's claims as differences that would have to be positive, paired by seed."""

    def compared(text: str, unit: str, worse: str, better: str, value: Callable[[Row], float]) -> Claim:
        pairs = zip(rows[worse], rows[better], strict=True)
        return Claim(text, Mean.of([value(a) - value(b) for a, b in pairs]), unit)

    accuracy = [
        compared(f"more accurate than the {name}", "points", name, HOMO, lambda row: -100 * row.accuracy)
        for name in (DEQ, NODE, ANODE)
    ]
    memory = [
        compared(f"less memory than the {name}", "kB", name, HOMO, lambda row: row.cost.peak / 1e3)
        for name in (DEQ, NODE, ANODE)
    ]
    start = [
        compared("the shared start shortens trajectories", "", HOMO, SHARED, lambda row: row.length),
        compared("the shared start saves steps", "steps", HOMO, SHARED, lambda row: row.steps),
    ]
    return [*accuracy, *memory, *start]


def report(result: Result) -> None:
    """The tables, and a sentence for each claim."""
    lines = []
    for name, rows in result.rows.items():
        accuracy, costs = Mean.of([100 * row.accuracy for row in rows]), [row.cost for row in rows]
        error = max(c.error for c in costs)
        lines.append((
            name, str(rows[0].weights), f"{accuracy.value:.1f} ± {accuracy.value - accuracy.low:.1f} %",
            f"{statistics.fmean(c.forward for c in costs):.0f}", f"{statistics.fmean(c.backward for c in costs):.0f}",
            f"{statistics.fmean(c.peak for c in costs) / 1e3:.0f} kB", f"{error:.0e}",
            *("" if math.isnan(v) else f"{v:.1f}" for v in
              (statistics.fmean(row.length for row in rows), statistics.fmean(row.steps for row in rows))),
        ))  # fmt: skip
    columns = ("model", "weights", "accuracy", "calls", "backward", "memory", "gradient error", "length", "steps")
    table(f"Digits of other writers, {len(SEEDS)} seeds; gradients of {BATCH} images", columns, lines)
    missed = sum(row.missed for row in result.rows[DEQ])
    print(f"The DEQ did not reach its tolerance for {missed} samples of all batches, forward or backward.\n")
    table(
        "Other gradients at the trained weights of the first seed",
        ("gradient", "calls", "backward", "memory", "error"),
        [
            (name, str(c.forward), str(c.backward), f"{c.peak / 1e3:.0f} kB", f"{c.error:.0e}")
            for name, c in result.gradients.items()
        ],
    )
    for claim in result.claims:
        value, low, high = claim.difference
        print(f"HomoODE, {claim.text}: {claim.verdict}, by {value:.2f} [{low:.2f}, {high:.2f}] {claim.unit}")


def draw(path: Path, result: Result, labels: Tensor) -> None:
    """Accuracies of all seeds, and trajectories in the plane of their ends' first two principal components."""
    with figure(path, 10.0, 3.4) as made:
        axes = made.subplots(1, 3, gridspec_kw={"width_ratios": (1.1, 1, 1)})
        made.subplots_adjust(0.15, 0.14, 0.99, 0.88, 0.18)
        for i, (name, rows) in enumerate(result.rows.items()):
            mean, y = Mean.of([100 * row.accuracy for row in rows]), len(result.rows) - 1 - i
            axes[0].plot([mean.low, mean.high], [y, y], color=COLOURS[i], lw=2)
            axes[0].plot([100 * row.accuracy for row in rows], [y] * len(rows), "o", color=COLOURS[i], mfc="none")
            axes[0].text(-0.03, y, name, ha="right", va="center", transform=axes[0].get_yaxis_transform())
        axes[0].set(yticks=[], title="accuracy in %, other writers")
        for axis, (name, states) in zip(axes[1:], result.paths.items(), strict=True):
            centre = states[-1].mean(0)
            plane = torch.linalg.svd(states[-1] - centre, full_matrices=False)[2][:2]
            flat = (states - centre) @ plane.T
            for k in range(flat.shape[1]):
                colour = COLOURS[DRAWN.index(int(labels[k]))]
                axis.plot(*flat[:, k].T.numpy(), color=colour, lw=0.6, alpha=0.7)
                axis.plot(*flat[-1, k].numpy(), ".", color=colour, ms=4)
            axis.plot(*flat[0, 0].numpy(), "k*", ms=9)
            axis.set(xticks=[], yticks=[], title=name)
            axis.set_aspect("equal", "datalim")
        axes[1].set_xlabel("digits " + ", ".join(map(str, DRAWN)) + "; the star is the start")


def run(out: Path) -> Result:
    """Train all models for all seeds, print the tables, and draw ``equilibrium.png``."""
    data = Data.load()
    rows: dict[str, list[Row]] = {name: [] for name in MODELS}
    first: dict[str, Model] = {}
    with unreached_is_counted():
        for seed in SEEDS:
            for name, of_model in rows.items():
                model, row = made(name, data, seed)
                of_model.append(row)
                first.setdefault(name, model)
        shown = torch.isin(data.test_labels, torch.tensor(DRAWN)).nonzero().flatten()[:45]
        with torch.no_grad():
            paths = {name: first[name].path(data.test_images[shown]) for name in (HOMO, SHARED)}  # type: ignore[operator]
        gradients = other_gradients(first, data)
    result = Result(rows, gradients, claims_of(rows), paths)
    report(result)
    draw(out / "equilibrium.png", result, data.test_labels[shown])
    return result


if __name__ == "__main__":
    main(run, __doc__)
