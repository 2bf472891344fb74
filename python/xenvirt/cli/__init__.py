"""The command line: ``xenvirt COMMAND``. One module a command, which is imported for that command alone: a
guest may be waiting for its device.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from xenvirt.errors import XenvirtError

COMMANDS = ("demo", "serve", "attach", "acpi", "inspect", "trace", "probe", "map", "lab")
"""Each is a module here."""


def make_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the whole command line, or of these commands."""
    parser = argparse.ArgumentParser(
        prog="xenvirt",
        description="Virtio devices in Python: serve them, try them, ask what a host or a backend offers.",
    )
    parser.add_argument("--version", action="version", version=f"xenvirt {version('xenvirt')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(f".{name}", __name__).add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; gives its exit status.

    What a user can do something about is one line on standard error and status 1; a wrong command line is
    status 2.
    """
    words = sys.argv[1:] if arguments is None else arguments
    wanted = [name for name in COMMANDS if name in words[:1]] or COMMANDS
    parsed = make_parser(wanted).parse_args(words)
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
