"""The command line of a study: ``sdeadjoint study --solver Heun --out DIR``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import problems, solvers
from ..command_line import Command, count, directory, named, seed
from ..problems import Problem
from ..solvers import Solver
from . import settings
from .fingerprint import NoDigestError
from .measure import measure
from .plots import draw_orders, draw_work_precision
from .quantities import SOURCES, Gradient, Quantity, RoundTrip, State, Weak
from .result import Convergence, dumps, work_precision
from .settings import Setting
from .study import Study

STEPS = (16, 32, 64, 128, 256, 512)
HOLDS, VIOLATED, INCONCLUSIVE = 0, 3, 4  # 1 is a failure and 2 a wrong command line
QUANTITIES = ("state", "gradient", "weak", "round-trip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a study."""
    add = parser.add_argument
    parser.epilog = (
        f"Exit status: {HOLDS} if every claim holds, {VIOLATED} if one is violated, {INCONCLUSIVE} otherwise."
    )
    solver = "Heun, 'AdamsBashforth(order=3)' or module:Name of your own; again for several solvers"
    add("--solver", action="append", type=_solver, required=True, metavar="NAME", help=solver)
    problem = f"one of {', '.join(settings.NAMES)}; 'Mixture(...)'; or module:Name of your own (default: %(default)s)"
    add("--problem", default="mild", metavar="NAME", help=problem)
    add("--quantity", choices=QUANTITIES, default="state", help="what is compared (default: %(default)s)")
    add("--of", choices=SOURCES, default="x_T", help="gradients in what (default: %(default)s)")
    add("--steps", type=_steps, default=STEPS, metavar="N,N,...", help=f"default: {','.join(map(str, STEPS))}")
    add("--paths", type=count, default=500, metavar="N", help="independent samples (default: %(default)s)")
    add("--eta", type=float, default=1.0, help="0 is the ODE, 1 the diffusion SDE (default: %(default)s)")
    add("--kind", choices=("data", "noise", "flow"), default="data", help="the frame's (default: %(default)s)")
    add("--seed", type=seed, default=0, metavar="N", help="of everything random (default: %(default)s)")
    out = "where study.json, orders.png/.svg, work.png/.svg go, and what an interrupted study continues from"
    add("--out", type=directory, metavar="DIR", help=out)


def run(arguments: argparse.Namespace) -> int:
    """Run the studies; the exit status says whether all claims hold. ``RuntimeError`` for what cannot be studied."""
    if arguments.out is not None and find_spec("matplotlib") is None:
        raise ImportError("the plots need matplotlib: pip install 'sdeadjoint[demo]'")
    try:
        results = _measured(arguments)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    if len(results) > 1:
        print(work_precision(results))
    if arguments.out is not None:
        _write(results, arguments.out)
    return _status(results)


def _measured(arguments: argparse.Namespace) -> list[Convergence]:
    setting, quantity = _setting(arguments), _quantity(arguments)
    results = []
    for solver in arguments.solver:
        study = Study(solver, setting, quantity, arguments.steps, arguments.paths, arguments.seed)
        results.append(measure(study, resume=_resume(study, arguments.out), progress=_progress(study)))
        print(results[-1].table(), end="\n\n", flush=True)
    return results


COMMAND = Command(
    "study",
    "measure the order of convergence of solvers and compare it with what they claim",
    "With --out writes study.json, orders.png, orders.svg, work.png and work.svg.",
    add_arguments,
    run,
)


def _status(results: list[Convergence]) -> int:
    outcomes = {result.verdict.outcome for result in results}
    if "violated" in outcomes:
        return VIOLATED
    return INCONCLUSIVE if "inconclusive" in outcomes else HOLDS


def _solver(text: str) -> Solver:
    try:
        found = named(text, {name: getattr(solvers, name) for name in solvers.__all__})
        solver = found() if isinstance(found, type) else found
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(solver, Solver):
        raise argparse.ArgumentTypeError(f"{text!r} is {type(solver).__name__}; pass the name of a Solver")
    return solver


def _setting(arguments: argparse.Namespace) -> Setting:
    """A named setting, a problem, or the user's own: a ``Setting``, a ``Problem``, or ``f(eta, kind)`` giving one."""
    scope: dict[str, Any] = {name: getattr(settings, name) for name in settings.NAMES}
    scope.update({name: getattr(problems, name) for name in problems.__all__})
    found = named(arguments.problem, scope)
    if isinstance(found, type) and issubclass(found, Problem):
        found = found()
    elif callable(found) and not isinstance(found, Problem):
        found = found(arguments.eta, arguments.kind)
    if isinstance(found, Problem):
        return settings.of_problem(found, arguments.eta, arguments.kind)
    if not isinstance(found, Setting):
        raise ValueError(f"--problem: {arguments.problem!r} is {type(found).__name__}; pass a Setting or a Problem")
    frame = replace(found.frame, eta=arguments.eta, kind=arguments.kind)
    return found if frame == found.frame else replace(found, frame=frame, exact=None)


def _quantity(arguments: argparse.Namespace) -> Quantity:
    if arguments.quantity == "gradient":
        return Gradient(arguments.of)
    return {"state": State(), "weak": Weak(), "round-trip": RoundTrip()}[arguments.quantity]


def _resume(study: Study, out: Path | None) -> Path | None:
    """Where the study is kept; nowhere, with a sentence, if another one could be taken for it."""
    if out is None:
        return None
    try:
        return out / f"study-{study.fingerprint()[:12]}.json"
    except NoDigestError as error:
        print(f"the study holds {error}: it runs afresh and cannot be continued", file=sys.stderr)
        return None


def _progress(study: Study) -> Callable[[int, int], None]:
    """A line on stderr that is rewritten, or nothing where it would fill a file."""
    start = time.perf_counter()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            seconds = time.perf_counter() - start
            end = "\r" if done < total else "\r\033[K"
            left = seconds * (total - done) / done
            print(
                f"\033[K{study.solver!r}: {done / total:4.0%}, {left:.0f} s left", end=end, file=sys.stderr, flush=True
            )

    return progress


def _write(results: list[Convergence], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(dumps(results) + "\n")
    for suffix in (".png", ".svg"):
        draw_orders(results, (out / "orders").with_suffix(suffix))
        draw_work_precision(results, (out / "work").with_suffix(suffix))


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; pass 16,32,64,128") from None
