"""Settings shared by all tests."""

import functools
import gc
import os
import re
from pathlib import Path
from typing import Any

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


def pytest_collection() -> None:
    """Build up the tests and what they import without looking for garbage, as all of it stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage among what comes later alone."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw the same unseeded layers and dropout masks in a test, whatever ran before it."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed notes the stack, for devices that are not there


SHARES_WORK = re.compile(r'scope="(module|session)"|^@(functools\.)?cache|^from \.(measured_\w+|driven)', re.MULTILINE)


@functools.cache
def scope_of_file(path: str) -> str:
    """The file itself if it has fixtures or caches of its own, else nothing."""
    return path if SHARES_WORK.search(Path(path).read_text()) else ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Leave to one process what shares work: the cases of a function, or a whole file with fixtures or caches."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of_file(nodeid.partition("::")[0]) or nodeid.partition("[")[0]

    return Together(config, log)
