"""Run test files on a tree, in a process that has the heavy imports behind it already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import Any

SECONDS = 300
OURS = ("sdeadjoint", "tests", "theory", "examples")
# A fork of a process that has imported these starts at once. None of them is ours: the tree's own modules are mutated.
PRELOADED = [
    "torch",
    "torchsde",
    "scipy.integrate",
    "scipy.stats",
    "hypothesis",
    "mpmath",
    "sklearn.datasets",
    "pytest",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class Outcome(Enum):
    """What came of the tests."""

    PASSED = "passed"
    FAILED = "failed"
    LATE = "past the time limit"


def run(tests: tuple[str, ...], tree: Path, first: str = "") -> Outcome:
    """``tests/<name>.py`` for each name, in ``tree``, until the first failure; those that mention ``first`` before."""
    os.environ |= {"CI": "true", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = _context.Process(target=_run_here, args=(tests, tree, first))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return Outcome.LATE
    return Outcome.PASSED if process.exitcode == 0 else Outcome.FAILED


def _run_here(tests: tuple[str, ...], tree: Path, first: str) -> None:
    os.setsid()  # with everything that the tests start: killed as one
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path.insert(0, str(tree))
    import pytest

    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    # hypothesis is a plugin of pytest's, which warns that it came before pytest could rewrite its assertions.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    for name in tests:  # one by one: most mutants are caught by the first file, and collecting takes its time
        status = int(pytest.main([*options, f"tests/{name}.py"], plugins=[_Mentioning(first.lower())]))
        if status:
            sys.exit(status)


class _Mentioning:
    """A plugin of pytest's: tests whose names mention a word run first, in their order otherwise."""

    def __init__(self, word: str) -> None:
        self.word = word

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self.word not in item.nodeid.lower())
