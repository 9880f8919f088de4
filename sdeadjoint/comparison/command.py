"""``sdeadjoint compare``: the comparison on the built-in problem."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from .. import solvers
from ..command_line import Command, count, directory, one_thread, seed
from ..solvers import Euler, Solver
from . import plots, scene
from .compare import compare
from .methods import EXACT, Method, default_methods
from .result import Comparison

TOLERANCE = 1e-8  # relative, float64: what an exact method may be off without having warned


def _solvers() -> dict[str, Solver]:
    """Every exported solver that needs no arguments."""
    found: dict[str, Solver] = {}
    for name in solvers.__all__:
        kind = getattr(solvers, name)
        if isinstance(kind, type) and issubclass(kind, Solver):
            try:
                found[name] = kind()
            except TypeError:  # abstract, or with arguments
                continue
    return found


SOLVERS = _solvers()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=directory, required=True, metavar="DIR", help="where pictures and numbers go")
    parser.add_argument(
        "--steps", type=count, nargs="+", default=[10, 20, 50], metavar="N", help="of the sampler (default: 10 20 50)"
    )
    parser.add_argument(
        "--eta", type=float, choices=(0.0, 1.0), default=0.0, help="0: the ODE, 1: the SDE (default: 0)"
    )
    parser.add_argument("--samples", type=count, default=256, metavar="N", help="starting points (default: 256)")
    parser.add_argument(
        "--truth-steps", type=count, default=400, metavar="N", help="of the reference solution, at least (default: 400)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the starting points and the noise (default: 0)")
    parser.add_argument(
        "--solver",
        choices=SOLVERS,
        default="Euler",
        metavar="NAME",
        help=f"of the sampler: {', '.join(SOLVERS)} (default: Euler, which makes DDIM)",
    )
    parser.add_argument(
        "--methods",
        type=_pattern,
        nargs="+",
        metavar="TEXT",
        help="only methods whose name contains one of these, in any case: DEIS, 'Checkpoint()' (default: all)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; ``RuntimeError`` if a method that promises the sampler's gradient does not give it."""
    if find_spec("matplotlib") is None:
        raise ImportError("the plots need matplotlib: pip install 'sdeadjoint[demo]'")
    arguments.out.mkdir(parents=True, exist_ok=True)
    solver, problem = SOLVERS[arguments.solver], scene.mixture(arguments.eta, arguments.samples, arguments.seed)
    with one_thread():
        comparison = compare(
            problem.denoiser,
            problem.x_T,
            loss=problem.loss,
            frame=problem.frame,
            grids=[scene.grid(steps) for steps in sorted(set(arguments.steps))],
            solver=solver,
            noise=problem.noise,
            methods=None if arguments.methods is None else _picked(default_methods(solver), arguments.methods),
            truth_steps=arguments.truth_steps,
            watch=_progress,
        )
    print(comparison, flush=True)
    comparison.to_json(arguments.out / "compare.json")
    plots.draw_error(comparison, arguments.out / "error.png")
    plots.draw_cosine(comparison, arguments.out / "cosine.png")
    plots.draw_memory(comparison, arguments.out / "memory.png")
    print(f"\nWritten to {arguments.out}: compare.json, error.png, cosine.png, memory.png")
    _check(comparison)
    return 0


COMMAND = Command(
    "compare",
    "every gradient method on one problem: cost, and error against the sampler's own and the true gradient",
    "Writes compare.json, error.png, cosine.png and memory.png.",
    add_arguments,
    run,
)


def _pattern(text: str) -> str:
    if not _picked(default_methods(Euler()), [text]):
        names = ", ".join(method.name for method in default_methods(Euler()))
        raise argparse.ArgumentTypeError(f"{text!r} is in no method's name; pass a part of one of: {names}")
    return text


def _picked(methods: Sequence[Method], patterns: Sequence[str]) -> tuple[Method, ...]:
    lowered = [pattern.lower() for pattern in patterns]
    return tuple(method for method in methods if any(pattern in method.name.lower() for pattern in lowered))


def _check(comparison: Comparison) -> None:
    for row in comparison.measurements:
        worst = max((g.own.error for g in row.gradients if g.own is not None), default=0.0)
        if row.family == EXACT and not row.warnings and not worst <= TOLERANCE:
            raise RuntimeError(
                f"{row.method} at {row.steps} steps is not the gradient of its sampler: relative error {worst:.1e}"
            )


def _progress(line: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{line:70}" if end == "\r" else line, end=end, file=sys.stderr, flush=True)
