"""One call from a solver to a verdict on its order."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..solvers import ReversibleSolver, Solver
from .errors import Errors, Progress, measure_errors
from .quantities import RoundTrip
from .result import Convergence
from .slope import Floors, Slope, TooFewLevelsError, fit, local_order
from .study import Study
from .verdict import MARGIN, Verdict, interval_text, judge, paths_to_decide
from .window import Dropped

ROUNDING = 100.0  # multiples of eps times the scale below which an error may be rounding
TRUSTED = 4.0  # multiples of the reference's error: at four, its square adds 3 % to the error
SIGNIFICANT = 3.0  # standard errors that make a mean an error


def measure(
    study: Study | Solver, *, resume: str | Path | None = None, progress: Progress | None = None
) -> Convergence:
    """Measure an order of convergence and compare it with the solver's ``claims``.

        print(sa.convergence.measure(MySolver()))                              # strong order, standard problem, eta = 1
        print(sa.convergence.measure(Study(sa.Heun(), setting=settings.line())))      # order without noise

    Args:
        study: what to measure; a solver alone is ``Study(solver)``.
        resume: a JSON file in which each finished solve is kept: an interrupted study continues there, and gives
            the same numbers as one that was not. A file of another study, also of another version of its code, is
            refused; a study in which something cannot be compared runs afresh, with a warning: see ``fingerprint``.
        progress: called as ``progress(done, total)`` after each solve.

    Returns a ``Convergence``; ``print`` shows its table and verdict. A study of ShARK with 1000 paths and 7
    grids of up to 1024 steps takes some 10 seconds on one free core.

    ``ValueError`` for a study that does not fit together, and for a solver that diverges at the coarsest level.
    Not a proof: smooth mild problems show asymptotic orders at these steps, others need more steps than one can pay.
    """
    study = Study(study) if isinstance(study, Solver) else study
    if not isinstance(study, Study):
        raise TypeError(f"study: got {type(study).__name__}; pass a Study or a solver such as Heun()")
    errors = measure_errors(study, None if resume is None else Path(resume), progress)
    if isinstance(study.quantity, RoundTrip) and isinstance(study.solver, ReversibleSolver):
        return _result(study, errors, _inverts(study, errors))
    try:
        law = fit(study.steps, errors.signed, statistic=study.quantity.statistic, floors=_floors(study, errors))
    except TooFewLevelsError as error:
        return _result(study, errors, _undecided(study, errors, error), dropped=error.dropped)
    median = fit(study.steps, errors.distances, statistic="median", window=law.steps)
    return _result(study, errors, _verdict(study, errors, law, median), law, median, law.dropped)


def _result(
    study: Study,
    errors: Errors,
    verdict: Verdict,
    law: Slope | None = None,
    median: Slope | None = None,
    dropped: tuple[Dropped, ...] = (),
) -> Convergence:
    means = _means(errors) if study.quantity.statistic == "mean" else ()
    return Convergence(
        steps=study.steps,
        rms=tuple(np.sqrt((errors.distances**2).mean(axis=1)).tolist()),
        median=tuple(np.median(errors.distances, axis=1).tolist()),
        slope=law.slope if law else math.nan,
        interval=law.interval if law else (-math.inf, math.inf),
        verdict=verdict,
        fit=law,
        median_fit=median,
        mean=means,
        calls=tuple(study.solver.claims.calls(n) for n in study.steps),
        seconds=errors.seconds,
        dropped=dropped,
        scale=errors.scale,
        uncertainty=errors.uncertainty,
        study=repr(study),
        solver=repr(study.solver),
        subject=study.subject,
        errors=errors.signed,
    )


def _means(errors: Errors) -> tuple[tuple[float, float], ...]:
    mean = np.abs(errors.signed.mean(axis=1))
    deviation = errors.signed.std(axis=1, ddof=1) / math.sqrt(errors.signed.shape[1])
    return tuple(zip(mean.tolist(), deviation.tolist(), strict=True))


def _floors(study: Study, errors: Errors) -> Floors:
    """What makes an error doubtful: rounding, the reference's own error, and for means the sampling error."""
    levels = len(study.steps)
    names = ["the reach of rounding", f"{TRUSTED:g} times the error of the reference"]
    sizes = [(ROUNDING * _eps(study) * errors.scale,) * levels, (TRUSTED * errors.uncertainty,) * levels]
    if study.quantity.statistic == "mean":
        names.append(f"{SIGNIFICANT:g} standard errors")
        sizes.append(tuple(SIGNIFICANT * deviation for _, deviation in _means(errors)))
    return Floors(tuple(names), tuple(sizes))


def _eps(study: Study) -> float:
    return torch.finfo(study.dtype).eps


