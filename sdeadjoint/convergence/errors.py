"""Errors of a study: solves on nested grids against the reference, all on the same paths."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion.grids import coarsen
from ..noise.paths import Paths
from ..solvers import Solver
from .fingerprint import NoDigestError
from .record import Record
from .settings import Run
from .study import Study

BUDGET = 2**24  # float64 numbers of dB held at once, and as many of H: more paths are done in parts
PILOT = 200  # paths on which the error of the reference is estimated: as many whole units as fit in, at least one

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in steps of solvers."""


@dataclass(frozen=True, eq=False)
class Errors:
    """What was measured at each level.

    Args:
        signed: (levels, units), what the quantity's statistic is taken of: distances, or signed differences.
        distances: (levels, units), Euclidean.
        scale: rms of the reference's values (of x_T for a round trip).
        uncertainty: estimated error of the reference, in the statistic's sense.
        seconds: of the solves of each level.
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


@dataclass(frozen=True)
class _Task:
    """One solve: a name in the record, a grid, a method (``None``: exact), and whether of the first paths only."""

    name: str
    steps: int
    solver: Solver | None
    is_pilot: bool = False

    @property
    def is_reference(self) -> bool:
        return self.name in ("reference", "pilot")


def measure_errors(study: Study, resume: Path | None, progress: Progress | None) -> Errors:
    """Do what is not in the record at ``resume`` yet, and put the pieces together."""
    record = _record(study, resume)
    tasks, parts = _tasks(study), _parts(study)
    done, total = 0, sum(task.steps for task in tasks) * len(parts)
    for part, paths in enumerate(parts):
        names = {task.name: f"{part}/{task.name}" for task in tasks}
        ready = all(name in record for name in names.values())
        for task, run in [(task, None) for task in tasks] if ready else _runs(study, tasks, part, paths):
            if names[task.name] not in record:
                assert run is not None
                start = time.perf_counter()
                quantity = study.quantity.exactly if task.is_reference else study.quantity
                values = quantity.evaluate(run)
                record.add(names[task.name], values, time.perf_counter() - start)
            done += task.steps
            if progress is not None:
                progress(done, total)
    return _assembled(study, record, len(parts))


def _record(study: Study, resume: Path | None) -> Record:
    """What is done already; nothing, with a warning, where it cannot be known whether it is of the same study."""
    if resume is None:
        return Record("")
    try:
        return Record.open(resume, study.fingerprint())
    except NoDigestError as error:
        message = f"resume: the study holds {error}, so it may not be the one in {resume}; it runs afresh, unrecorded"
        warnings.warn(message, stacklevel=4)
        return Record("")


def _tasks(study: Study) -> list[_Task]:
    """From the finest grid to the coarsest."""
    tasks = [_Task(str(n), n, study.solver) for n in study.steps]
    if study.quantity.has_reference:
        tasks.append(_Task("reference", study.finest, study.judge))
        if study.judge is not None:
            tasks.append(_Task("pilot", study.steps[-1], study.judge, is_pilot=True))
    return sorted(tasks, key=lambda task: -task.steps)


def _parts(study: Study) -> list[int]:
    """Numbers of paths done at a time; a function of the study alone, as each part has seeds of its own."""
    noisy = study.setting.frame.eta > 0
    numbers = study.paths * math.prod(study.setting.shape) * (study.finest if noisy else 1)
    parts = min(math.ceil(numbers / BUDGET), study.paths)
    size = math.ceil(study.paths / parts)
    return [min(size, study.paths - start) for start in range(0, study.paths, size)]


def _runs(study: Study, tasks: list[_Task], part: int, paths: int) -> Iterator[tuple[_Task, Run]]:
    """Each task with what it solves. Paths are coarsened from level to level where grids nest."""
    setting, grid = study.setting, study.setting.grid(study.finest)
    x_T = setting.start(paths, _seed(study, part, 0)).to(study.dtype)
    cond = {name: value.expand(paths, *value.shape) for name, value in setting.cond.items()}
    clock = setting.clock or setting.frame.noise_clock
    fine = at = None
    if setting.frame.eta > 0:
        fine = at = Paths.draw(clock(grid), x_T.shape, _seed(study, part, 1))
    for task in tasks:
        own = coarsen(grid, study.finest // task.steps)
        if fine is not None and at is not None:
            at = at if at.steps % task.steps == 0 else fine
            at = at.coarsened(at.steps // task.steps)
        driving = at.standardised_onto(setting.frame.noise_clock(own)) if at and setting.clock else at
        start = x_T.double() if task.is_reference else x_T
        run = Run(setting, task.solver, own, driving, start, cond, study.steps[0])
        unit = study.quantity.unit
        yield task, run.part(slice(0, max(1, PILOT // unit) * unit)) if task.is_pilot else run


def _assembled(study: Study, record: Record, parts: int) -> Errors:
    def whole(name: str) -> Tensor:
        return torch.cat([record.values(f"{part}/{name}") for part in range(parts)])

    values = [whole(str(n)) for n in study.steps]
    if study.quantity.has_reference:
        truth = size = whole("reference")
    else:
        truth, size = torch.zeros_like(values[0]), study.setting.start(study.paths, _seed(study, 0, 0))
    errors = [value - truth for value in values]
    seconds = tuple(sum(record.seconds(f"{part}/{n}") for part in range(parts)) for n in study.steps)
    distances = np.stack([error.norm(dim=1).numpy() for error in errors])
    weak = study.quantity.statistic == "mean"
    signed = np.stack([error[:, 0].numpy() for error in errors]) if weak else distances
    scale = float(size.reshape(len(size), -1).norm(dim=1).square().mean().sqrt())
    return Errors(signed, distances, scale, _uncertainty(study, record), seconds)


def _uncertainty(study: Study, record: Record) -> float:
    """The reference's error, from its difference to itself on a grid ``finer`` times coarser, by its claimed order."""
    if "0/pilot" not in record or study.judge is None:
        return 0.0
    pilot = record.values("0/pilot")
    difference = pilot - record.values("0/reference")[: len(pilot)]
    weak = study.quantity.statistic == "mean"
    size = difference.mean().abs() if weak else difference.norm(dim=1).square().mean().sqrt()
    return float(size) / (study.finer ** study.quantity.order(study.setting, study.judge) - 1)


def _seed(study: Study, part: int, what: int) -> int:
    """Independent seeds: of x_T (0) and of the paths (1) of each part."""
    state = np.random.SeedSequence([study.seed, part, what]).generate_state(1, np.uint64)
    return int(state[0] >> 1)
