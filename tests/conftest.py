"""Settings shared by all tests."""

import functools
import os
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# No deadlines: the machines that run the tests are shared. Derandomised where results must not differ from run to run.
# Half of hypothesis' own number of examples; HYPOTHESIS_PROFILE=thorough takes six times as many.
settings.register_profile("default", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=300)
# For whole files run again under other conditions: changed last bits show at once.
settings.register_profile("few", parent=settings.get_profile("default"), max_examples=10, derandomize=True)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
# For planted faults: a failure is enough, its smallest example is not needed.
settings.register_profile("mutants", parent=settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Function]) -> None:
    """Leave to one process what shares work: a function's cases; a whole module with fixtures or caches of its own."""
    for item in items:
        fixtures = [found for each in item._fixtureinfo.name2fixturedefs.values() for found in each]
        shares = any(fixture.scope in ("module", "session") and fixture.baseid for fixture in fixtures)
        cached = any(isinstance(value, functools._lru_cache_wrapper) for value in vars(item.module).values())
        name = item.module.__name__
        item.add_marker(pytest.mark.xdist_group(name if shares or cached else f"{name}.{item.originalname}"))
