"""The command line: ``sdeadjoint demo --out DIR`` and others, also ``python -m sdeadjoint``.

Each subcommand lives with its subject; this is where they meet.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

from .audit.command import COMMAND as AUDIT
from .command_line import FAILED, STATUSES, STOPPED, Command, UsageError
from .comparison.command import COMMAND as COMPARE
from .convergence.command import COMMAND as STUDY
from .demo.command import COMMAND as DEMO

COMMANDS: tuple[Command, ...] = (DEMO, COMPARE, STUDY, AUDIT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; a wrong command line exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    command: Command = arguments.subcommand
    subparser: argparse.ArgumentParser = arguments.subparser
    try:
        return command.run(arguments)
    except UsageError as error:
        subparser.error(str(error))
    except (ImportError, OSError, RuntimeError) as error:
        print(f"sdeadjoint {command.name}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\nsdeadjoint {command.name}: interrupted", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdeadjoint",
        description="Exact gradients through diffusion samplers.",
        epilog=f"Exit status: 0, {STATUSES}; a subcommand's --help tells of others.",
    )
    versions = f"sdeadjoint {version('sdeadjoint')} (torch {version('torch')}, Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=versions)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        description = f"{command.summary[:1].upper()}{command.summary[1:]}. {command.files}"
        subparser = commands.add_parser(command.name, help=command.summary, description=description)
        command.add_arguments(subparser)
        subparser.set_defaults(subcommand=command, subparser=subparser)
    return parser
