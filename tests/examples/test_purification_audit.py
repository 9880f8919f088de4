"""The audit of the purification defence finds what its table says, and its wrong gradients are those it names."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")

import sdeadjoint as sa
from examples import purification_audit as example
from examples.digits import purifier
from examples.digits.classifiers import trained

FEW, MORE = example.STEPS
EXACT, PLAIN = "Checkpoint(), exact", "straight through (BPDA)"


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> example.Audit:
    out = tmp_path_factory.mktemp("audit")
    made = example.run(out)
    assert (out / "purification_audit.png").stat().st_size > 10_000
    return made


def test_the_defence_defends(audit: example.Audit) -> None:
    clean, attacked = audit.undefended
    assert clean > 0.85
    assert attacked < 0.3
    for values in audit.clean.values():
        assert min(values) > 0.85


def test_exact_gradients_leave_the_least_accuracy_where_the_noise_is_known(audit: example.Audit) -> None:
    for steps in example.STEPS:
        rows, (clean, _) = audit.rows[steps], audit.clean[steps]
        assert rows[EXACT].known < clean - 0.3
        # One image is 0.016; three of them for ties among the accurate gradients.
        assert rows[EXACT].known <= min(row.known for row in rows.values()) + 0.05
        for weak in ("classifier alone", PLAIN):
            assert rows[weak].known >= rows[EXACT].known + 0.06


def test_a_continuous_adjoint_at_few_steps_reports_far_too_much(audit: example.Audit) -> None:
    few = audit.rows[FEW]
    assert few["adjoint_deis(1)"].known >= few[EXACT].known + 0.2
    assert few["adjoint_deis(1)"].fresh >= few[EXACT].fresh + 0.1
    assert audit.rows[MORE]["adjoint_deis(1)"].agreement.error < few["adjoint_deis(1)"].agreement.error


def test_fresh_noise_hides_the_differences(audit: example.Audit) -> None:
    for steps in example.STEPS:
        rows = audit.rows[steps]
        gap = rows[PLAIN].known - rows[EXACT].known
        assert rows[PLAIN].fresh - rows[EXACT].fresh < gap
        assert all(abs(rows[name].fresh - rows[EXACT].fresh) < 0.08 for name in rows if name != "adjoint_deis(1)")


def test_noise_drawn_anew_is_another_gradient(audit: example.Audit) -> None:
    for steps in example.STEPS:
        rows = audit.rows[steps]
        assert rows["recomputed, noise anew"].agreement.error > 0.3
        anew, replayed = (rows[f"Euler, reconstructed, noise {how}"] for how in ("anew", "replayed"))
        assert anew.agreement.cosine < replayed.agreement.cosine < rows["ContinuousAdjoint(Heun())"].agreement.cosine
        assert anew.known >= rows[EXACT].known + 0.05
        assert rows[EXACT].agreement.error == 0
    cosines_anew, cosines_replayed = (
        [audit.rows[steps][f"Euler, reconstructed, noise {how}"].agreement.cosine for steps in example.STEPS]
        for how in ("anew", "replayed")
    )
    assert cosines_replayed[1] > cosines_replayed[0]
    assert cosines_anew[1] < cosines_anew[0]


def test_attacks_stay_in_the_ball_and_in_the_range(audit: example.Audit) -> None:
    images = sa.problems.Digits().images[example.TRAINING_IMAGES :][: example.IMAGES]
    for rows in audit.rows.values():
        for row in rows.values():
            assert float((row.attacked - images).flatten(1).norm(dim=1).max()) <= example.BUDGET * (1 + 1e-12)
            assert float(row.attacked.abs().max()) <= 1 + 1e-12


def test_network_calls(audit: example.Audit) -> None:
    for steps in example.STEPS:
        rows = audit.rows[steps]
        assert rows["classifier alone"].calls == 0
        assert rows[PLAIN].calls == example.ITERATIONS * steps
        assert rows[EXACT].calls == 2 * example.ITERATIONS * steps  # forward, and once more to differentiate


@pytest.fixture(scope="module")
def scene() -> tuple[purifier.Defence, torch.Tensor, torch.Tensor]:
    digits = sa.problems.Digits(bandwidth=0.3)
    classifier = trained(digits.images[:200], digits.labels[:200], seed=0)
    defence = purifier.Defence.create(classifier, digits.denoiser(purifier.SCHEDULE), 0.8, 4)
    return defence, digits.images[200:203], digits.labels[200:203]


def test_wrong_gradients_with_the_right_noise_are_the_right_ones(
    scene: tuple[purifier.Defence, torch.Tensor, torch.Tensor],
) -> None:
    exact = purifier.through(sa.Direct())(*scene, 3)
    # Sums in another order, in float64.
    assert torch.allclose(purifier.through(sa.Checkpoint())(*scene, 3), exact, rtol=1e-10, atol=0)
    assert torch.allclose(purifier.recomputed(*scene, 3, backward=0), exact, rtol=1e-10, atol=0)
    replayed = purifier.through(sa.ContinuousAdjoint(sa.Euler(), "reconstructed"))(*scene, 3)
    by_hand = purifier.reconstructed(*scene, 3, backward=0)
    # The way back amplifies round-off: by sigma / alpha at t* over that at the end, 16, and by the network's slopes.
    assert float((by_hand - replayed).norm() / replayed.norm()) < 1e-8
    assert float((by_hand - exact).norm() / exact.norm()) > 0.05
