"""The slope estimator on synthetic errors: known order, floor and noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sdeadjoint.convergence import TooFewLevelsError, fit
from sdeadjoint.convergence.slope import Floors, _guess, _model, fit_on_floor, local_order, local_orders
from sdeadjoint.convergence.verdict import judge

TRIALS = 500
# The promise is 93 to 97 %: 95 % of 500 trials has a standard deviation of 1 %. Intervals that are a tenth too narrow
# cover 92 % with Gaussian errors, and those of normal quantiles 88 to 90 % with lognormal ones.
LEAST, MOST = 0.93, 0.97


def synthetic(
    rng: np.random.Generator, order: float, levels: int, paths: int, noise: str, floor: float = 0.0
) -> tuple[list[int], NDArray[np.float64]]:
    """Errors ``N^-order`` times noise, half of it shared by all levels, on an independent floor."""
    steps = 2 ** np.arange(4, 4 + levels)
    if noise == "gaussian":  # the norm of a two-dimensional error
        parts = rng.normal(size=(levels, paths, 2)) + rng.normal(size=(1, paths, 2))
        factor = np.linalg.norm(parts, axis=-1) / 2**0.5
    else:
        factor = np.exp(0.7 * rng.normal(size=(1, paths)) + 0.5 * rng.normal(size=(levels, paths)))
    law = (1.0 / steps)[:, None] ** order * factor
    return steps.tolist(), np.hypot(law, floor * rng.normal(size=(levels, paths)))


def coverage(order: float, trials: int = TRIALS, statistic: str = "rms", **options: object) -> tuple[float, float]:
    """The share of intervals that hold the order, and the mean slope."""
    rng = np.random.default_rng(7)
    fits = [fit(*synthetic(rng, order, **options), statistic=statistic) for _ in range(trials)]  # type: ignore[arg-type]
    hits = [law.interval[0] <= order <= law.interval[1] for law in fits]
    return float(np.mean(hits)), float(np.mean([law.slope for law in fits]))


@pytest.mark.parametrize("noise", ["gaussian", "lognormal"])
def test_intervals_cover_the_order(noise: str) -> None:
    covered, mean = coverage(1.5, levels=6, paths=100, noise=noise)
    assert LEAST <= covered <= MOST
    assert mean == pytest.approx(1.5, abs=0.02)


def test_intervals_cover_the_order_above_a_floor() -> None:
    # Errors reach the floor in the sixth of ten levels: the law must be told from what it stands on.
    covered, mean = coverage(1.0, levels=10, paths=100, noise="gaussian", floor=1e-3)
    assert LEAST <= covered <= MOST
    assert mean == pytest.approx(1.0, abs=0.01)


def test_intervals_allow_for_a_floor_that_may_be_there() -> None:
    # It hides in the finest of five levels: 77 % are covered with an allowance for it, 65 % without (400 trials: 2 %).
    covered, _ = coverage(1.0, trials=400, levels=5, paths=100, noise="gaussian", floor=0.7 / 256)
    assert covered >= 0.72


def test_intervals_of_the_median_cover_the_order() -> None:
    covered, _ = coverage(1.0, trials=300, statistic="median", levels=5, paths=100, noise="lognormal")
    assert 0.90 <= covered <= 0.99  # 300 trials: 95 % to four standard deviations of 1.3 %


def test_signed_errors_give_the_order_of_their_mean() -> None:
    rng = np.random.default_rng(3)
    steps = np.array([8, 16, 32, 64, 128])
    hits = []
    for _ in range(400):
        shared = rng.normal(size=(1, 100))
        errors = (1.0 / steps)[:, None] * (1.0 + shared + 0.3 * rng.normal(size=(5, 100)))
        law = fit(steps.tolist(), -errors, statistic="mean")
        hits.append(law.interval[0] <= 1.0 <= law.interval[1])
    assert 0.90 <= np.mean(hits) <= 0.99  # the median's allowance


def test_a_floor_is_found_and_named() -> None:
    steps, errors = synthetic(np.random.default_rng(0), 2.0, 10, 400, "gaussian", floor=1e-5)
    law = fit(steps, errors)
    assert law.floor == pytest.approx(1e-5, rel=0.1)  # sqrt(1/800) of noise per level, five levels on the floor
    assert {gone.steps for gone in law.dropped} == set(steps[5:])
    assert all("floor" in gone.reason for gone in law.dropped)


def test_the_preasymptotic_range_is_dropped() -> None:
    steps, errors = synthetic(np.random.default_rng(0), 1.0, 8, 400, "gaussian")
    errors *= (1 + (40 / np.array(steps)) ** 2)[:, None]
    law = fit(steps, errors)
    gone = [d.steps for d in law.dropped]
    assert gone == steps[: len(gone)]
    assert len(gone) >= 3
    assert all("pre-asymptotic" in d.reason for d in law.dropped)
    assert law.slope == pytest.approx(1.0, abs=0.05)  # what is left of (40/N)^2 in the levels kept


def test_known_floors_drop_levels() -> None:
    steps, errors = synthetic(np.random.default_rng(0), 1.0, 6, 100, "gaussian")
    law = fit(steps, errors, floors=Floors(("the floor",), ((0.0,) * 5 + (1.0,),)))
    assert [gone.steps for gone in law.dropped] == [steps[-1]]
    two = Floors(("one", "other"), ((0.0,) * 6, (0.0,) * 5 + (1.0,)))
    (gone,) = fit(steps, errors, floors=two).dropped  # below one of them is enough
    assert (gone.steps, "is below other" in gone.reason) == (steps[-1], True)
    with pytest.raises(TooFewLevelsError, match="below the floor"):
        fit(steps, errors, floors=Floors(("the floor",), ((0.0,) * 2 + (1.0,) * 4,)))


def test_one_bad_level_bends_the_line_little() -> None:
    steps, errors = synthetic(np.random.default_rng(0), 1.0, 9, 400, "gaussian")
    errors[6] *= 4
    law = fit(steps, errors, window=steps)
    # Plain least squares moves by 2 (levels) * 2 (log2 4) / 60 (sum of squares) = 0.067.
    assert law.slope == pytest.approx(1.0, abs=0.03)


def test_a_floor_above_the_known_ones_is_no_floor() -> None:
    steps, errors = synthetic(np.random.default_rng(0), 2.0, 10, 400, "gaussian", floor=1e-5)
    low, high = (fit(steps, errors, floors=Floors(("the floor",), ((size,) * 10,))) for size in (1e-8, 1.1e-5))
    assert low.steps == tuple(steps)
    assert low.standstill == pytest.approx(1e-5, rel=0.1)  # as in the test of floors that are found
    assert low.interval[1] < 1.85  # half of the levels stand still
    assert high.standstill == 0
    assert high.interval[0] <= 2.0 <= high.interval[1]


def test_intervals_of_the_order_between_two_levels_cover_it() -> None:
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(600):
        order, (low, high) = local_order((16, 32), synthetic(rng, 1.5, 2, 100, "lognormal")[1])
        assert order == pytest.approx((low + high) / 2)
        hits.append(low <= 1.5 <= high)
    assert 0.92 <= np.mean(hits) <= 0.98  # 600 trials: 95 % to three standard deviations of 0.9 %


def test_changes_of_the_order_between_levels_are_covered() -> None:
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(400):
        (before, after), (low, high) = local_orders((16, 32, 64), synthetic(rng, 1.5, 3, 100, "gaussian")[1])
        assert after - before == pytest.approx((low + high) / 2)
        hits.append(low <= 0.0 <= high)
    assert 0.91 <= np.mean(hits) <= 0.99  # 400 trials: 95 % to three standard deviations of 1.1 %
    errors = np.array([64.0, 16.0, 2.0])[:, None] * np.ones((3, 20))  # 2, then 3 / log2(3)
    (before, after), _ = local_orders((8, 16, 48), errors)
    assert (before, after) == pytest.approx((2.0, 3 / np.log2(3)))


def gauss_newton(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The least sum of squares that a damped Gauss-Newton method, written out, finds from the same start."""

    def cost(parameters: NDArray[np.float64]) -> float:
        return float(((y - _model(x, parameters)[0]) ** 2).sum())

    parameters = min((_guess(x, y, start) for start in range(1, len(x) - 1)), key=cost)
    damping = 1e-3
    for _ in range(50):
        curve, _, jacobian = _model(x, parameters)
        step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(3), jacobian.T @ (y - curve))
        trial = parameters + np.clip(step, -2, 2)
        if cost(trial) > cost(parameters):
            damping *= 10
            if damping > 1e6:
                break
        else:
            done = cost(parameters) - cost(trial) <= 1e-7 * cost(parameters)
            parameters, damping = trial, max(damping / 10, 1e-12)
            if done:
                break
    return cost(parameters)


