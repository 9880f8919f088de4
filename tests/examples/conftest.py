"""Marks what needs a whole run of a long example: ``make test-examples`` runs that, and ``make test`` the rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

WHOLE_RUNS = {
    "test_adversarial_noise": "audit",
    "test_diffusers_pipeline": "result",
    "test_embedding_inversion": "result",
    "test_inverse_problem": "rows",
    "test_morphing": "result",
    "test_newton": "result",
    "test_noise_optimisation": "steering",
    "test_own_solver": "result",
    "test_purification_audit": "audit",
    "test_style_finetuning": "rows",
}
"""By module, the fixture that runs its example as a user does, which takes up to a minute."""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        fixture = WHOLE_RUNS.get(item.path.stem)
        if isinstance(item, pytest.Function) and fixture in item.fixturenames:
            item.add_marker(pytest.mark.whole_run)
