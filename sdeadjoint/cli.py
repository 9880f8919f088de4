"""The command line: ``sdeadjoint demo --out DIR`` and others, also ``python -m sdeadjoint``.

Each subcommand lives with its subject; this is where they meet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .command_line import Command
from .comparison.command import COMMAND as COMPARE
from .convergence.command import COMMAND as STUDY
from .demo.command import COMMAND as DEMO

COMMANDS: tuple[Command, ...] = (DEMO, COMPARE, STUDY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status: 0, 1 for a failure told in one sentence, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.subcommand
    try:
        return command.run(arguments)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"sdeadjoint {command.name}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdeadjoint", description="Exact gradients through diffusion samplers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        description = f"{command.summary[:1].upper()}{command.summary[1:]}. {command.files}"
        subparser = commands.add_parser(command.name, help=command.summary, description=description)
        command.add_arguments(subparser)
        subparser.set_defaults(subcommand=command)
    return parser
