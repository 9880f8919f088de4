"""The order of convergence, read from the errors of many paths at several numbers of steps.

Words that the whole laboratory uses:

* A *level* is one number of steps, with the errors of all paths there.
* A *floor* is an error that does not shrink with the step, for a reason that is known: rounding, the error of the
  reference, or the sampling error of a mean. A level near a floor says nothing about the order.
* A *standstill* is a floor that the errors show and that no known reason explains. It belongs to the solver, so the
  levels on it count against its order.
* The *window* is the run of levels that the slope is fitted to: not too coarse for the leading term, and not on a
  floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from .bootstrap import TINY, log_means, log_medians, studentized

Array = NDArray[np.float64]

STATISTICS = ("rms", "mean", "median")
HUBER = 2.5
EXACT = 1e-9  # residuals in log2 that are rounding
WIDEST = 10.0  # half-width of an interval of orders that says nothing

LEAST = 4  # levels that are always kept, if there are as many above the floors
CLEAR = 3.0  # standard errors that make a departure of the coarsest level significant
HINT = 1.5  # standard errors of the bend that a floor makes: the law is then fitted with one
POSSIBLE = 0.7  # and from which on the interval allows for one
MATERIAL = 0.01  # change of the slope that makes it matter


@dataclass(frozen=True)
class Dropped:
    """A level that the slope does not use, and why."""

    steps: int
    reason: str


@dataclass(frozen=True)
class Slope:
    """``error = constant * steps^-slope`` on the levels kept.

    Args:
        slope: the order; +1 means that the error halves where the steps double.
        interval: its confidence interval, of the noise of the paths alone. What is left of higher-order terms
            in the levels kept is not in it. The whole line where it would be wider than ``WIDEST`` to either side.
        constant: the line's value at one step.
        steps: the levels kept.
        dropped: the others, each with a reason.
        floor: the floor below the errors, 0.0 where none shows.
        standstill: the error at which the levels stand still although every known floor is lower; these levels are
            kept. 0.0 where they do not, or where no floors were given.
    """

    slope: float
    interval: tuple[float, float]
    constant: float
    steps: tuple[int, ...]
    dropped: tuple[Dropped, ...] = ()
    floor: float = 0.0
    standstill: float = 0.0

    @property
    def half_width(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Floors:
    """The known floors: ``sizes`` (causes, levels), the least errors to be believed, and ``names`` of the causes."""

    names: tuple[str, ...] = ()
    sizes: tuple[tuple[float, ...], ...] = ()


class TooFewLevelsError(ValueError):
    """Fewer than three levels are above the floors; ``dropped`` says why."""

    def __init__(self, dropped: tuple[Dropped, ...]) -> None:
        reasons = "; ".join(f"{gone.steps} steps: {gone.reason}" for gone in dropped)
        super().__init__(f"errors: fewer than three levels tell the order ({reasons}); take fewer steps or more paths")
        self.dropped = dropped


# ---------------------------------------------------------------- the fit


def fit(
    steps: Sequence[int],
    errors: Array,
    *,
    statistic: str = "rms",
    confidence: float = 0.95,
    floors: Floors = Floors(),
    window: Sequence[int] | None = None,
) -> Slope:
    """Fit the slope of ``log e`` on ``log steps``, with a bootstrap interval over paths.

    Args:
        steps: the numbers of steps, increasing, at least three.
        errors: (levels, n): the error of each of n independent paths, the same paths at all levels. Magnitudes,
            or signed for ``"mean"``. At least ten.
        statistic: ``"rms"`` (root mean square), ``"mean"`` (modulus of the mean: weak errors), ``"median"``.
        confidence: of the interval, which is symmetric for rms and mean (see ``bootstrap.studentized``) and made of
            quantiles for the median.
        floors: known floors. Levels below one are dropped, and errors that stand still above all of them are a
            standstill. Unless given, whatever the errors stand on counts as a floor.
        window: the levels to use, by their steps; found from the errors unless given.

    Levels on a floor and levels that are too coarse are dropped (see ``straight``). The line through the others is
    Huber's M-estimate with c = 2.5 and the larger of path noise and median deviation as its scale: one bad level in
    the middle bends it little. Where a floor may begin but does not stand out from the noise, the interval spans the
    fits with and without one. Coverage with 100 paths and errors between Gaussian and lognormal: 93 to 97 % at 95 %;
    less (80 to 90 %) where a floor of half the finest level's error hides in that level alone.

    ``ValueError`` for shapes that do not fit and errors that are not finite; ``TooFewLevelsError`` where floors leave
    too few levels.
    Not for fewer than about 30 paths, nor for tails without a variance: take the median there.
    """
    steps = tuple(steps)
    _check(steps, errors, statistic)
    x = np.log2(np.asarray(steps, dtype=np.float64))
    if statistic == "median":
        return _fit_median(steps, x, errors, confidence, window)
    z, power = _powers(errors, statistic)
    y, covariance = log_means(z, power)
    kept = _window(steps, y, covariance, floors, window)
    line, standstill = _law(kept, steps, x, y, covariance), 0.0
    if floors.sizes and line.floor > max(sizes[kept.last] for sizes in floors.sizes):
        standstill = line.floor
        kept = replace(kept, has_floor=False, may_have_floor=False)
        line = _law(kept, steps, x, y, covariance)
    laws = [line]
    if kept.may_have_floor and not kept.has_floor:
        laws.append(_law(replace(kept, has_floor=True), steps, x, y, covariance))
    halves = [studentized(z[kept.slice], power, law.contrast, confidence) for law in laws]
    low = min(law.slope - half for law, half in zip(laws, halves, strict=True))
    high = max(law.slope + half for law, half in zip(laws, halves, strict=True))
    return replace(line.with_interval(low, high), standstill=standstill)


def local_order(
    steps: Sequence[int], errors: Array, *, statistic: str = "rms", confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """The order between two levels and its interval, paired over paths; ``statistic`` is ``"rms"`` or ``"mean"``."""
    z, power = _powers(errors, statistic)
    y, _ = log_means(z, power)
    a = np.array([1.0, -1.0]) / np.log2(steps[1] / steps[0])
    order = float(a @ y)
    half = studentized(z, power, a, confidence)
    return order, (order - half, order + half)


def local_orders(
    steps: Sequence[int], errors: Array, *, statistic: str = "rms", confidence: float = 0.95
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the two orders between three levels, and the interval of the second minus the first."""
    z, power = _powers(errors, statistic)
    y, _ = log_means(z, power)
    coarse, fine = 1 / np.log2(steps[1] / steps[0]), 1 / np.log2(steps[2] / steps[1])
    before, after = np.array([coarse, -coarse, 0.0]), np.array([0.0, fine, -fine])
    change = float((after - before) @ y)
    half = studentized(z, power, after - before, confidence)
    return (float(before @ y), float(after @ y)), (change - half, change + half)


