"""``sdeadjoint study``: names, arguments, files and the exit status."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, process
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import sdeadjoint as sa
from sdeadjoint import cli, samplers, solvers
from sdeadjoint.command_line import named, pool, solver
from sdeadjoint.convergence import command
from sdeadjoint.convergence.command import HOLDS, INCONCLUSIVE, VIOLATED
from sdeadjoint.solvers import Solver

NAMES = {name: getattr(solvers, name) for name in solvers.__all__}
QUICK = ("--steps", "16,32,64,128", "--paths", "150")
TINY = ("--steps", "2", "4", "8", "--paths", "30")


def study(*arguments: str, quick: Sequence[str] = QUICK) -> int:
    return cli.main(["study", *arguments, *quick])


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


def test_the_files_and_a_claim_that_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.SUFFIXES == (".png", ".svg", ".pdf")
    monkeypatch.setattr(command, "SUFFIXES", (".svg", ".pdf"))  # test_convergence.py draws all of them
    arguments = ("--solver", "Euler", "--solver", "ShARK()", "--out", str(tmp_path / "out"))
    half = ("--steps", "8,16,32,64", "--paths", "150")
    assert study(*arguments, quick=half) == HOLDS == 0
    first = capsys.readouterr().out
    assert "holds" in first
    assert "states: mild mixture in the plane, eta = 1, flow kind, 150 paths" in first
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{stem}.{suffix}" for stem in ("orders", "work") for suffix in ("svg", "pdf")}
    assert names >= {"study.json", *figures}
    assert all(name in first for name in ("study.json", *figures))
    assert solvers_in(tmp_path / "out/study.json") == ["Euler()", "ShARK()"]
    draw_nothing(monkeypatch)
    assert study(*arguments, quick=half) == 0
    assert capsys.readouterr().out == first  # seconds too, as nothing is solved again
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave empty files in the places of figures, where their names alone matter."""
    for name in ("draw_orders", "draw_work_precision"):
        monkeypatch.setattr(command, name, lambda results, path: path.touch())


def solvers_in(path: Path) -> list[str]:
    return [result["solver"] for result in json.loads(path.read_text())]


def test_another_study_in_a_directory_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    first, other = (("--solver", name, "--out", str(tmp_path)) for name in ("Euler", "Heun"))
    assert {study(*own, quick=TINY) for own in (first, other, first)} <= {HOLDS, VIOLATED, INCONCLUSIVE}
    assert solvers_in(tmp_path / "study.json") == ["Euler()"]
    assert solvers_in(tmp_path / "study-2.json") == ["Heun()"]
    assert not (tmp_path / "study-3.json").exists()
    assert (tmp_path / "orders-2.pdf").exists()
    (tmp_path / "study.json").write_text("somebody else's")
    study(*first, quick=TINY)
    assert (tmp_path / "study.json").read_text() == "somebody else's"
    assert solvers_in(tmp_path / "study-3.json") == ["Euler()"]


def test_the_same_numbers_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "SUFFIXES", ())  # the numbers are in study.json
    asked: list[int] = []

    @contextmanager
    def threads(workers: int) -> Iterator[Executor | None]:
        """In place of processes, which test_workers.py compares and runs from a command."""
        asked.append(workers)
        with ThreadPoolExecutor(workers) as executor:
            yield executor if workers > 1 else None

    monkeypatch.setattr(command, "pool", threads)
    results = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        study("--solver", "Euler", "--out", str(out), "--workers", workers, "--batch", "20", quick=TINY)
        (found,) = json.loads((out / "study.json").read_text())
        assert (found.pop("seconds") == [None] * 3) == (workers == "2")
        results.append(found)
    assert asked == [1, 2]
    assert results[0] == results[1]


