"""Equilibria or trajectories? Digits by a DEQ, two neural ODEs, and HomoODE with and without its shared start.

HomoODE (Ding, Cui, Wang and Ye, NeurIPS 2023) replaces the search for an equilibrium ``z = f(z; x)`` by a trajectory
``z' = f(z; x)`` that ends there, from a start that all inputs share. Its abstract says that it is more accurate than
deep equilibrium models (DEQs) and neural ODEs, at less memory, and that a learned start makes it faster. Here each
model has about nine thousand weights, sees the first 1437 of scikit-learn's digits in 100 batches, and is tested on
the other 360, which are by other writers.

Measured, as means over five seeds with 95 % intervals (Student's t, of paired differences for the claims): accuracy;
evaluations of f in a training gradient of 128 images, forward, and backward together with the cotangents that are
pulled back; its peak memory; the gradient's error, relative to float64 autograd through all of the same steps, or
through damped iterations until they stand still for the DEQ; the length of a trajectory, and the steps that Dormand
and Prince's method chooses for it at a tolerance of 1e-5. A second table has other gradients at the trained weights:
one step and five for the DEQ, and another search for it; the published continuous adjoint for HomoODE.

What came out on this task, and is printed with its intervals: HomoODE's accuracy cannot be told from that of the DEQ
and the neural ODEs. It takes less memory than neural ODEs, whose state is the image, and than a DEQ whose search
remembers its iterates; a DEQ by damped iteration, which remembers nothing, takes less than HomoODE. The shared start
shortens trajectories, by one per cent. At the published tolerance of 1e-3 it also saves six steps of ten, but only
because an adaptive solver begins with a tiny step where the state is zero: told to begin with a tenth, at 1e-5, it
takes six steps from either start.

Look at the picture for accuracies that overlap, and for the trajectories of three digits, which leave one point for
different ends.
"""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
PUBLISHED, STRICT = 1e-3, 1e-5  # tolerances: of HomoODE's solver, and of the column "steps"
FIRST = 0.1  # the first step that is tried under the strict one
DRAWN = (0, 1, 4)  # digits whose trajectories are drawn
TRAJECTORIES = 45  # of them

DEQ, NODE, ANODE = "DEQ", "neural ODE", "augmented neural ODE"
HOMO, SHARED = "HomoODE", "HomoODE, shared start"
MODELS: dict[str, Callable[[], Model]] = {
    DEQ: DeepEquilibrium,
    NODE: NeuralODE,
    ANODE: AugmentedNeuralODE,
    HOMO: HomoODE,
    SHARED: lambda: HomoODE(shared=True),
}


class Cost(NamedTuple):
    """Of one training gradient: evaluations of f, evaluations and products backward, peak bytes.

    And its relative error.
    """

    forward: int
    backward: int
    peak: int
    error: float


class Way(NamedTuple):
    """The trajectories of the test images; NaN for the DEQ, which has none.

    Args:
        length: their mean.
        steps: chosen at the strict tolerance, beginning with ``FIRST``.
        usual: chosen at the published tolerance, beginning as solvers usually do.
    """

    length: float = math.nan
    steps: float = math.nan
    usual: float = math.nan


class Row(NamedTuple):
    """One model, one seed; ``missed`` counts samples that did not reach the DEQ's tolerance."""

    weights: int
    accuracy: float
    cost: Cost
    missed: int
    way: Way


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
    """What is claimed, the difference that would have to be positive, and what came out."""

    text: str
    difference: Mean
    unit: str

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "confirmed"
        return "contradicted" if self.difference.high < 0 else "not decided"

    def __str__(self) -> str:
        value, low, high = self.difference
        measured = f"{value:.2f} {self.unit}, 95 % interval {low:.2f} to {high:.2f}"
        return f"{self.text}: {self.verdict} ({measured})"


class Result(NamedTuple):
    """Rows by model, one for each seed; costs of other gradients; claims; sets of trajectories."""

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

    @property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """The test images whose trajectories are drawn, and their labels."""
        places = torch.isin(self.test_labels, torch.tensor(DRAWN)).nonzero().flatten()
        return self.test_images[places[:TRAJECTORIES]], self.test_labels[places[:TRAJECTORIES]]


