"""The command line: ``xenvirt COMMAND``. One module a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from xenvirt.errors import XenvirtError

from . import acpi, attach, demo, inspect, lab, probe, serve, trace
from . import map as map_guest


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="xenvirt",
        description="Virtio devices in Python: serve them, try them, ask what a host or a backend offers.",
    )
    parser.add_argument("--version", action="version", version=f"xenvirt {version('xenvirt')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (demo, serve, attach, acpi, inspect, trace, probe, map_guest, lab):
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; gives its exit status.

    What a user can do something about is one line on standard error and status 1; a wrong command line is
    status 2.
    """
    parsed = make_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (XenvirtError, OSError) as error:
        print(f"xenvirt {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