def test_samplers_are_solvers_in_their_frames() -> None:
    for name in ("ddim", "dpm_solver_pp_2m", "sde_dpm_solver_pp_2m", "edm_heun", "flow_heun", "shark_sde", "rex"):
        frame, method = getattr(samplers, name)(sa.VPLinear())
        assert solver(name) == (method, frame.eta, frame.kind)
    assert solver("deis(order=2)") == (sa.AdamsBashforth(2), 0.0, "noise")
    assert solver("rex(base=ShARK(), eta=1.0)") == (sa.Coupled(sa.ShARK()), 1.0, "data")
    assert solver("Heun") == (sa.Heun(), None, None)


def test_a_sampler_brings_its_frame(capsys: pytest.CaptureFixture[str]) -> None:
    study("--solver", "edm_heun", "--solver", "ddim", "--solver", "Heun", quick=TINY)
    out = capsys.readouterr().out
    assert "Heun(): states: mild mixture in the plane, eta = 0, noise kind" in out
    assert "Euler(): states: mild mixture in the plane, eta = 0, data kind" in out
    assert "Heun(): states: mild mixture in the plane, eta = 1, flow kind" in out
    with pytest.raises(SystemExit, match="2"):
        study("--solver", "edm_heun", "--eta", "1", quick=TINY)
    assert "--eta: got 1.0, but edm_heun has 0.0; leave --eta out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["Huen", "heun", "AdamBashforth(order=2)", "dpm_solver_2m", "Claims", "Interval"])
def test_only_what_can_be_passed_is_suggested(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        solver(text)
    said = str(error.value)
    offered = said.partition("one of ")[2].split(", ")
    assert {"Heun", "ddim", "rex"} <= set(offered)
    for name in offered:
        found = NAMES.get(name)
        assert hasattr(samplers, name) or (isinstance(found, type) and issubclass(found, Solver)), name
    if text in ("Huen", "heun"):
        assert "did you mean Heun" in said
    if text == "dpm_solver_2m":
        assert "dpm_solver_pp_2m" in said.partition("Pass")[0]


@pytest.mark.parametrize("text", ["8,16,32", "8 16 32", "8,16 32"])
def test_steps_are_apart_by_commas_or_blanks(text: str) -> None:
    for name in ("study", "compare"):
        arguments = cli._parser().parse_args([name, "--out", ".", "--solver", "Heun", "--steps", *text.split()])
        assert arguments.steps == (8, 16, 32)
    with pytest.raises(SystemExit, match="2"):
        cli._parser().parse_args(["study", "--solver", "Heun", "--steps", "8,,16"])


def test_a_directory_that_takes_no_files_is_noticed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "measure", lambda *args, **options: pytest.fail("computed first"))
    (tmp_path / "file").write_text("")
    assert study("--solver", "Heun", "--out", str(tmp_path / "file/below")) == 1
    assert "--out: nothing can be written into" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    assert study("--solver", "Heun", "--out", str(tmp_path)) == 130
    told = f"interrupted; run the same command again: it continues from {tmp_path}"
    assert told in capsys.readouterr().err
    assert study("--solver", "Heun") == 130
    assert "run the same command again, with --out DIR, to continue" in capsys.readouterr().err


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupted_pool_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    goes_on.set()
    manager = process._ExecutorManagerThread  # type: ignore[attr-defined]
    wait = manager.wait_result_broken_or_wakeup

    def late(self: Any) -> Any:
        ready = wait(self)
        goes_on.wait(60.0)  # until the command has left the pool and its executor may be collected
        return ready

    monkeypatch.setattr(manager, "wait_result_broken_or_wakeup", late)
    threads, children = set(threading.enumerate()), set(multiprocessing.active_children())

    def interrupted() -> None:
        with pool(2) as executor:
            assert executor is not None
            futures = [executor.submit(time.sleep, 60.0) for _ in range(8)]
            waited = time.monotonic()
            while not futures[2].running() and time.monotonic() - waited < 60:
                time.sleep(0.01)
            goes_on.clear()
            for future in futures:
                future.cancel()
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):  # pytest.raises would keep the frames, and with them the executor
        interrupted()
    gc.collect()
    assert set(multiprocessing.active_children()) == children
    started = set(threading.enumerate()) - threads
    goes_on.set()
    for thread in started:
        thread.join(60.0)
        assert not thread.is_alive()