@contextmanager
def unreached_is_counted() -> Iterator[None]:
    """Equilibria that are not reached are counted by the model, and are no warnings here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", equilibria.EquilibriumWarning)
        yield


def gradient(model: Model, logits: Tensor, labels: Tensor) -> Tensor:
    """Of the loss in all weights, as one vector."""
    loss = functional.cross_entropy(logits, labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def exact(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """The same in float64, by plain autograd through every step."""
    double, x = copy.deepcopy(model).double(), images.double()
    if isinstance(double, Trajectory):
        double.homotopy.adjoint = sa.Direct()
        return gradient(double, double(x), labels)
    assert isinstance(double, DeepEquilibrium)
    return gradient(double, double.head(double.unrolled(x)), labels)


def cost(model: Model, images: Tensor, labels: Tensor) -> Cost:
    """Measure one training gradient."""
    f = model.f
    f.tally.clear()
    logits = model(images)
    forward = f.tally["evaluations"]
    found = gradient(model, logits, labels)
    backward = f.tally.total() - forward
    del logits
    with PeakMemory() as memory:
        gradient(model, model(images), labels)
    want = exact(model, images, labels)
    return Cost(forward, backward, memory.peak, float((found - want).norm() / want.norm()))


@torch.no_grad()
def accuracy(model: Model, data: Data) -> float:
    return float((model(data.test_images).argmax(1) == data.test_labels).double().mean())


@torch.no_grad()
def way(model: Model, x: Tensor) -> Way:
    """Measure the trajectories of images x."""
    if not isinstance(model, Trajectory):
        return Way()

    def steps(tol: float, first: float | None) -> float:
        clock = sa.adaptive_clock(
            model.homotopy.drift,
            model.start(x),
            0.0,
            1.0,
            rtol=tol,
            atol=tol,
            cond=model.cond(x),
            first_step=first,
        )
        return float(len(clock) - 1)

    length = float(model.path(x).diff(dim=0).norm(dim=2).sum(0).mean())
    return Way(length, steps(STRICT, FIRST), steps(PUBLISHED, None))


def made(name: str, data: Data, seed: int) -> tuple[Model, Row]:
    """A trained model, and its row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]()
    train(model, data.images, data.labels, seed)
    missed = model.missed if isinstance(model, DeepEquilibrium) else 0
    weights = sum(parameter.numel() for parameter in model.parameters())
    measured = accuracy(model, data), cost(model, *data.batch)
    return model, Row(weights, *measured, missed, way(model, data.test_images))


def other_gradients(models: dict[str, Model], data: Data) -> dict[str, Cost]:
    """Other ways to the gradients of two models, at the weights of the first seed."""
    deq, homo = models[DEQ], models[HOMO]
    assert isinstance(deq, DeepEquilibrium)
    assert isinstance(homo, HomoODE)
    found = {f"DEQ: implicit, {type(deq.method).__name__}": cost(deq, *data.batch)}
    for gradient_of in (equilibria.OneStep(), equilibria.Phantom(5, 0.5)):
        deq.gradient = gradient_of
        found[f"DEQ: {deq.gradient!r}"] = cost(deq, *data.batch)
    deq.gradient, deq.method = equilibria.Implicit(), equilibria.FixedPoint(0.5)
    found["DEQ: implicit, FixedPoint(0.5)"] = cost(deq, *data.batch)
    found["HomoODE: Checkpoint()"] = cost(homo, *data.batch)
    for states in ("recorded", "reconstructed"):
        homo.homotopy.adjoint = sa.ContinuousAdjoint(sa.Heun(), states=states)
        found[f"HomoODE: continuous, {states}"] = cost(homo, *data.batch)
    return found


def claims_of(rows: dict[str, list[Row]]) -> list[Claim]:
    """The abstract's claims as differences that would have to be positive, paired by seed."""

    def claim(text: str, unit: str, a: str, b: str, value: Callable[[Row], float]) -> Claim:
        pairs = zip(rows[a], rows[b], strict=True)
        return Claim(text, Mean.of([value(x) - value(y) for x, y in pairs]), unit)

    def points(row: Row) -> float:
        return 100 * row.accuracy

    def kilobytes(row: Row) -> float:
        return row.cost.peak / 1e3

    others = (DEQ, NODE, ANODE)
    start = "the shared start"
    return [
        *(claim(f"HomoODE is more accurate than the {b}", "points", HOMO, b, points) for b in others),
        *(claim(f"HomoODE needs less memory than the {b}", "kB", b, HOMO, kilobytes) for b in others),
        claim(f"{start} is more accurate", "points", SHARED, HOMO, points),
        claim(f"{start} shortens trajectories", "in length", HOMO, SHARED, lambda r: r.way.length),
        claim(f"{start} saves steps at {PUBLISHED:g}", "steps", HOMO, SHARED, lambda r: r.way.usual),
        claim(
            f"{start} saves steps at {STRICT:g}, beginning with {FIRST:g}",
            "steps",
            HOMO,
            SHARED,
            lambda r: r.way.steps,
        ),
    ]


