"""``sdeadjoint study``: names, arguments, files and the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

import sdeadjoint as sa
from sdeadjoint import solvers
from sdeadjoint.command_line import named
from sdeadjoint.convergence.command import COMMAND, HOLDS, INCONCLUSIVE, VIOLATED

NAMES = {name: getattr(solvers, name) for name in solvers.__all__}
QUICK = ["--steps", "16,32,64,128", "--paths", "150"]


def study(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args([*arguments, *QUICK]))


def test_names_and_calls() -> None:
    assert named("Heun", NAMES) is sa.Heun
    assert named("AdamsBashforth(order=3, variable='clock')", NAMES) == sa.AdamsBashforth(3, "clock")
    assert named("Coupled(Heun(), zeta=0.99)", NAMES) == sa.Coupled(sa.Heun(), zeta=0.99)
    assert named("sdeadjoint:AdamsBashforth(2, variable='log')", {}) == sa.AdamsBashforth(2)
    with pytest.raises(ValueError, match="variable: got 'a:b'"):
        named("sdeadjoint:AdamsBashforth(2, variable='a:b')", {})


@pytest.mark.parametrize(
    "text",
    [
        "Nothing()",
        "Heun().step",
        "__import__('os').system('true')",
        "AdamsBashforth(order=1 + 2)",
        "AdamsBashforth(**{'order': 3})",
        "Heun(",
        "no.such.module:Solver",
        "(lambda: 0)()",
        "[Heun][0]",
    ],
)
def test_nothing_else_is_evaluated(text: str) -> None:
    before = list(sys.path)
    with pytest.raises(ValueError, match="got"):
        named(text, NAMES)
    assert sys.path == before


def test_the_files_and_a_claim_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--solver", "Euler", "--solver", "ShARK()", "--out", str(tmp_path / "out"))
    assert study(*arguments) == HOLDS == 0
    first = capsys.readouterr().out
    assert "holds" in first
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"study.json", "orders.png", "orders.svg", "work.png", "work.svg"}
    assert [result["solver"] for result in json.loads((tmp_path / "out/study.json").read_text())] == [
        "Euler()",
        "ShARK()",
    ]
    assert study(*arguments) == 0
    assert capsys.readouterr().out == first  # seconds too, as nothing is solved again


OWN = """
from typing import ClassVar
import sdeadjoint as sa
class Wrong(sa.Euler):
    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.0, evaluations=1)
def problem(eta, kind):
    return sa.problems.Gaussian(0.0, 0.5)
setting = sa.convergence.settings.line()
"""


def test_a_solver_and_a_problem_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_solver_for_study.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = ("--solver", "own_solver_for_study:Wrong", "--eta", "0")
    assert study(*own, "--problem", "line") == VIOLATED
    assert study(*own, "--problem", "own_solver_for_study:problem") == VIOLATED
    assert study("--solver", "RK4", "--eta", "0", "--problem", "line", "--quantity", "gradient") == HOLDS
    assert study("--solver", "Euler", *own, "--problem", "line") == VIOLATED  # one claim of two
    # A setting of the ODE, whose exact solution is not that of the SDE which is asked for.
    assert study("--solver", "Euler", "--eta", "1", "--problem", "own_solver_for_study:setting") == HOLDS


def test_what_cannot_be_decided_has_a_status_of_its_own() -> None:
    assert study("--solver", "Heun", "--quantity", "weak", "--problem", "separated") == INCONCLUSIVE


def test_wrong_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        study("--solver", "Nothing")
    assert "Nothing" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="there is no 'nowhere'"):
        study("--solver", "Heun", "--problem", "nowhere")
    with pytest.raises(RuntimeError, match="has none"):
        study("--solver", "Heun", "--quantity", "gradient", "--of", "cond")
