"""Studies by executors: the same numbers bit for bit, whoever computes them and whoever dies."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdeadjoint as sa
from sdeadjoint import cli, command_line
from sdeadjoint.comparison import scene
from sdeadjoint.convergence import Convergence, Gradient, Reverse, RoundTrip, Setting, Study, Weak, measure, settings

from .dying import Dying

loky = pytest.importorskip("loky", reason="loky's pools of processes are tested where the extra 'dev' is installed")


def processes(workers: int) -> ProcessPoolExecutor:
    """Workers that are forked from one process which has PyTorch loaded; those of loky start from nothing."""
    return ProcessPoolExecutor(workers, mp_context=forkserver())


def forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sdeadjoint", "torch._dynamo", __name__])
    return context


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with processes(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def loky_pool() -> Iterator[Executor]:
    with loky.ProcessPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor


EULER = Study(sa.Euler(), steps=(2, 4, 8), paths=37, finer=2, batch=13)
STUDIES = {
    "states": EULER,
    "no noise": Study(sa.Heun(), settings.line(), steps=(2, 4, 8), paths=37, batch=13),
    "weights": replace(EULER, setting=settings.steered(), quantity=Gradient("weights", adjoint=sa.Direct(), block=3)),
    "noise": replace(EULER, quantity=Gradient("noise")),
    "expectations": replace(EULER, quantity=Weak(), dtype=torch.float32),
    "round trips": replace(EULER, quantity=RoundTrip()),
}


def same(one: Convergence, other: Convergence) -> bool:
    numbers = ("rms", "median", "slope", "interval", "scale", "uncertainty", "dropped", "verdict")
    return np.array_equal(one.errors, other.errors) and all(
        repr(getattr(one, name)) == repr(getattr(other, name)) for name in numbers
    )


@pytest.mark.parametrize("what", STUDIES)
def test_the_numbers_do_not_depend_on_who_computes_them(
    what: str, pool: Executor, loky_pool: Executor, threads: Executor
) -> None:
    study = STUDIES[what]
    assert len(study.batches) == 3
    alone = measure(study)
    for executor in (pool, loky_pool, threads):
        found = measure(study, executor=executor)
        assert same(found, alone)
        assert all(map(math.isnan, found.seconds))
    assert all(second > 0 for second in alone.seconds)


def test_a_study_in_one_batch_has_two_jobs(threads: Executor) -> None:
    study = replace(EULER, batch=None)
    assert study.batches == [37]
    assert same(measure(study, executor=threads), measure(study))


class Backwards(Executor):
    """Does all jobs at once, the last one first, and counts them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, Future[Any]]] = []

    def submit(self, work: Any, /, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        self.jobs.append((lambda: work(*arguments), future))
        if len(self.jobs) == 6:
            for job, waiting in reversed(self.jobs):
                waiting.set_result(job())
        return future


def test_the_order_of_the_jobs_does_not_matter(tmp_path: Path) -> None:
    record = tmp_path / "study.jsonl"
    found = measure(EULER, executor=Backwards(), resume=record)
    assert same(found, measure(EULER))
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {line["batch"] for line in lines[1:]} == {0, 1, 2}
    assert all(line["seconds"] is None for line in lines[1:])
    again = measure(EULER, resume=record)  # all there: nothing is solved
    assert same(again, found)
    assert len(record.read_text().splitlines()) == len(lines)


def test_a_killed_worker_costs_nothing_that_was_finished(tmp_path: Path, pool: Executor) -> None:
    marker, record = tmp_path / "dies", tmp_path / "study.jsonl"
    study = replace(EULER, solver=Dying(str(marker)))
    assert study.batches == [13, 13, 11]  # it dies in the last one
    whole = measure(study)
    marker.write_text("")
    with processes(1) as executor, pytest.raises(RuntimeError, match=r"a worker died.*is kept in .*study\.jsonl"):
        measure(study, resume=record, executor=executor)
    assert not marker.exists()
    before = record.read_text()
    assert 1 < len(before.splitlines()) < 16
    found = measure(study, resume=record, executor=pool)
    assert record.read_text().startswith(before)
    assert same(found, whole)


def test_a_broken_pool_is_refused_in_the_same_words(tmp_path: Path) -> None:
    marker = tmp_path / "dies"
    marker.write_text("")
    study = replace(EULER, solver=Dying(str(marker)), paths=33, batch=11)
    with processes(1) as executor:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"executor: a worker died.*; nothing is kept without a file"):
                measure(study, executor=executor)


def test_what_cannot_be_sent_is_refused(pool: Executor, threads: Executor, loky_pool: Executor) -> None:
    schedule = sa.VPLinear()
    denoiser = sa.Denoiser(lambda x, t: 0.3 * x, schedule, "sample", time_dtype=torch.float64)
    setting = Setting(Reverse(denoiser, sa.Frame(schedule), 0.5, 0.1), ())
    study = Study(sa.Heun(), setting, steps=(2, 4, 8), paths=30)
    with pytest.raises(TypeError, match=r"executor: .* cannot be sent to a worker .*top of a module"):
        measure(study, executor=pool)
    alone = measure(study)
    for executor in (threads, loky_pool):  # which can send it
        assert same(measure(study, executor=executor), alone)


class LocalToThis(sa.Euler):
    """Pickled by its name, which a worker finds in this module."""


def test_a_class_that_workers_cannot_import_is_refused(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalToThis, "__module__", "nowhere_to_be_found")
    module = type(pytest)("nowhere_to_be_found")
    module.LocalToThis = LocalToThis  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "nowhere_to_be_found", module)
    with pytest.raises(TypeError, match=r"No module named 'nowhere_to_be_found'.*top of a module"):
        measure(replace(EULER, solver=LocalToThis()), executor=pool)


