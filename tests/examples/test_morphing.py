"""The claims of the morphing example's table."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from examples import morphing
from examples.digits.morphs import Result

SAMPLERS = tuple(morphing.SAMPLERS)
GUIDES = tuple(morphing.GUIDES)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("morphing")


@pytest.fixture(scope="module")
def result(out) -> Result:
    return morphing.run(out)


def test_a_picture_is_written(result, out):
    assert (out / "morphing.png").stat().st_size > 10_000


def test_recognisers_hold_the_false_match_rate_and_know_their_digits(result):
    for judge in result.pairs.judges:
        assert judge.impostors > 50_000
        assert 0.9e-3 < judge.false_matches / judge.impostors <= 1e-3
        assert judge.true_match_rate > 0.98
        assert judge.threshold < 0.6  # well below cos(45 degrees): an image can be close to two orthogonal vectors
    a, b = result.pairs.digits
    assert (a != b).all()
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == morphing.PAIRS


# 32 pairs: the standard error of a rate is at most 0.09, and the margins below are less than half of what was measured.
@pytest.mark.parametrize(("sampler", "guide"), list(product(SAMPLERS, GUIDES)))
def test_every_guide_is_better_than_interpolation(result, sampler, guide):
    plain, guided = result.rows[sampler, morphing.PLAIN], result.rows[sampler, guide]
    assert plain.rates[2] <= 0.15
    assert guided.rates[2] >= plain.rates[2] + 0.2  # measured: 0.38 or more
    assert guided.losses.mean() < plain.losses.mean() - 0.7  # 1.4 or more


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_gradients_morph_half_of_the_pairs_and_better_than_adjoint_deis_1(result, sampler):
    exact, first = result.rows[sampler, "exact"], result.rows[sampler, "AdjointDEIS-1"]
    assert exact.rates[2] >= 0.45  # 0.66 and 0.62
    assert exact.losses.mean() < first.losses.mean() - 0.1  # 0.42; 0.18 to 0.45 with two other seeds
    assert sum(exact.rates) > sum(first.rates)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_adjoint_deis_2m_serves_as_well_as_the_exact_gradient(result, sampler):
    exact, second = result.rows[sampler, "exact"], result.rows[sampler, "AdjointDEIS-2M"]
    assert abs(float(exact.losses.mean() - second.losses.mean())) < 0.4  # 0.09 and 0.16
    assert abs(exact.rates[2] - second.rates[2]) < 0.25  # 0.06


@pytest.mark.parametrize(("sampler", "tensor"), [*product(SAMPLERS, ("x_T", "label")), ("SDE", "noise")])
def test_the_exact_gradient_is_that_of_plain_backpropagation(result, sampler, tensor):
    error, cosine = result.rows[sampler, "exact"].errors[tensor]
    assert error <= 1e-12  # round-off: some thousand float64 operations, and a network that amplifies little
    assert cosine >= 1 - 1e-12


@pytest.mark.parametrize(
    ("sampler", "tensor", "guide", "least", "most"),
    [
        ("ODE", "x_T", "AdjointDEIS-1", 0.8, 1.0),  # 0.92
        ("ODE", "x_T", "AdjointDEIS-2M", 1.2, 2.0),  # 1.6
        ("ODE", "x_T", "continuous, Heun", 0.003, 0.05),  # 0.015
        ("SDE", "noise", "AdjointDEIS-1", 0.4, 0.9),  # 0.60
        ("SDE", "noise", "AdjointDEIS-2M", 10, 100),  # 45
        ("SDE", "noise", "continuous, Heun", 0.05, 0.3),  # 0.13
        ("SDE", "x_T", "AdjointDEIS-2M", 1e3, 1e5),  # 9.7e3
    ],
)
def test_continuous_adjoints_are_not_the_samplers_gradient(result, sampler, tensor, guide, least, most):
    assert least < result.rows[sampler, guide].errors[tensor][0] < most


def test_a_wrong_length_may_point_the_right_way_or_nowhere(result):
    assert result.rows["ODE", "AdjointDEIS-2M"].errors["x_T"][1] > 0.98
    assert 0.9 < result.rows["ODE", "AdjointDEIS-1"].errors["x_T"][1] < 0.99
    assert abs(result.rows["SDE", "AdjointDEIS-2M"].errors["noise"][1]) < 0.2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_calls_and_memory(result, sampler):
    rows = {guide: result.rows[sampler, guide] for guide in GUIDES}
    assert rows["exact"].calls == 2 * morphing.STEPS * morphing.ITERATIONS
    assert all(row.calls >= rows["exact"].calls for row in rows.values())
    assert all(row.peak > 0.85 * rows["exact"].peak for row in rows.values())
    assert result.direct[sampler] > 3 * rows["exact"].peak


def test_the_table_shows_the_errors_in_x_T_and_in_the_noise(result):
    row = result.rows["SDE", "AdjointDEIS-1"]
    assert row.cells[-4:] == [f"{number:.2g}" for tensor in ("x_T", "noise") for number in row.errors[tensor]]


def test_slerp_stays_on_the_sphere():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 1, 8, 8, generator=generator, dtype=torch.float64)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
    middle = morphing.slerp(a, b).flatten(1)
    assert torch.allclose(middle.norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-12)
