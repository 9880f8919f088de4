"""The verdict on a measured order: does it agree with the order that is claimed?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from .errors import Errors
from .levy import why_not
from .slope import Floors, Slope, TooFewLevelsError, local_order, local_orders
from .study import Study

MARGIN = 0.15
ROUNDING = 100.0  # multiples of eps times the scale below which an error may be rounding
TRUSTED = 4.0  # multiples of the reference's error: at four, its square adds 3 % to the error
SIGNIFICANT = 3.0  # standard errors that make a mean an error
CERTAIN = 0.99  # confidence in a fall of the order from level to level


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is ``"holds"``, ``"violated"`` or ``"inconclusive"``; ``reason`` a sentence, with what would decide.

    The claim is a lower bound: more does not violate it. With the interval [a, b] of the slope it is violated if
    ``b < claimed - MARGIN``, and holds if ``a >= claimed - MARGIN`` and the order between neighbouring levels does not
    fall below ``claimed - MARGIN`` towards the fine end. The margin, 0.15, is an allowance for higher-order terms at
    finite steps; proved orders differ by a half at least. A strong or weak order above 1 in additive noise is also
    violated where the solver misses a condition that every such method meets, whatever was measured: ``levy.why_not``.
    """

    outcome: str
    claimed: float
    reason: str

    @property
    def holds(self) -> bool:
        return self.outcome == "holds"

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}"


def known_floors(study: Study, errors: Errors) -> Floors:
    """Return the floors that are known beforehand: rounding, the reference's error, a mean's sampling error."""
    levels = len(study.steps)
    names = ["the reach of rounding", f"{TRUSTED:g} times the error of the reference"]
    sizes = [(_rounding(study, errors),) * levels, (TRUSTED * errors.uncertainty,) * levels]
    if study.quantity.statistic == "mean":
        names.append(f"{SIGNIFICANT:g} standard errors")
        sizes.append(tuple(SIGNIFICANT * deviation for _, deviation in errors.means))
    return Floors(tuple(names), tuple(sizes))


def verdict(study: Study, errors: Errors, law: Slope, median: Slope) -> Verdict:
    """Judge the fitted slope by its interval, then look for what the interval does not show.

    A claim that the algebra excludes is violated. A slope that holds is left open where the order between the last
    levels is below the claim, or falls towards it too fast. A slope that is too low is left open where a few paths make
    the rms and the median disagrees, and where the order still rises from level to level.
    """
    found = judge(law.slope, law.interval, study.order, errors.signed.shape[1])
    if impossible := _impossible(study):
        joint = "and" if found.outcome == "violated" else "but"
        return Verdict("violated", study.order, f"{found.reason}; {joint} {impossible}")
    stands = _standstill(study, errors, law)
    if found.outcome == "holds":
        slow = _slow_end(study, errors, law) or _falling(study, errors, law)
        if not slow:
            return found
        why = "; ".join(filter(None, (stands, slow)))
        return replace(found, outcome="inconclusive", reason=f"{found.reason}; but {why}; take smaller steps")
    if found.outcome != "violated":
        return found
    bar = study.order - MARGIN
    if study.quantity.statistic == "rms" and median.interval[0] >= bar:
        reason = f"{found.reason}; but {_few_paths(study, errors, law, median)}"
        return Verdict("inconclusive", study.order, reason)
    if stands:
        return replace(found, reason=f"{found.reason}; {stands}")
    rising = 0.0 if law.floor else _rising(study, errors, law)
    if law.interval[1] + rising >= bar:
        reason = f"{found.reason}; but it still rises from level to level, by {rising:.3f} more: take smaller steps"
        return Verdict("inconclusive", study.order, reason)
    return found


def judge(slope: float, interval: tuple[float, float], claimed: float, paths: int) -> Verdict:
    """Judge a slope by its interval alone."""
    low, high = interval
    bar = claimed - MARGIN
    seen = f"order {slope:.3f}, {interval_text(interval)}, claimed {claimed:g} (allowance {MARGIN:g})"
    if low >= bar:
        return Verdict("holds", claimed, seen)
    if high < bar:
        return Verdict("violated", claimed, seen)
    if not math.isfinite(high - low):
        return Verdict("inconclusive", claimed, f"{seen}; take more paths")
    needed = paths_to_decide(slope, (high - low) / 2, bar, paths)
    what = f"some {needed} paths" if needed <= 1000 * paths else "smaller steps (the slope is at the limit itself)"
    return Verdict("inconclusive", claimed, f"{seen}; it takes {what} to decide")


def undecided(study: Study, errors: Errors, error: TooFewLevelsError) -> Verdict:
    """Judge a study that has too few levels above its floors."""
    if impossible := _impossible(study):
        return Verdict("violated", study.order, f"{error.dropped[-1].reason}; but {impossible}")
    rounding = _rounding(study, errors)
    if (np.array(errors.rms) <= rounding).all():
        return Verdict("holds", study.order, f"errors are rounding at every level (below {rounding:.2g})")
    if study.quantity.statistic == "mean":
        ratios = sorted(SIGNIFICANT * deviation / max(mean, 1e-300) for mean, deviation in errors.means)
        needed = paths_to_decide(1.0, min(ratios[2], 1e6) / 1.1, 0.0, errors.signed.shape[1])
        advice = f"it takes some {needed} paths for three levels to stand out from the sampling error"
    else:
        advice = "take fewer steps, so that more levels stand above the floor"
    return Verdict("inconclusive", study.order, f"{error.dropped[-1].reason}; {advice}")