def _powers(errors: Array, statistic: str) -> tuple[Array, float]:
    """``z`` and ``power`` such that the statistic is ``|mean z|^power``."""
    return (errors**2, 0.5) if statistic == "rms" else (errors, 1.0)


class _Law(NamedTuple):
    """A fitted law and the contrast of log-errors that its slope is, to first order."""

    slope: float
    constant: float
    contrast: Array
    steps: tuple[int, ...]
    dropped: tuple[Dropped, ...]
    floor: float

    def with_interval(self, low: float, high: float) -> Slope:
        if not max(self.slope - low, high - self.slope) <= WIDEST:
            low, high = -np.inf, np.inf
        return Slope(self.slope, (float(low), float(high)), self.constant, self.steps, self.dropped, self.floor)


def _law(kept: Window, steps: tuple[int, ...], x: Array, y: Array, covariance: Array) -> _Law:
    """Fit a straight line or, where the levels show a floor, a power law on it."""
    use = kept.slice
    found = (kept.on_floor or fit_on_floor(x[use], y[use])) if kept.has_floor else None
    if found is None:
        a, offset = _line(x[use], y[use], covariance[use, use])
        return _Law(-float(a @ y[use]), float(2.0 ** (offset @ y[use])), a, steps[use], kept.dropped, 0.0)
    sunk = [n for n, level in zip(steps[use], y[use], strict=True) if 2.0**level < 2**0.5 * found.floor]
    reason = f"on the floor of {found.floor:.2g}, where errors stand still: it tells that floor only"
    dropped = (*kept.dropped, *(Dropped(n, reason) for n in sunk))
    clear = tuple(n for n in steps[use] if n not in sunk)
    return _Law(found.slope, found.constant, found.contrast, clear, dropped, found.floor)


def _fit_median(
    steps: tuple[int, ...], x: Array, errors: Array, confidence: float, window: Sequence[int] | None
) -> Slope:
    y = np.log2(np.maximum(np.median(errors, axis=1), TINY))
    resampled = log_medians(errors)
    covariance = np.cov(resampled, rowvar=False)
    kept = _window(steps, y, covariance, Floors(), window)
    line = _law(kept, steps, x, y, covariance)
    tail = (1 - confidence) / 2
    change = (resampled - resampled.mean(axis=0))[:, kept.slice] @ line.contrast
    low, high = line.slope + np.quantile(change, [tail, 1 - tail])
    return line.with_interval(low, high)


