"""The claims of ``examples/diffusers_pipeline.py``."""

from __future__ import annotations

import pytest

from examples import diffusers_pipeline
from examples.diffusers_pipeline import FRACTION, ITERATIONS, Result

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> object:
    return tmp_path_factory.mktemp("diffusers_pipeline")


@pytest.fixture(scope="module")
def result(out) -> Result:  # type: ignore[no-untyped-def]
    return diffusers_pipeline.run(out)


def test_gradients_are_those_of_plain_backpropagation(result: Result) -> None:
    """Two float32 computations of 5 to 25 network calls: 1e-6 was seen, a wrong term shows at 1e-2."""
    for case in result.cases:
        assert len(case.errors) == 3
        assert max(case.errors) <= 1e-4


def test_memory_is_the_documented_fraction(result: Result) -> None:
    assert {case.steps for case in result.cases} == {5, 10, 25}
    for case in result.cases:
        assert case.peak <= FRACTION / case.steps * case.plain_peak


def test_the_gradient_draws_the_landscape(result: Result) -> None:
    """0.35 to 0.10 was seen; and each kind of gradient has its part in it."""
    assert len(result.losses) == ITERATIONS + 1
    assert result.losses[-1] <= 0.4 * result.losses[0]
    assert all(loss >= 1.2 * result.losses[-1] for loss in result.put_back)


def test_the_picture(result: Result, out) -> None:  # type: ignore[no-untyped-def]
    assert (out / "diffusers_pipeline.png").stat().st_size > 20_000
