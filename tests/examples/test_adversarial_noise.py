"""The audit by initial noise finds what its table says."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")

from examples import adversarial_noise as example

FEW, MORE = example.STEPS
SMALL, LARGE = example.ANGLES


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> example.Audit:
    out = tmp_path_factory.mktemp("adversarial")
    made = example.run(out)
    assert (out / "adversarial_noise.png").stat().st_size > 10_000
    return made


def test_the_classifier_is_a_good_one(audit: example.Audit) -> None:
    assert audit.held_out > 0.85
    assert all(share > 0.85 for share in audit.right.values())


def test_exact_gradients_find_adversarial_samples_and_random_rotations_do_not(audit: example.Audit) -> None:
    for rows in audit.rows.values():
        assert rows[example.EXACT].success[LARGE] > 0.45
        assert rows[example.EXACT].success[LARGE] > rows[example.EXACT].success[SMALL]
        assert rows[example.RANDOM].success[LARGE] < rows[example.EXACT].success[LARGE] - 0.25


def test_adversarial_samples_still_show_their_class(audit: example.Audit) -> None:
    for rows in audit.rows.values():
        for row in rows.values():
            for angle in example.ANGLES:
                assert row.still[angle] == 1 if row.success[angle] else math.isnan(row.still[angle])


def test_inexact_gradients_at_few_steps_miss_nearly_all_of_them(audit: example.Audit) -> None:
    few = audit.rows[FEW]
    for name in ('adjoint_dpm("euler")', "adjoint_deis(1)"):
        agrees = few[name].agreement
        assert agrees is not None
        assert agrees.cosine < 0
        assert few[name].success[LARGE] < 0.1
    assert few["adjoint_deis(2)"].success[LARGE] < few[example.EXACT].success[LARGE] - 0.25


def test_at_more_steps_every_gradient_finds_about_the_same(audit: example.Audit) -> None:
    rows = audit.rows[MORE]
    for name in example.ADJOINTS:
        agrees = rows[name].agreement
        assert agrees is not None
        assert agrees.cosine > 0.8
        assert rows[name].success[LARGE] > rows[example.EXACT].success[LARGE] - 0.2


def test_an_exact_gradient_costs_two_calls_a_step(audit: example.Audit) -> None:
    for steps, rows in audit.rows.items():
        assert rows[example.EXACT].calls == 2 * example.ITERATIONS * steps
        for row in rows.values():
            assert row.distance <= 2 * math.sin(LARGE / 2) * (1 + 1e-12)


def test_rotations_stay_on_the_sphere_and_within_the_angle() -> None:
    generator = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 5, 1, 8, 8, generator=generator, dtype=torch.float64)
    turned = example.rotated(other, z, 0.3)
    assert torch.allclose(example.norms(turned), example.norms(z), rtol=1e-14, atol=0)
    cosine = torch.cosine_similarity(turned.flatten(1), z.flatten(1))
    assert torch.allclose(cosine, torch.full_like(cosine, math.cos(0.3)), rtol=1e-14, atol=0)
    assert torch.allclose(example.rotated(turned, z, 0.4), turned, rtol=0, atol=1e-13)  # within: nothing happens