def _line(x: Array, y: Array, covariance: Array) -> tuple[Array, Array]:
    """Coefficients a, o with slope ``a @ y`` and intercept ``o @ y``: least squares with Huber's weights."""
    weights = np.ones_like(x)
    a, offset = _weighted(x, weights)
    for _ in range(20):
        residuals = y - (a @ y) * x - offset @ y
        noise = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        scale = np.maximum(np.maximum(noise, 1.4826 * np.median(np.abs(residuals))), EXACT)
        size = np.abs(residuals)
        update = np.where(size > HUBER * scale, HUBER * scale / np.maximum(size, 1e-300), 1.0)
        if np.allclose(update, weights, rtol=1e-3):
            break
        weights = update
        a, offset = _weighted(x, weights)
    return a, offset


def _weighted(x: Array, weights: Array) -> tuple[Array, Array]:
    share = weights / weights.sum()
    centred = x - share @ x
    a = share * centred / (share @ centred**2)
    return a, share - (share @ x) * a


def _check(steps: tuple[int, ...], errors: Array, statistic: str) -> None:
    if statistic not in STATISTICS:
        raise ValueError(f"statistic: got {statistic!r}; pass one of {STATISTICS}")
    if len(steps) < 3 or any(m <= n for n, m in pairwise(steps)) or steps[0] < 1:
        raise ValueError(f"steps: got {steps}; pass at least three increasing numbers of steps")
    if errors.ndim != 2 or len(errors) != len(steps) or errors.shape[1] < 10:
        raise ValueError(f"errors: got shape {errors.shape}; pass ({len(steps)}, paths), at least ten paths")
    if not np.isfinite(errors).all():
        raise ValueError("errors: some are NaN or infinite; the solver diverges, so start with more steps")


# ---------------------------------------------------------------- the window


@dataclass(frozen=True)
class Window:
    """Levels ``first .. last`` (inclusive), whether they show or may have a floor, and what was left out.

    ``on_floor``: the law on a floor that was fitted to these levels on the way.
    """

    first: int
    last: int
    has_floor: bool = False
    may_have_floor: bool = False
    dropped: tuple[Dropped, ...] = ()
    on_floor: PowerOnFloor | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def slice(self) -> slice:
        return slice(self.first, self.last + 1)


def _window(steps: tuple[int, ...], y: Array, covariance: Array, floors: Floors, given: Sequence[int] | None) -> Window:
    if given is not None:
        first, last = steps.index(given[0]), steps.index(given[-1])
        dropped = [Dropped(n, "not in the window") for n in steps if n not in given]
        return Window(first, last, dropped=tuple(dropped))
    sizes = np.asarray(floors.sizes, dtype=np.float64).reshape(-1, len(steps))
    window = above_floors(steps, 2.0**y, sizes, floors.names)
    if window.size < 3:
        raise TooFewLevelsError(window.dropped)
    return straight(window, steps, y, covariance)


def above_floors(steps: Sequence[int], errors: Array, floors: Array, names: Sequence[str]) -> Window:
    """Drop, from the finest, levels with an error below a known floor.

    Args:
        errors: (levels,).
        floors: (floors, levels): the least error to be believed, for each cause and level.
        names: each cause, as in "error 1e-3 is below {name}".
    """
    last, dropped = len(steps) - 1, []
    while last >= 0 and not (errors[last] > floors[:, last]).all():
        worst = int(np.argmax(floors[:, last]))
        reason = f"error {errors[last]:.2g} is below {names[worst]}, {floors[worst, last]:.2g}"
        dropped.append(Dropped(steps[last], reason))
        last -= 1
    return Window(0, last, dropped=tuple(dropped))


def straight(window: Window, steps: Sequence[int], y: Array, covariance: Array) -> Window:
    """Notice a floor at the fine end, or else drop coarse levels that lie off the line through the finer ones.

    The coarsest level is pre-asymptotic if its distance from the others' line is ``CLEAR`` standard errors (of all
    levels together: they share their paths) and taking it in would change the slope by more than ``MATERIAL``. Levels
    go until none is, or ``LEAST`` are left.
    """
    while window.size > LEAST:
        use = window.slice
        x = np.log2(np.asarray(steps[use], dtype=np.float64))
        bend, on_floor = _floors_bend(x, y[use], covariance[use, use])
        window = replace(window, may_have_floor=bend > POSSIBLE, on_floor=on_floor)
        if bend > HINT:
            return replace(window, has_floor=True)
        coarse = _coarsest(x, y[use], covariance[use, use])
        if abs(coarse.significance) <= CLEAR or coarse.change <= MATERIAL:
            break
        reason = f"{2**coarse.distance:.3g} times the line through the finer levels: pre-asymptotic"
        dropped = (*window.dropped, Dropped(steps[window.first], reason))
        window = replace(window, first=window.first + 1, dropped=dropped, on_floor=None)
    return window