def cells(rows: Sequence[Row]) -> list[str]:
    """A model's line of the table."""

    def mean(value: Callable[[Row], float], form: str) -> str:
        found = statistics.fmean(map(value, rows))
        return "" if math.isnan(found) else format(found, form)

    share = Mean.of([100 * row.accuracy for row in rows])
    return [
        str(rows[0].weights),
        f"{share.value:.1f} ± {share.value - share.low:.1f} %",
        mean(lambda row: row.cost.forward, ".0f"),
        mean(lambda row: row.cost.backward, ".0f"),
        mean(lambda row: row.cost.peak / 1e3, ".0f"),
        format(max(row.cost.error for row in rows), ".0e"),
        mean(lambda row: row.way.length, ".1f"),
        mean(lambda row: row.way.steps, ".1f"),
    ]


def report(result: Result) -> None:
    """The tables, and a sentence for each claim."""
    costs = ("calls", "backward", "kB")
    table(
        f"Digits of other writers, {len(SEEDS)} seeds; gradients of {BATCH} images",
        ("model", "weights", "accuracy", *costs, "worst gradient error", "length", "steps"),
        [(name, *cells(rows)) for name, rows in result.rows.items()],
    )
    missed = sum(row.missed for row in result.rows[DEQ])
    print(f"The DEQ missed its tolerance for {missed} samples in training, forward or backward.\n")
    table(
        "Other gradients at the trained weights of the first seed",
        ("gradient", *costs, "error"),
        [
            (name, str(c.forward), str(c.backward), f"{c.peak / 1e3:.0f}", f"{c.error:.0e}")
            for name, c in result.gradients.items()
        ],
    )
    for claim in result.claims:
        print(claim)


def draw(path: Path, result: Result, labels: Tensor) -> None:
    """Accuracies of all seeds, and two sets of trajectories at one scale."""
    with figure(path, 10.0, 3.6) as made:
        axes = made.subplots(1, 3, gridspec_kw={"width_ratios": (1.1, 1, 1)})
        made.subplots_adjust(0.17, 0.15, 0.99, 0.9, 0.08)
        for i, (name, rows) in enumerate(result.rows.items()):
            shares, y = [100 * row.accuracy for row in rows], len(result.rows) - 1 - i
            mean = Mean.of(shares)
            axes[0].plot([mean.low, mean.high], [y, y], color=COLOURS[i], lw=2)
            axes[0].plot(shares, [y] * len(rows), "o", color=COLOURS[i], mfc="none")
            place = axes[0].get_yaxis_transform()
            axes[0].text(-0.03, y, name, ha="right", va="center", transform=place)
        axes[0].set(yticks=[], ylim=(-0.5, len(result.rows) - 0.5))
        axes[0].set(xlabel="per cent of 360 digits by other writers")
        axes[0].set_title("accuracy by seed, and 95 % interval of the mean", size=9)
        for axis, (name, states) in zip(axes[1:], result.paths.items(), strict=True):
            trajectories(axis, states, labels)
            axis.set_title(name, size=9)
        spans = [axis.get_xlim() + axis.get_ylim() for axis in axes[1:]]
        half = max(max(b - a, d - c) for a, b, c, d in spans) / 2
        for axis, (a, b, c, d) in zip(axes[1:], spans, strict=True):
            axis.set(xlim=((a + b) / 2 - half, (a + b) / 2 + half))
            axis.set(ylim=((c + d) / 2 - half, (c + d) / 2 + half))
        axes[1].legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0.35, 0.1))


def trajectories(axis: Any, states: Tensor, labels: Tensor) -> None:
    """(steps + 1, images, width), in the plane of the ends' first two principal components."""
    centre = states[-1].mean(0)
    plane = torch.linalg.svd(states[-1] - centre, full_matrices=False)[2][:2]
    flat = ((states - centre) @ plane.T).numpy()
    for colour, digit in zip(COLOURS, DRAWN, strict=False):
        of_digit = flat[:, (labels == digit).numpy()]
        axis.plot(*of_digit.transpose(2, 0, 1), color=colour, lw=0.6, alpha=0.7)
        axis.plot(*of_digit[-1].T, ".", color=colour, ms=4, label=f"digit {digit}")
    axis.plot(*flat[0, 0], "k*", ms=9, ls="none", label="start")
    axis.set(xticks=[], yticks=[], aspect="equal")
    for spine in axis.spines.values():
        spine.set_visible(False)


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
        images, labels = data.drawn
        with torch.no_grad():
            paths = {
                name: model.path(images)
                for name, model in first.items()
                if isinstance(model, HomoODE)
            }
        gradients = other_gradients(first, data)
    result = Result(rows, gradients, claims_of(rows), paths)
    report(result)
    draw(out / "equilibrium.png", result, labels)
    return result


if __name__ == "__main__":
    main(run, __doc__)