def test_a_pool_of_one_is_none() -> None:
    with pool(1) as executor:
        assert executor is None


def test_the_version_and_the_statuses_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith(f"sdeadjoint {sa.__version__} (torch ")
    for arguments in (["--help"], ["study", "--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(arguments)
        told = " ".join(capsys.readouterr().out.split())
        assert "1 if something failed, 2 for a wrong command line, 130 if interrupted" in told
    assert "0 if every claim holds, 3 if one is violated, 4 if none is but one cannot be decided" in _help("study")


def _help(name: str) -> str:
    actions = cli._parser()._actions
    (commands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return " ".join(str(commands.choices[name].epilog).split())


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
    few = ("--steps", "8,16,32", "--paths", "60")  # enough without noise: intervals are narrower than 0.1
    own = ("--solver", "own_solver_for_study:Wrong", "--eta", "0")
    assert study(*own, "--problem", "line", quick=few) == VIOLATED
    assert study(*own, "--problem", "own_solver_for_study:problem", quick=few) == VIOLATED
    assert study("--solver", "RK4", "--eta", "0", "--problem", "line", "--quantity", "gradient", quick=few) == HOLDS
    assert study("--solver", "Euler", *own, "--problem", "line", quick=few) == VIOLATED  # one claim of two
    # A setting of the ODE, whose exact solution is not that of the SDE which is asked for.
    sde = ("--solver", "Euler", "--eta", "1", "--problem", "own_solver_for_study:setting")
    assert study(*sde, quick=("--steps", "16,32,64", "--paths", "100")) == HOLDS


def test_what_cannot_be_decided_has_a_status_of_its_own() -> None:
    """Mean errors of order 2 that are lost in the noise of 60 paths."""
    few = ("--steps", "8,16,32", "--paths", "60")
    assert study("--solver", "Heun", "--quantity", "weak", "--problem", "separated", quick=few) == INCONCLUSIVE


def test_wrong_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        study("--solver", "Nothing")
    assert "Nothing" in capsys.readouterr().err
    for arguments, told in (
        (("--problem", "nowhere"), "--problem: got 'nowhere', but there is no 'nowhere'"),
        (("--problem", "Frame"), "there is no 'Frame'"),
        (("--quantity", "gradient", "--of", "cond"), "has none"),
        (("--solver", "sdeadjoint:Frame(VPLinear())"), "pass the name of a solver or a sampler"),
        (("--paths", "5"), "paths: got 5; pass at least 30"),
        (("--steps", "8,16"), "steps: got (8, 16)"),
    ):
        with pytest.raises(SystemExit, match="2"):
            study("--solver", "Heun", *arguments, quick=())
        assert told in capsys.readouterr().err


def test_equations_are_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    assert study("--solver", "Euler", "--problem", "linear", "--eta", "0") == HOLDS
    assert "states: linear equation in the plane, without noise, 150 paths" in capsys.readouterr().out
    assert study("--solver", "SRA1", "--problem", "ornstein_uhlenbeck", "--out", str(tmp_path)) == HOLDS
    assert "states: Ornstein-Uhlenbeck process, noise 1 dW, 150 paths" in capsys.readouterr().out
    assert len(list(tmp_path.glob("record-*.jsonl"))) == 1  # it can be continued
    for arguments in (("Heun", "--kind", "flow"), ("edm_heun",)):
        with pytest.raises(SystemExit, match="2"):
            study("--solver", arguments[0], *arguments[1:], "--problem", "double_well", quick=TINY)
        assert "but only diffusions have kinds of coordinates; leave it out" in capsys.readouterr().err
    assert all(name in _help_text("study") for name in ("ornstein_uhlenbeck", "double_well", "linear"))


def _help_text(name: str) -> str:
    actions = cli._parser()._actions
    (commands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return str(commands.choices[name].format_help())
