"""``sdeadjoint audit``: every sampler against what is claimed of it."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec

from ..command_line import STATUSES, Command, check_writable, directory, one_thread, seed
from .measure import QUICK, Plan, audit
from .page import page
from .plots import SUFFIXES, draw
from .subjects import MISSING, subjects


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of an audit."""
    parser.epilog = f"Exit status: 0 if everything could be measured, whatever was found; {STATUSES}."
    out = "where page, numbers and picture go"
    parser.add_argument("--out", type=directory, required=True, metavar="DIR", help=out)
    parser.add_argument("--quick", action="store_true", help="a few samplers, with fewer paths")
    parser.add_argument("--seed", type=seed, default=0, help="of the starting points and the noise (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    if find_spec("matplotlib") is None:
        raise ImportError("the picture needs matplotlib: pip install 'sdeadjoint[demo]'")
    check_writable(arguments.out)
    if find_spec("diffusers") is None:
        print(MISSING, file=sys.stderr)
    sizes = QUICK if arguments.quick else Plan()
    plan = Plan(sizes.steps, sizes.paths, sizes.starts, arguments.seed)
    start = time.perf_counter()
    with one_thread():
        found = audit(subjects(quick=arguments.quick), plan=plan, watch=_progress)
    print(found)
    print()
    for finding in found.findings():
        print(f"{finding.name}: {finding.sentence}")
    out, names = arguments.out, ["audit.md", "audit.csv", "audit.json", *(f"audit{suffix}" for suffix in SUFFIXES)]
    for name, text in zip(names, (page(found, plan), found.csv(), found.json() + "\n"), strict=False):
        (out / name).write_text(text)
    for name in names[3:]:
        draw(found, out / name)
    print(f"\nWritten to {out} after {time.perf_counter() - start:.0f} s: {', '.join(names)}")
    return 0


COMMAND = Command(
    "audit",
    "every sampler, and every supported scheduler of diffusers, against what is claimed of it",
    "Writes audit.md, audit.csv, audit.json, and the picture as audit.png and audit.svg.",
    add_arguments,
    run,
)


def _progress(title: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{title:70}" if end == "\r" else title, end=end, file=sys.stderr, flush=True)