def test_a_law_on_a_floor_is_fitted_as_well_as_can_be() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        levels = int(rng.integers(5, 11))
        x = np.arange(3.0, 3.0 + levels)
        order = rng.uniform(0.3, 4.0)
        floor = rng.choice([0.0, 0.3, 1.0, 3.0]) * 2.0 ** (-order * x[rng.integers(0, levels)])
        noise = rng.choice([0.0, 1e-6, 0.01, 0.1, 0.5]) * rng.normal(size=levels)
        y = np.log2(np.hypot(2.0 ** (-order * x), floor)) + noise
        law = fit_on_floor(x, y)
        if law is not None:
            found += 1
            # It stops where the sum of squares falls by less than 1e-8 of itself; 1e-12 is the rounding of exact data.
            assert law.cost <= gauss_newton(x, y) * (1 + 1e-6) + 1e-12
    assert found > 150


def test_errors_of_no_size_at_all_give_no_warning() -> None:
    # Residuals of equal logarithms are rounding, and no scale to weigh them by; warnings are errors here.
    law = fit([8, 16, 32, 64, 128], np.zeros((5, 50)))
    assert law.slope == pytest.approx(0.0, abs=1e-9)
    assert law.interval == (-np.inf, np.inf)
    few = np.zeros((5, 50))
    few[:, 0] = 1.0  # absent from many a resample
    assert fit([8, 16, 32, 64, 128], few).interval[0] <= 0.0


def test_an_interval_that_says_nothing_is_not_printed() -> None:
    steps = np.array([8, 16, 32, 64])
    errors = (1.0 / steps)[:, None] * (0.02 + np.random.default_rng(17).standard_t(2, size=(4, 10)))
    law = fit(steps.tolist(), errors, statistic="mean")
    assert law.interval == (-np.inf, np.inf)
    verdict = judge(law.slope, law.interval, 1.0, paths=10)
    assert verdict.outcome == "inconclusive"
    assert "no interval can be told" in verdict.reason


@pytest.mark.parametrize(
    ("steps", "errors", "sentence"),
    [
        ([4, 8], np.ones((2, 50)), "steps: got"),
        ([4, 8, 8], np.ones((3, 50)), "steps: got"),
        ([4, 8, 16], np.ones((3, 5)), "errors: got shape"),
        ([4, 8, 16], np.full((3, 50), np.nan), "NaN or infinite"),
    ],
)
def test_refusals(steps: list[int], errors: NDArray[np.float64], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit(steps, errors)
