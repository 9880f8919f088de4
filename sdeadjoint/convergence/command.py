"""The command line of a study: ``sdeadjoint study --solver Heun --out DIR``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from importlib.util import find_spec
from itertools import count as counting
from pathlib import Path
from typing import Any

from .. import problems
from ..command_line import (
    STATUSES,
    STOPPED,
    Choice,
    Command,
    UsageError,
    add_steps,
    check_writable,
    count,
    directory,
    named,
    one_thread,
    pool,
    seed,
    solver,
)
from ..problems import Problem
from ..workers import WorkerDiedError
from . import settings
from .dynamics import Reverse
from .fingerprint import NoDigestError
from .measure import measure
from .plots import SUFFIXES, draw_orders, draw_work_precision
from .quantities import SOURCES, Gradient, Quantity, RoundTrip, State, Weak
from .result import Convergence, dumps, work_precision
from .settings import Setting
from .study import Study

STEPS = (16, 32, 64, 128, 256, 512)
HOLDS, VIOLATED, INCONCLUSIVE = 0, 3, 4
QUANTITIES = ("state", "gradient", "weak", "round-trip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a study."""
    add = parser.add_argument
    parser.epilog = (
        f"Exit status: {HOLDS} if every claim holds, {VIOLATED} if one is violated, {INCONCLUSIVE} if none is but one "
        f"cannot be decided; {STATUSES}."
    )
    help_ = "Heun, 'AdamsBashforth(order=3)', a sampler such as ddim, or module:Name of your own; again for several"
    add("--solver", action="append", type=_named_solver, required=True, metavar="NAME", help=help_)
    known = ", ".join((*settings.NAMES, *settings.EQUATIONS))
    problem = f"one of {known}; 'Mixture(...)'; or module:Name of your own (default: %(default)s)"
    add("--problem", default="mild", metavar="NAME", help=problem)
    add("--quantity", choices=QUANTITIES, default="state", help="what is compared (default: %(default)s)")
    add("--of", choices=SOURCES, default="x_T", help="gradients in what (default: %(default)s)")
    add_steps(parser, STEPS)
    add("--paths", type=count, default=500, metavar="N", help="independent samples (default: %(default)s)")
    add("--eta", type=float, help="0 is the ODE, 1 the SDE (default: the sampler's, or 1)")
    kinds = "of a diffusion's frame (default: the sampler's, or flow, in which orders above 1 show)"
    add("--kind", choices=("data", "noise", "flow"), help=kinds)
    add("--seed", type=seed, default=0, metavar="N", help="of everything random (default: %(default)s)")
    add("--workers", type=count, default=1, metavar="N", help="processes; the numbers are the same for any N")
    add("--batch", type=count, metavar="N", help="the most paths solved together, a worker's unit (default: by size)")
    out = "where study.json, figures and what an interrupted study continues from go"
    add("--out", type=directory, metavar="DIR", help=out)


def run(arguments: argparse.Namespace) -> int:
    """Run the studies; the exit status says whether all claims hold."""
    if arguments.out is not None:
        if find_spec("matplotlib") is None:
            raise ImportError("the figures need matplotlib: pip install 'sdeadjoint[demo]'")
        check_writable(arguments.out)
    try:
        studies = list(_studies(arguments))
    except ValueError as error:
        raise UsageError(str(error)) from error
    digests = [None if arguments.out is None else _digest(study) for study in studies]
    again = "run the same command again"
    advice = f"{again}: it continues from {arguments.out}" if any(digests) else f"{again}, with --out DIR, to continue"
    try:
        with one_thread(), pool(arguments.workers) as executor:
            results = [
                _measured(study, digest, arguments.out, executor)
                for study, digest in zip(studies, digests, strict=True)
            ]
    except KeyboardInterrupt:
        print(f"\nsdeadjoint study: interrupted; {advice}", file=sys.stderr)
        return STOPPED
    except WorkerDiedError as error:
        raise RuntimeError(f"a worker died, killed or out of memory; {advice}") from error
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    if len(results) > 1:
        print(work_precision(results))
    if arguments.out is not None:
        _write(results, digests, arguments.out)
    return _status(results)


COMMAND = Command(
    "study",
    "measure the order of convergence of solvers and compare it with what they claim",
    "With --out writes study.json, and orders and work as .png, .svg and .pdf; a further study in the same directory "
    "gets a number.",
    add_arguments,
    run,
)


def _named_solver(text: str) -> tuple[str, Choice]:
    return text, solver(text)


