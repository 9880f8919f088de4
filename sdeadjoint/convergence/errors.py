"""Errors of a study: solves on nested grids against the reference, for one batch of paths after another."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion.grids import coarsen
from ..noise.paths import Paths
from ..solvers import Solver
from ..workers import WorkerDiedError, shared
from .fingerprint import NoDigestError
from .record import Piece, Record
from .settings import Run
from .study import Study

PILOT = 200  # paths on which the error of the reference is estimated: as many whole units as fit in, at least one
REFERENCE = "reference"

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in steps of solvers."""


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors at each level.

    Args:
        signed: (levels, units), of which the quantity's statistic is taken: distances, or signed differences.
        distances: (levels, units), Euclidean.
        scale: rms of the reference's values (of x_T for a round trip).
        uncertainty: estimated error of the reference, in the statistic's sense.
        seconds: of the solves of each level; NaN where some may have run beside others.
    """

    signed: NDArray[np.float64]
    distances: NDArray[np.float64]
    scale: float
    uncertainty: float
    seconds: tuple[float, ...]

    @property
    def rms(self) -> tuple[float, ...]:
        """The root mean square distance at each level."""
        return tuple(np.sqrt((self.distances**2).mean(axis=1)).tolist())

    @property
    def means(self) -> tuple[tuple[float, float], ...]:
        """The modulus of the mean signed error at each level, and its standard error."""
        mean = np.abs(self.signed.mean(axis=1))
        deviation = self.signed.std(axis=1, ddof=1) / math.sqrt(self.signed.shape[1])
        return tuple(zip(mean.tolist(), deviation.tolist(), strict=True))


class Task(NamedTuple):
    """One solve of a batch: its name in the record, its grid, its method (``None``: exact) and how many paths of the
    batch it is of."""

    batch: int
    name: str
    steps: int
    solver: Solver | None
    paths: int

    @property
    def is_reference(self) -> bool:
        return self.name in (REFERENCE, "pilot")


def measure_errors(
    study: Study, resume: Path | None, executor: Executor | None, progress: Progress | None
) -> Errors:
    """Solve what is not in the record at ``resume`` yet, and put the pieces together."""
    record = _record(study, resume)
    every = [task for batch in range(len(study.batches)) for task in tasks(study, batch)]
    missing = [task for task in every if (task.batch, task.name) not in record.pieces]
    steps = {(task.batch, task.name): task.steps for task in every}
    total = sum(steps.values())
    done = total - sum(task.steps for task in missing)
    try:
        with closing(_pieces(study, missing, executor)) as pieces:
            for piece in pieces:
                record.add(piece)
                done += steps[piece.batch, piece.name]
                if progress is not None:
                    progress(done, total)
    except WorkerDiedError as error:
        raise WorkerDiedError(f"{error}; {_kept(record, done / total)}") from error
    return _assembled(study, record)


def _kept(record: Record, share: float) -> str:
    """Say what is kept of an interrupted study, and how it goes on."""
    if record.path is None:
        return "nothing is kept without a file given as resume"
    return f"{share:.0%} of the study is kept in {record.path}: measure again with a new executor and the same file"


def tasks(study: Study, batch: int) -> list[Task]:
    """List the solves of a batch, from the finest grid to the coarsest."""
    paths, unit = study.batches[batch], study.quantity.unit
    found = [Task(batch, str(n), n, study.solver, paths) for n in study.steps]
    if study.quantity.has_reference:
        found.append(Task(batch, REFERENCE, study.finest, study.judge, paths))
        pilot = max(1, PILOT // unit) * unit - sum(study.batches[:batch])
        if study.judge is not None and pilot > 0:
            found.append(Task(batch, "pilot", study.steps[-1], study.judge, min(pilot, paths)))
    return sorted(found, key=lambda task: -task.steps)


def runs(study: Study, batch: int) -> Iterator[tuple[Task, Run]]:
    """Prepare the solves of a batch one by one. Paths are coarsened from level to level where grids nest."""
    setting, grid, paths = study.setting, study.setting.equation.grid(study.finest), study.batches[batch]
    x_T = setting.start(paths, _seed(study, batch, 0)).to(study.dtype)
    cond = {name: value.expand(paths, *value.shape) for name, value in setting.cond.items()}
    fine = at = None
    if (nu := setting.equation.noise_clock(grid)) is not None:
        fine = at = Paths.draw(setting.clock(grid) if setting.clock else nu, x_T.shape, _seed(study, batch, 1))
    for task in tasks(study, batch):
        own = coarsen(grid, study.finest // task.steps)
        if fine is not None and at is not None:
            at = at if at.steps % task.steps == 0 else fine
            at = at.coarsened(at.steps // task.steps)
        onto = setting.equation.noise_clock(own) if setting.clock else None
        driving = at if at is None or onto is None else at.standardised_onto(onto)
        start = x_T.double() if task.is_reference else x_T
        run = Run(setting, task.solver, own, driving, start, cond, study.steps[0])
        yield task, run if task.paths == paths else run.part(slice(0, task.paths))


def solve(study: Study, batch: int, names: Collection[str]) -> Iterator[Piece]:
    """Solve the named tasks of one batch, one after another."""
    left = set(names)
    for task, run in runs(study, batch):
        if task.name in left:
            quantity = study.quantity.exactly if task.is_reference else study.quantity
            start = time.perf_counter()
            values = quantity.evaluate(run)
            seconds = time.perf_counter() - start
            yield Piece(task.batch, task.name, values.double().cpu().numpy(), seconds)
            left.remove(task.name)
        if not left:
            return


class Job(NamedTuple):
    """What a worker does at a time: some solves of one batch."""

    batch: int
    names: tuple[str, ...]


def _pieces(study: Study, missing: list[Task], executor: Executor | None) -> Generator[Piece, None, None]:
    """Solve the tasks batch by batch or, by an executor, in jobs.

    The reference of a batch is a job of its own, as it is as much work as all other levels together.
    """
    if executor is None:
        for batch in sorted({task.batch for task in missing}):
            yield from solve(study, batch, [task.name for task in missing if task.batch == batch])
        return
    references = [Job(task.batch, (task.name,)) for task in missing if task.name == REFERENCE]
    levels: dict[int, list[str]] = {}
    for task in missing:
        if task.name != REFERENCE:
            levels.setdefault(task.batch, []).append(task.name)
    others = [Job(batch, tuple(names)) for batch, names in levels.items()]
    yield from chain.from_iterable(shared(_work, study, [*references, *others], executor))


def _work(study: Study, job: Job) -> list[Piece]:
    """Do one job beside others, where seconds mean nothing."""
    return [piece._replace(seconds=None) for piece in solve(study, job.batch, job.names)]


def _record(study: Study, resume: Path | None) -> Record:
    """Open the record; start an empty one, with a warning, where it cannot be told whether it is of the same study."""
    if resume is None:
        return Record("")
    try:
        return Record.open(resume, study.fingerprint())
    except NoDigestError as error:
        message = f"resume: the study holds {error}, so it may not be the one in {resume}; it runs afresh, unrecorded"
        warnings.warn(message, stacklevel=4)
        return Record("")


def _assembled(study: Study, record: Record) -> Errors:
    batches = range(len(study.batches))

    def whole(name: str) -> Tensor:
        found = [record.pieces[batch, name].values for batch in batches if (batch, name) in record.pieces]
        return torch.from_numpy(np.concatenate(found))

    def seconds(name: str) -> float:
        found = [record.pieces[batch, name].seconds for batch in batches]
        return math.nan if None in found else sum(second for second in found if second is not None)

    values = [whole(str(n)) for n in study.steps]
    if study.quantity.has_reference:
        truth = size = whole(REFERENCE)
    else:
        truth = torch.zeros_like(values[0])
        size = torch.cat([study.setting.start(n, _seed(study, k, 0)) for k, n in enumerate(study.batches)])
    errors = [value - truth for value in values]
    distances = np.stack([error.norm(dim=1).numpy() for error in errors])
    weak = study.quantity.statistic == "mean"
    signed = np.stack([error[:, 0].numpy() for error in errors]) if weak else distances
    scale = float(size.reshape(len(size), -1).norm(dim=1).square().mean().sqrt())
    pilot = whole("pilot") if (0, "pilot") in record.pieces else None
    uncertainty = 0.0 if pilot is None else _uncertainty(study, pilot, truth[: len(pilot)])
    return Errors(signed, distances, scale, uncertainty, tuple(seconds(str(n)) for n in study.steps))


def _uncertainty(study: Study, pilot: Tensor, reference: Tensor) -> float:
    """Estimate the reference's error from its difference to itself on a coarser grid, by its claimed order."""
    assert study.judge is not None
    difference = pilot - reference
    weak = study.quantity.statistic == "mean"
    size = difference.mean().abs() if weak else difference.norm(dim=1).square().mean().sqrt()
    return float(size) / (study.finer ** study.quantity.order(study.setting, study.judge) - 1)


def _seed(study: Study, batch: int, what: int) -> int:
    """Make independent seeds: of x_T (0) and of the paths (1) of each batch."""
    state = np.random.SeedSequence([study.seed, batch, what]).generate_state(1, np.uint64)
    return int(state[0] >> 1)
