"""The equilibrium example in small: what is counted is right, gradients are, and claims follow from intervals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

pytest.importorskip("sklearn")
pytest.importorskip("rich")

from examples import equilibrium as example
from examples.digits import implicit
from examples.digits.implicit import DeepEquilibrium, HomoODE
from sdeadjoint import equilibria

TRAJECTORIES = (example.NODE, example.ANODE, example.HOMO, example.SHARED)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> example.Result:
    """Two seeds, six batches: nothing is said of accuracy."""
    out = tmp_path_factory.mktemp("equilibrium")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "SEEDS", range(2))
        patch.setattr(implicit, "ITERATIONS", 6)
        made = example.run(out)
    assert (out / "equilibrium.png").stat().st_size > 10_000
    return made


def test_all_have_as_many_weights(result: example.Result) -> None:
    weights = [row.weights for rows in result.rows.values() for row in rows]
    assert max(weights) <= 1.02 * min(weights)


def test_calls_are_those_of_the_methods(result: example.Result) -> None:
    """Four steps of two stages; back, each is evaluated and pulled back once."""
    for name in TRAJECTORIES:
        for row in result.rows[name]:
            assert (row.cost.forward, row.cost.backward) == (8, 16)
    deq = result.gradients
    assert deq["DEQ: OneStep()"].backward == 2
    assert deq["DEQ: Phantom(k=5, damping=0.5)"].backward == 10
    assert deq["DEQ: implicit, Broyden"].backward > 4
    assert result.gradients["HomoODE: continuous, reconstructed"].backward > 16  # the end's drift


def test_gradients_are_exact_where_it_is_said(result: example.Result) -> None:
    for name in TRAJECTORIES:
        # float32, and eight evaluations of small networks.
        assert max(row.cost.error for row in result.rows[name]) <= 64 * torch.finfo().eps
    errors = {name: cost.error for name, cost in result.gradients.items()}
    # The tolerance, times |(1 - J)^-1|, which is below 50 before much is learned; then its square.
    assert errors["DEQ: implicit, Broyden"] <= 50 * implicit.TOL
    assert errors["DEQ: implicit, FixedPoint(0.5)"] <= 50 * implicit.TOL
    assert errors["DEQ: OneStep()"] > 0.1
    assert errors["HomoODE: continuous, recorded"] > 1e-3


def test_trajectories_start_where_they_should(result: example.Result) -> None:
    for name, states in result.paths.items():
        assert states.shape[0] == len(implicit.CLOCK)
        assert torch.equal(states[0], states[0, :1].expand_as(states[0])), name
        assert not torch.equal(states[-1], states[-1, :1].expand_as(states[-1]))
    assert not result.paths[example.HOMO][0].any()
    assert result.paths[example.SHARED][0].any()


def test_a_start_at_zero_costs_steps_by_the_first_step_alone(result: example.Result) -> None:
    """The usual first step is 1e-4 of the span at zero, and grows at most fivefold: six steps."""
    zero, shared = ([row.way for row in result.rows[name]] for name in (example.HOMO, example.SHARED))
    assert all(a.usual - b.usual >= 4 for a, b in zip(zero, shared, strict=True))
    assert all(abs(a.steps - b.steps) <= 1 for a, b in zip(zero, shared, strict=True))
    assert all(math.isnan(row.way.length) for row in result.rows[example.DEQ])


def test_claims_are_differences_that_are_paired(result: example.Result) -> None:
    claims = {claim.text: claim for claim in result.claims}
    assert len(claims) == 10
    claim = claims["HomoODE is more accurate than the DEQ"]
    pairs = zip(result.rows[example.HOMO], result.rows[example.DEQ], strict=True)
    want = [100 * (a.accuracy - b.accuracy) for a, b in pairs]
    assert claim.difference.value == pytest.approx(sum(want) / len(want), abs=1e-9)
    memory = claims["HomoODE needs less memory than the neural ODE"]
    assert memory.verdict == "confirmed"  # 32 numbers of state against 64
    assert memory.difference.value > 0


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2.0, "confirmed"), (-2.0, -0.1, "contradicted"), (-0.1, 2.0, "not decided")],
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    claim = example.Claim("it is so", example.Mean((low + high) / 2, low, high), "points")
    assert claim.verdict == verdict
    assert str(claim).startswith(f"it is so: {verdict} (")


def test_intervals_are_students() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    want = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert example.Mean.of(values)[1:] == pytest.approx(tuple(want), rel=1e-12)


def test_samples_that_miss_the_tolerance_are_counted() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DeepEquilibrium()
    model.method = equilibria.FixedPoint(max_iterations=1)
    with pytest.warns(equilibria.EquilibriumWarning):
        model(torch.ones(3, implicit.PIXELS))
    assert model.missed == 3


def test_the_shared_start_is_fitted_in_training_only() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HomoODE(shared=True)
    assert model.shared is not None
    images = torch.ones(3, implicit.PIXELS)
    model.eval()(images)
    assert int(model.shared.calls) == 0
    model.train()(images)
    assert int(model.shared.calls) == 1