def _verdict(study: Study, errors: Errors, law: Slope, median: Slope) -> Verdict:
    """By the interval; but errors that come to a standstill leave it open, and so do a rms that few paths carry and
    errors that still fall faster."""
    found = judge(law.slope, law.interval, study.order, errors.signed.shape[1])
    stands = _standstill(study, errors, law)
    if found.outcome == "holds" and (slow := _slow_end(study, errors, law)):
        return replace(
            found, outcome="inconclusive", reason=f"{found.reason}; but {stands or slow}; take smaller steps"
        )
    if found.outcome != "violated":
        return found
    bar = study.order - MARGIN
    if study.quantity.statistic == "rms" and median.interval[0] >= bar:
        squares = np.sort(errors.distances[study.steps.index(law.steps[-1])] ** 2)[::-1]
        share = squares[: max(1, len(squares) // 100)].sum() / squares.sum()
        reason = (
            f"{found.reason}; but the median's is {median.slope:.3f}, and 1 % of the paths carry {share:.0%} of the "
            "squared error: the target is too hard for these steps, take smaller ones or a milder target"
        )
        return Verdict("inconclusive", study.order, reason)
    if stands:
        return replace(found, reason=f"{found.reason}; {stands}")
    rising = 0.0 if law.floor else _rising(study, errors, law)
    if law.interval[1] + rising >= bar:
        reason = f"{found.reason}; but it still rises from level to level, by {rising:.3f} more: take smaller steps"
        return Verdict("inconclusive", study.order, reason)
    return found


def _standstill(study: Study, errors: Errors, law: Slope) -> str:
    """That errors stand on a floor of the solver's own, and how far it is above those that are known."""
    if law.standstill == 0:
        return ""
    known = max(sizes[study.steps.index(law.steps[-1])] for sizes in _floors(study, errors).sizes)
    causes = (
        "rounding, the reference and sampling" if study.quantity.statistic == "mean" else "rounding and the reference"
    )
    return f"the errors stand still at {law.standstill:.2g}, {law.standstill / known:.2g} times what {causes} explain"


def _slow_end(study: Study, errors: Errors, law: Slope) -> str:
    """That the last two levels show less than is claimed, whatever the others do; floors that are known apart.

    By their interval, or where a standstill shows beside by their order alone.
    """
    if law.floor:
        return ""
    last = law.steps[-2:]
    levels = errors.signed[[study.steps.index(n) for n in last]]
    order, interval = local_order(last, levels, statistic=study.quantity.statistic)
    if (order if law.standstill else interval[1]) >= study.order - MARGIN:
        return ""
    return f"from {last[0]} to {last[1]} steps it is {order:.3f}, {interval_text(interval)}"


def _rising(study: Study, errors: Errors, law: Slope) -> float:
    """What the slope lacks before it stands still: the last levels are ahead of the fit, and will gain as much again.

    Of a drift of the local order that is linear in the step the last halving has shown half.
    """
    size = np.abs(errors.signed.mean(axis=1)) if study.quantity.statistic == "mean" else _rms(errors)
    kept = [(math.log(n), math.log(size[study.steps.index(n)])) for n in law.steps[-3:]]
    local = [(y0 - y1) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(kept)]
    return max(0.0, local[-1] - law.slope) + max(0.0, local[-1] - local[0])


def _rms(errors: Errors) -> NDArray[np.float64]:
    rms: NDArray[np.float64] = np.sqrt((errors.distances**2).mean(axis=1))
    return rms


def _undecided(study: Study, errors: Errors, error: TooFewLevelsError) -> Verdict:
    rounding = ROUNDING * _eps(study) * errors.scale
    if (_rms(errors) <= rounding).all():
        return Verdict("holds", study.order, f"errors are rounding at every level (below {rounding:.2g})")
    if study.quantity.statistic == "mean":
        ratios = sorted(SIGNIFICANT * deviation / max(mean, 1e-300) for mean, deviation in _means(errors))
        needed = paths_to_decide(1.0, min(ratios[2], 1e6) / 1.1, 0.0, errors.signed.shape[1])
        advice = f"it takes some {needed} paths for three levels to stand out from the sampling error"
    else:
        advice = "take fewer steps, so that more levels stand above the floor"
    return Verdict("inconclusive", study.order, f"{error.dropped[-1].reason}; {advice}")


def _inverts(study: Study, errors: Errors) -> Verdict:
    """Truncation errors at the coarsest level are far above the root of eps, rounding errors below unless amplified."""
    worst, allowed = float(errors.distances.max()) / errors.scale, math.sqrt(_eps(study))
    seen = f"relative distance from x_T at most {worst:.2g}; rounding is below {allowed:.2g}, the root of eps"
    return Verdict("holds" if worst <= allowed else "violated", math.inf, seen)
