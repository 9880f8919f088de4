"""``sdeadjoint demo``."""

from __future__ import annotations

import argparse

from .. import demo
from ..command_line import Command, check_writable, directory, seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=directory, required=True, metavar="DIR", help="where pictures and numbers go")
    parser.add_argument("--seed", type=seed, default=0, help="of everything random (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    demo.check_extras()
    check_writable(arguments.out)
    demo.run(arguments.out, arguments.seed)
    return 0


COMMAND = Command(
    "demo",
    "sample, differentiate, check and descend on images of digits, and morph two faces, in a minute or two",
    "Writes sheet.png, demo.png, memory.png, faces.png and demo.json.",
    add_arguments,
    run,
)