@dataclass(frozen=True)
class Failing(sa.Euler):
    """Euler's method that fails in one batch, in its own words."""

    def step(self, drift: Any, interval: sa.Interval, y: Any, state: Any) -> Any:
        if len(y) == 11:
            raise ArithmeticError("eleven is unlucky")
        return super().step(drift, interval, y, state)


def test_errors_of_a_job_are_its_own_and_the_rest_is_cancelled(tmp_path: Path) -> None:
    waits = threading.Event()
    study = replace(EULER, solver=Failing())
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ArithmeticError, match="eleven is unlucky"):
            measure(study, executor=executor, resume=tmp_path / "study.jsonl")
        executor.submit(waits.set)
        assert waits.wait(60)


def test_workers_have_the_threads_and_the_dtype_of_the_caller(pool: Executor) -> None:
    from sdeadjoint.workers import Surroundings, shared

    before = Surroundings.current()
    try:
        for surroundings in (Surroundings(1, torch.float64), Surroundings(2, torch.float32)):
            surroundings.restore()
            assert list(shared(_surroundings, None, [0, 1, 2], pool)) == [surroundings] * 3
    finally:
        before.restore()


def _surroundings(subject: None, job: int) -> Any:
    from sdeadjoint.workers import Surroundings

    return Surroundings.current()


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(TypeError, match="executor: got int; pass a concurrent"):
        measure(EULER, executor=4)  # type: ignore[arg-type]


# One that is exact, one that warns, one that is neither, and one that is refused: each is a job of its own.
METHODS = (
    sa.comparison.Method("snapshots", sa.Checkpoint(snapshots=2)),
    sa.comparison.Method("tight", sa.Reversible(tolerance=1e-30), sa.Coupled(sa.Euler())),
    sa.comparison.Method("last", sa.Truncated(last=1)),
    sa.comparison.Method("refused", sa.adjoint_dpm("euler")),
)


def compared(executor: Executor | None, **options: Any) -> tuple[sa.comparison.Comparison, list[str]]:
    """A comparison without its times, which must be there, and what was told on the way."""
    problem, told = sa.comparison.mixture(1.0, 3), []
    call = {"loss": problem.loss, "frame": problem.frame, "noise": problem.noise, "solver": sa.Euler()}
    call |= {"methods": METHODS, "grids": [scene.grid(2), scene.grid(3)], "truth_steps": 6, "repeats": 1}
    x_T = problem.x_T * 1.0  # not a leaf
    found = sa.comparison.compare(problem.denoiser, x_T, watch=told.append, executor=executor, **(call | options))
    for row in found.measurements:
        assert (row.seconds is None) == (row.gradients == ())
    return replace(found, measurements=tuple(replace(row, seconds=None) for row in found.measurements)), told


def test_comparisons_do_not_depend_on_who_computes_them(pool: Executor, threads: Executor) -> None:
    """Studies are compared with loky's too: jobs and results of both go through ``workers.shared``."""
    alone, told = compared(None)
    assert {row.method for row in alone.measurements if row.warnings} >= {"tight"}
    assert alone.at("refused", 3).refused
    for executor in (pool, threads):
        found, also_told = compared(executor)
        assert found == alone
        assert sorted(also_told) == sorted(told)


def test_a_comparison_that_cannot_be_sent_is_refused(pool: Executor, threads: Executor) -> None:
    with pytest.raises(TypeError, match="executor: what is to be computed cannot be sent to a worker"):
        compared(pool, loss=lambda x: x.sum())
    compared(threads, loss=lambda x: x.sum(), methods=METHODS[:1], grids=scene.grid(2))
    with pytest.raises(TypeError, match="executor: got str; pass a concurrent"):
        compared("two")  # type: ignore[arg-type]


# ---------------------------------------------------------------- a command that is interrupted


def one_of_several(workers: int, *arguments: Any, **options: Any) -> ProcessPoolExecutor:
    """Of the workers that a command asks for: each of them is spawned, imports PyTorch and is ended alike."""
    assert workers == 2
    return ProcessPoolExecutor(1, *arguments, **options)


def interrupted_study(out: str, said: str) -> None:
    """The command in a process group of its own, its exit status that of the process."""
    os.setsid()
    with open(said, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        os.dup2(sys.stderr.fileno(), 2)  # of the workers and of the interpreter
        command_line.ProcessPoolExecutor = one_of_several  # type: ignore[assignment, misc]
        # Whoever runs the tests in the background may ignore interrupts, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        arguments = ["--solver", "Euler", "--paths", "4000", "--batch", "10", "--workers", "2", "--out", out]
        sys.exit(cli.main(["study", *arguments, "--steps", "8,16,64"]))


def test_an_interrupt_ends_the_workers_too(tmp_path: Path) -> None:
    """Two workers that are still starting are ended in test_convergence_command.py."""
    said = tmp_path / "said"
    child = forkserver().Process(target=interrupted_study, args=(str(tmp_path), str(said)))
    child.start()
    try:
        waited = time.monotonic()
        while not list(tmp_path.glob("record-*.jsonl")) and child.is_alive() and time.monotonic() - waited < 300:
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGINT)
        child.join(120.0)
        assert child.exitcode == 130, said.read_text()
        assert "run the same command again: it continues from" in said.read_text()
        assert "Traceback" not in said.read_text()
        waited = time.monotonic()
        while _is_alive(child.pid) and time.monotonic() - waited < 120:
            time.sleep(0.05)
        assert not _is_alive(child.pid), "a worker of the group is left"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