def _floors_bend(x: Array, y: Array, covariance: Array) -> tuple[float, PowerOnFloor | None]:
    """Standard errors by which the line bends upwards at its fine end, as a floor makes it; 0 if at its coarse end.
    And the law on a floor that was fitted for it.

    A floor's part in the square of the error grows by ``4^slope`` from level to level; that of a higher-order term
    fades like a power of the step. Where a fading term is as significant, the law that fits better decides.
    """
    if _significance(x**2, x, y, covariance) < POSSIBLE:
        return 0.0, None
    found = fit_on_floor(x, y)
    if found is None:
        return 0.0, None
    for power in (0.5, 1.0, 2.0):
        fading = 2.0 ** (-power * (x - x[0]))
        columns = np.stack([np.ones_like(x), x, fading], axis=1)
        cost = float(((y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]) ** 2).sum())
        if cost < found.cost / 2 and abs(_significance(fading, x, y, covariance)) > CLEAR:
            return 0.0, found
    return _significance(found.curve, x, y, covariance), found


def _significance(shape: Array, x: Array, y: Array, covariance: Array) -> float:
    """Count the standard errors of y in the direction of ``shape``, after straight lines are taken out."""
    lines = np.stack([np.ones_like(x), x], axis=1)
    contrast = shape - lines @ np.linalg.lstsq(lines, shape, rcond=None)[0]
    return float(contrast @ y / np.sqrt(max(contrast @ covariance @ contrast, 1e-300)))


class _Departure(NamedTuple):
    distance: float  # in log2
    significance: float  # in standard errors
    change: float  # of the slope if the level is taken in


def _coarsest(x: Array, y: Array, covariance: Array) -> _Departure:
    """Measure how far the first level lies off the least squares line through the others."""
    others, slope = x[1:], np.zeros_like(x)
    slope[1:] = (others - others.mean()) / ((others - others.mean()) ** 2).sum()
    contrast = -(x[0] - others.mean()) * slope - 1 / len(others)
    contrast[0] = 1.0
    distance = float(contrast @ y)
    deviation = float(np.sqrt(max(contrast @ covariance @ contrast, 1e-300)))
    with_end = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return _Departure(distance, distance / deviation, abs(float((with_end - slope) @ y)))


# ---------------------------------------------------------------- a power law on a floor


class PowerOnFloor(NamedTuple):
    """``e^2 = (constant N^-slope)^2 + floor^2``.

    ``contrast @ dy`` is the change of the slope with ``dy = d log2 e``, to first order; ``curve`` the fitted
    log2 e; ``cost`` the sum of squares left.
    """

    slope: float
    constant: float
    floor: float
    contrast: Array
    curve: Array
    cost: float


def fit_on_floor(x: Array, y: Array) -> PowerOnFloor | None:
    """Fit ``y = log2 e`` at ``x = log2 N`` by least squares; ``None`` where the data show no floor.

    Squares add because rounding errors, or a reference's own error, are uncorrelated with the error of the method.
    By scipy's Levenberg-Marquardt (MINPACK), from the best of the laws through the first levels alone.
    """

    def residuals(parameters: Array) -> Array:
        return _curve(x, parameters) - y

    guesses = [_guess(x, y, start) for start in range(1, len(x) - 1)]
    start = min(guesses, key=lambda guess: float((residuals(guess) ** 2).sum()))
    found = least_squares(residuals, start, jac=lambda parameters: _model(x, parameters)[2], method="lm")
    c, p, q = found.x
    curve, share, jacobian = _model(x, found.x)
    if not np.isfinite(found.cost) or (share > 0.999).all() or np.linalg.cond(jacobian) > 1e6:
        return None
    contrast = np.linalg.pinv(jacobian)[1]
    return PowerOnFloor(float(p), float(2.0**c), float(2.0 ** (q / 2)), contrast, curve, 2 * float(found.cost))


def _guess(x: Array, y: Array, start: int) -> Array:
    """``(c, p, q)``: the law from the first levels, the floor from the rest."""
    p, c = np.polyfit(x[: start + 1], y[: start + 1], 1)
    return np.array([c, max(-p, 0.1), 2 * y[start + 1 :].min() - 0.5])


def _curve(x: Array, parameters: Array) -> Array:
    """The curve alone."""
    c, p, q = parameters
    curve: Array = np.logaddexp2(2 * (c - p * x), q) / 2
    return curve


def _model(x: Array, parameters: Array) -> tuple[Array, Array, Array]:
    """The curve, the power law's share of the square, and the derivative of the curve in ``(c, p, q)``."""
    c, p, _ = parameters
    curve = _curve(x, parameters)
    share = 2.0 ** (2 * (c - p * x) - 2 * curve)
    return curve, share, np.stack([share, -x * share, (1 - share) / 2], axis=1)
