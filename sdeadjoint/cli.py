"""The command line: ``sdeadjoint demo --out DIR``, also ``python -m sdeadjoint``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status: 0, 1 for a failure told in one sentence, 2 for a wrong command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.action(arguments)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"sdeadjoint {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdeadjoint", description="Exact gradients through diffusion samplers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    summary = "sample, differentiate, check and descend on images of digits, in half a minute"
    files = "Writes sheet.png, demo.png, memory.png and demo.json."
    command = commands.add_parser("demo", help=summary, description=f"{summary.capitalize()}. {files}")
    command.add_argument("--out", type=_directory, required=True, metavar="DIR", help="where pictures and numbers go")
    command.add_argument("--seed", type=_seed, default=0, help="of everything random (default: %(default)s)")
    command.set_defaults(action=lambda arguments: demo.run(arguments.out, arguments.seed))
    return parser


def _directory(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file; pass a directory, which is made if it is missing")
    return path


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed; pass an integer from 0 to 2^62 - 1")
    return int(text)
