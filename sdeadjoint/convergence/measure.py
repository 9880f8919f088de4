"""One call from a solver to a verdict on its order."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from ..solvers import ReversibleSolver, Solver
from ..workers import check_executor
from .errors import Errors, Progress, measure_errors
from .quantities import RoundTrip
from .result import Convergence
from .slope import Dropped, Slope, TooFewLevelsError, fit
from .study import Study
from .verdict import Verdict, inverts, known_floors, undecided, verdict


def measure(
    study: Study | Solver,
    *,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Convergence:
    """Measure an order of convergence and compare it with the solver's ``claims``.

        print(sa.convergence.measure(MySolver()))                              # strong order, standard problem, eta = 1
        print(sa.convergence.measure(Study(sa.Heun(), setting=settings.line())))      # order without noise

    Args:
        study: what to measure; a solver alone is ``Study(solver)``.
        resume: a file of JSON lines in which each finished solve is kept: an interrupted study continues there, and
            gives the same numbers as one that was not. A file of another study, also of another version of its code, is
            refused; a study in which something cannot be compared runs afresh, with a warning: see ``fingerprint``.
        progress: called as ``progress(done, total)`` after each solve.
        executor: any ``concurrent.futures.Executor``, whose workers solve the batches of paths (``Study.batch``), and
            the reference of a batch apart from its other levels. The numbers are the same bit for bit with any
            executor, any number of workers, and none. There are no ``seconds`` then: timings are never taken beside
            other work. Workers use as many threads as the caller; with many workers call ``torch.set_num_threads(1)``
            first. Processes should be spawned, not forked, as torch has threads.

    Returns a ``Convergence``; ``print`` shows its table and verdict. A study of ShARK with 1000 paths and 7
    grids of up to 1024 steps takes some 10 seconds on one free core.

    ``ValueError`` for a study that does not fit together, and for a solver that diverges at the coarsest level.
    ``TypeError`` for a study that the executor cannot send, ``RuntimeError`` where one of its workers died.
    Not a proof: smooth mild problems show asymptotic orders at these steps, others need more steps than one can pay.
    """
    study = Study(study) if isinstance(study, Solver) else study
    if not isinstance(study, Study):
        raise TypeError(f"study: got {type(study).__name__}; pass a Study or a solver such as Heun()")
    check_executor(executor)
    errors = measure_errors(study, None if resume is None else Path(resume), executor, progress)
    if isinstance(study.quantity, RoundTrip) and isinstance(study.solver, ReversibleSolver):
        return _result(study, errors, inverts(study, errors))
    try:
        law = fit(study.steps, errors.signed, statistic=study.quantity.statistic, floors=known_floors(study, errors))
    except TooFewLevelsError as error:
        return _result(study, errors, undecided(study, errors, error), dropped=error.dropped)
    median = fit(study.steps, errors.distances, statistic="median", window=law.steps)
    return _result(study, errors, verdict(study, errors, law, median), law, median, law.dropped)


def _result(
    study: Study,
    errors: Errors,
    verdict: Verdict,
    law: Slope | None = None,
    median: Slope | None = None,
    dropped: tuple[Dropped, ...] = (),
) -> Convergence:
    return Convergence(
        steps=study.steps,
        rms=errors.rms,
        median=tuple(np.median(errors.distances, axis=1).tolist()),
        slope=law.slope if law else math.nan,
        interval=law.interval if law else (-math.inf, math.inf),
        verdict=verdict,
        fit=law,
        median_fit=median,
        mean=errors.means if study.quantity.statistic == "mean" else (),
        calls=tuple(study.solver.claims.calls(n) for n in study.steps),
        seconds=errors.seconds,
        dropped=dropped,
        scale=errors.scale,
        uncertainty=errors.uncertainty,
        study=repr(study),
        solver=repr(study.solver),
        subject=study.subject,
        error_name=study.quantity.error_name,
        errors=errors.signed,
    )
