"""Jobs on the workers of an executor, with the same numbers as in one process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from typing import NamedTuple, TypeVar

import torch

Subject = TypeVar("Subject")
Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A worker of an executor died before its job was done."""


class Surroundings(NamedTuple):
    """The state of a process on which numbers depend: the order of long sums, and the dtype of new tensors."""

    threads: int
    dtype: torch.dtype

    @classmethod
    def current(cls) -> Surroundings:
        return cls(torch.get_num_threads(), torch.get_default_dtype())

    def restore(self) -> None:
        if self != Surroundings.current():
            torch.set_num_threads(self.threads)
            torch.set_default_dtype(self.dtype)


def check_executor(executor: object) -> None:
    """Refuse what is not an executor."""
    if not isinstance(executor, Executor | None):
        raise TypeError(f"executor: got {type(executor).__name__}; pass a concurrent.futures.Executor, or None")


def shared(
    work: Callable[[Subject, Job], Result], subject: Subject, jobs: Sequence[Job], executor: Executor
) -> Generator[Result, None, None]:
    """Let an executor do ``work(subject, job)`` for each job, and give the results as they are finished.

    Each job has a copy of the subject of its own, and the caller's surroundings, so the results are the same bit for
    bit wherever and in whatever order the jobs are done. Jobs that have not begun are cancelled where one of them
    fails or the caller stops.

    ``TypeError`` for a subject that the executor cannot send; ``WorkerDiedError`` where a worker died, after the
    results of all jobs that were finished.
    """
    sent: Subject | bytes
    try:
        sent = pickle.dumps(subject)
    except Exception:
        sent = subject  # some executors send more than pickle can
    futures: list[Future[bytes]] = []
    broken: BrokenExecutor | None = None
    try:
        for job in jobs:
            futures.append(executor.submit(_done, work, sent, job, Surroundings.current()))
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                broken = error  # others may have finished before
                continue
            if not isinstance(sent, bytes) and error is not None and _is_pickling(error):
                raise TypeError(_unsent(error)) from error
            yield pickle.loads(future.result())
    except BrokenExecutor as error:  # before all jobs were submitted
        broken = error
    finally:
        for future in futures:
            future.cancel()
    if broken is not None:
        raise WorkerDiedError(f"executor: a worker died, killed or out of memory ({_line(broken)})") from broken


def _done(
    work: Callable[[Subject, Job], Result], sent: Subject | bytes, job: Job, surroundings: Surroundings
) -> bytes:
    """Do one job in a worker. Its result is pickled here, as torch would send tensors through shared memory."""
    before = Surroundings.current()
    try:
        own: Subject = pickle.loads(sent) if isinstance(sent, bytes) else copy.deepcopy(sent)
    except (AttributeError, ImportError) as error:
        raise TypeError(_unsent(error)) from error
    try:
        surroundings.restore()
        return pickle.dumps(work(own, job))
    finally:
        before.restore()


def _is_pickling(error: BaseException) -> bool:
    return isinstance(error, pickle.PicklingError | AttributeError | TypeError) and "pickle" in str(error).lower()


def _unsent(error: BaseException) -> str:
    return (
        f"executor: what is to be computed cannot be sent to a worker ({_line(error)}); define networks, losses and "
        "solvers at the top of a module, or pass an executor that sends more than pickle can, such as loky's, or a "
        "ThreadPoolExecutor"
    )


def _line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