def _studies(arguments: argparse.Namespace) -> Iterator[Study]:
    for text, choice in arguments.solver:
        eta, kind = choice.fitting(arguments.eta, arguments.kind, text)
        setting = _setting(arguments.problem, eta, kind)
        quantity = _quantity(arguments)
        steps, paths = arguments.steps, arguments.paths
        yield Study(choice.solver, setting, quantity, steps, paths, arguments.seed, batch=arguments.batch)


def _setting(text: str, eta: float | None, kind: str | None) -> Setting:
    """Make a setting from its name, a problem, or the user's own ``Setting``, ``Problem``, or ``f(eta, kind)``."""
    names = (*settings.NAMES, *settings.EQUATIONS)
    scope: dict[str, Any] = {name: getattr(settings, name) for name in names}
    scope.update({name: getattr(problems, name) for name in problems.__all__})
    try:
        found = named(text, scope)
    except ValueError as error:
        raise ValueError(f"--problem: {error}") from None
    if isinstance(found, Setting):
        return _member(found, eta, kind)
    if found in [scope[name] for name in settings.EQUATIONS]:
        return _member(found(1.0 if eta is None else eta), None, kind)
    eta, kind = 1.0 if eta is None else eta, kind or "flow"
    if isinstance(found, type) and issubclass(found, Problem):
        found = found()
    elif callable(found) and not isinstance(found, Problem):
        found = found(eta, kind)
    if isinstance(found, Problem):
        return settings.of_problem(found, eta, kind)
    if not isinstance(found, Setting):
        raise ValueError(f"--problem: {text!r} is {type(found).__name__}; pass a Setting or a Problem")
    return _member(found, eta, kind if isinstance(found.equation, Reverse) else None)


def _member(setting: Setting, eta: float | None, kind: str | None) -> Setting:
    try:
        return setting.member_of(eta, kind)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _quantity(arguments: argparse.Namespace) -> Quantity:
    if arguments.quantity == "gradient":
        return Gradient(arguments.of)
    return {"state": State(), "weak": Weak(), "round-trip": RoundTrip()}[arguments.quantity]


def _measured(study: Study, digest: str | None, out: Path | None, executor: Executor | None) -> Convergence:
    resume = None if out is None or digest is None else out / f"record-{digest[:12]}.jsonl"
    result = measure(study, resume=resume, progress=_progress(study), executor=executor)
    print(result.table(), end="\n\n", flush=True)
    return result


def _digest(study: Study) -> str | None:
    """Tell the study from others; None, with a sentence, where that cannot be done."""
    try:
        return study.fingerprint()
    except NoDigestError as error:
        print(f"the study holds {error}: it runs afresh and cannot be continued", file=sys.stderr)
        return None


def _progress(study: Study) -> Callable[[int, int], None]:
    """Rewrite a line on stderr; print nothing where it would fill a file."""
    start = time.perf_counter()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            seconds = time.perf_counter() - start
            end = "\r" if done < total else "\r\033[K"
            left = seconds * (total - done) / done
            line = f"\033[K{study.solver!r}: {done / total:4.0%}, {left:.0f} s left"
            print(line, end=end, file=sys.stderr, flush=True)

    return progress


def _status(results: list[Convergence]) -> int:
    outcomes = {result.verdict.outcome for result in results}
    if "violated" in outcomes:
        return VIOLATED
    return INCONCLUSIVE if "inconclusive" in outcomes else HOLDS


def _write(results: list[Convergence], digests: list[str | None], out: Path) -> None:
    """Write numbers and figures under names that no other study in the directory has."""
    number = next(number for number in counting(1) if _is_free(out / _name("study.json", number), digests))
    rows = [{**row, "fingerprint": digest} for row, digest in zip(json.loads(dumps(results)), digests, strict=True)]
    names = [_name("study.json", number)]
    (out / names[0]).write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    for suffix in SUFFIXES:
        for stem, draw in (("orders", draw_orders), ("work", draw_work_precision)):
            names.append(_name(f"{stem}{suffix}", number))
            draw(results, out / names[-1])
    print(f"Written to {out}: {', '.join(names)}")


def _name(name: str, number: int) -> str:
    path = Path(name)
    return name if number == 1 else f"{path.stem}-{number}{path.suffix}"


def _is_free(path: Path, digests: list[str | None]) -> bool:
    """Say whether there is no such file, or one of the very same studies."""
    if not path.exists():
        return True
    try:
        found = [row["fingerprint"] for row in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError):
        return False
    return found == digests and None not in digests