def inverts(study: Study, errors: Errors) -> Verdict:
    """Judge a reversible solver by its way back, which must end where it began but for rounding.

    Truncation errors at the coarsest level are far above the root of eps, rounding errors below unless amplified.
    """
    worst, allowed = float(errors.distances.max()) / errors.scale, math.sqrt(_eps(study))
    seen = f"relative distance from x_T at most {worst:.2g}; rounding is below {allowed:.2g}, the root of eps"
    return Verdict("holds" if worst <= allowed else "violated", math.inf, seen)


def interval_text(interval: tuple[float, float]) -> str:
    """Print the interval, or say that these paths do not tell it."""
    low, high = interval
    if not math.isfinite(high - low):
        return "no interval can be told from so few paths with such tails"
    return f"interval [{low:.3f}, {high:.3f}]"


def paths_to_decide(slope: float, half_width: float, bar: float, paths: int) -> int:
    """Return how many paths it takes for an interval around the same slope to leave the bar out.

    Widths shrink like paths^-1/2.
    """
    gap = max(abs(slope - bar), 1e-9)
    needed = paths * (1.1 * half_width / gap) ** 2
    if not math.isfinite(needed):
        return 10**18
    digits = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return int(math.ceil(needed / digits) * digits)


def _standstill(study: Study, errors: Errors, law: Slope) -> str:
    """Say where the errors stand still and how far that is above the known floors; empty where they do not."""
    if law.standstill == 0:
        return ""
    known = max(sizes[study.steps.index(law.steps[-1])] for sizes in known_floors(study, errors).sizes)
    causes = (
        "rounding, the reference and sampling" if study.quantity.statistic == "mean" else "rounding and the reference"
    )
    return f"the errors stand still at {law.standstill:.2g}, {law.standstill / known:.2g} times what {causes} explain"


def _slow_end(study: Study, errors: Errors, law: Slope) -> str:
    """Say that the order between the last two levels is below the claim; empty where it is not.

    It is below if its whole interval is. At a standstill the order itself decides, without its interval. Levels on a
    known floor say nothing.
    """
    if law.floor:
        return ""
    last = law.steps[-2:]
    levels = errors.signed[[study.steps.index(n) for n in last]]
    order, interval = local_order(last, levels, statistic=study.quantity.statistic)
    if (order if law.standstill else interval[1]) >= study.order - MARGIN:
        return ""
    return f"from {last[0]} to {last[1]} steps it is {order:.3f}, {interval_text(interval)}"


def _falling(study: Study, errors: Errors, law: Slope) -> str:
    """Say that the order falls from level to level, and would fall below the claim at the next; empty if it does not.

    With local orders p, q between the last three levels, the next one would be ``q - (p - q)``. Where a term of the
    claimed order is there, and one of a higher order fades, that is never far below the claim; a term of a lower order
    that comes up makes it so. The fall must stand out from the noise of the paths.
    """
    last = law.steps[-3:]
    if law.floor or len(last) < 3:
        return ""
    levels = errors.signed[[study.steps.index(n) for n in last]]
    (before, order), fall = local_orders(last, levels, statistic=study.quantity.statistic, confidence=CERTAIN)
    following = 2 * order - before
    if fall[1] >= 0 or following >= study.order - MARGIN:
        return ""
    steps = " to ".join(map(str, last))
    return f"from {steps} steps it falls from {before:.3f} to {order:.3f}, on its way below the claim"


def _impossible(study: Study) -> str:
    """Say why a claim above 1 in additive noise cannot be true; empty where it may be."""
    if not study.setting.is_noisy or not study.quantity.has_reference:
        return ""
    return why_not(study.solver, study.order, weak=study.quantity.statistic == "mean")


def _few_paths(study: Study, errors: Errors, law: Slope, median: Slope) -> str:
    """Say that the median has the order, and how much of the squared error one path in a hundred carries."""
    squares = np.sort(errors.distances[study.steps.index(law.steps[-1])] ** 2)[::-1]
    share = squares[: max(1, len(squares) // 100)].sum() / squares.sum()
    return (
        f"the median's is {median.slope:.3f}, and 1 % of the paths carry {share:.0%} of the squared error: the target "
        "is too hard for these steps, take smaller ones or a milder target"
    )


def _rising(study: Study, errors: Errors, law: Slope) -> float:
    """Estimate how much higher the slope would be on ever smaller steps.

    The order between the last two levels is ahead of the fitted slope. It will also rise once more by as much as it
    rose last: where it differs from its limit by a term linear in the step, the last halving has shown half of that.
    """
    sizes = [mean for mean, _ in errors.means] if study.quantity.statistic == "mean" else errors.rms
    kept = [(math.log(n), math.log(sizes[study.steps.index(n)])) for n in law.steps[-3:]]
    local = [(y0 - y1) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(kept)]
    return max(0.0, local[-1] - law.slope) + max(0.0, local[-1] - local[0])


def _rounding(study: Study, errors: Errors) -> float:
    return ROUNDING * _eps(study) * errors.scale


def _eps(study: Study) -> float:
    return torch.finfo(study.dtype).eps
