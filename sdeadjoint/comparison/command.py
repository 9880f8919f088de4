"""``sdeadjoint compare``: the comparison on the built-in problem."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from ..command_line import (
    STATUSES,
    Choice,
    Command,
    UsageError,
    add_steps,
    check_writable,
    count,
    directory,
    one_thread,
    pool,
    seed,
    solver,
)
from ..solvers import Euler
from . import plots, scene
from .compare import compare
from .methods import EXACT, Method, default_methods
from .result import Comparison

TOLERANCE = 1e-8  # relative, float64: what an exact method may be off without having warned
STEPS = (10, 20, 50)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a comparison."""
    add = parser.add_argument
    parser.epilog = f"Exit status: 0 if every method that promises the sampler's gradient gives it; {STATUSES}."
    add("--out", type=directory, required=True, metavar="DIR", help="where figures and numbers go")
    add_steps(parser, STEPS)
    add("--eta", type=float, choices=(0.0, 1.0), help="0: the ODE, 1: the SDE (default: the sampler's, or 0)")
    add("--kind", choices=("data", "noise", "flow"), help="the frame's (default: the sampler's, or data)")
    add("--samples", type=count, default=256, metavar="N", help="starting points (default: 256)")
    truth = "of the reference solution, at least (default: 400)"
    add("--truth-steps", type=count, default=400, metavar="N", help=truth)
    add("--seed", type=seed, default=0, help="of the starting points and the noise (default: 0)")
    help_ = "Heun, 'AdamsBashforth(order=3)', a sampler such as dpm_solver_pp_2m, or module:Name (default: Euler)"
    add("--solver", type=_named_solver, default="Euler", metavar="NAME", help=help_)
    methods = "only methods whose name contains one of these, in any case: DEIS, 'Checkpoint()' (default: all)"
    add("--methods", type=_pattern, nargs="+", metavar="TEXT", help=methods)
    add("--workers", type=count, default=1, metavar="N", help="processes; times are taken in one, one after another")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; ``RuntimeError`` if a method that promises the sampler's gradient does not give it."""
    if find_spec("matplotlib") is None:
        raise ImportError("the figures need matplotlib: pip install 'sdeadjoint[demo]'")
    text, choice = arguments.solver
    eta, kind = choice.fitting(arguments.eta, arguments.kind, text)
    eta, kind = eta or 0.0, kind or "data"
    if eta not in (0.0, 1.0):
        raise UsageError(f"--solver: {text} has eta = {eta:g}, but the built-in problem is compared at 0 and 1 only")
    check_writable(arguments.out)
    problem = scene.mixture(eta, arguments.samples, arguments.seed)
    methods = default_methods(choice.solver)
    with one_thread(), pool(arguments.workers) as executor:
        comparison = compare(
            problem.denoiser,
            problem.x_T,
            loss=problem.loss,
            frame=replace(problem.frame, kind=kind),
            grids=[scene.grid(steps) for steps in sorted(set(arguments.steps))],
            solver=choice.solver,
            noise=problem.noise,
            methods=None if arguments.methods is None else _picked(methods, arguments.methods),
            truth_steps=arguments.truth_steps,
            watch=_progress,
            executor=executor,
        )
    print(comparison, flush=True)
    comparison.to_json(arguments.out / "compare.json")
    names = ["compare.json", *plots.draw_all(comparison, arguments.out)]
    print(f"\nWritten to {arguments.out}: {', '.join(names)}")
    _check(comparison)
    return 0


COMMAND = Command(
    "compare",
    "every gradient method on one problem: cost, and error against the sampler's own and the true gradient",
    "Writes compare.json, and error, cosine and memory as .png, .svg and .pdf.",
    add_arguments,
    run,
)


def _named_solver(text: str) -> tuple[str, Choice]:
    return text, solver(text)


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
