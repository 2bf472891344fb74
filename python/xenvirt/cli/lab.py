"""``xenvirt lab``: real Xen in an emulator, and commands in its dom0."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xenvirt.errors import LabError
from xenvirt.lab import Lab, down, is_up
from xenvirt.lab.progress import on_stderr, silent
from xenvirt.lab.recipes import RECIPES
from xenvirt.lab.wheel import files_for

FAILED = 125
"""The exit status when it is the lab that failed, and not the command."""
DEFAULT_NAME = "default"
DEFAULT_ARCHITECTURE = "x86_64"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "lab",
        help="real Xen without Xen: run commands in the dom0 of an emulated machine",
        description="Boots real Xen under QEMU, without KVM and without root, made of Debian's packages.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    run_parser = actions.add_parser(
        "run",
        help="run a command in dom0",
        description="Runs a command in dom0 and ends with its status: in the lab that is up, if there is "
        f"one, else in one that is booted for it. The status is {FAILED} if the lab fails.",
    )
    _add_machine(run_parser)
    run_parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="the xenvirt for dom0 (default: the one that runs here)"
    )
    run_parser.add_argument("-q", "--quiet", action="store_true", help="only the command's own output")
    run_parser.add_argument("argv", nargs="+", metavar="COMMAND", help="with its arguments, after --")
    run_parser.set_defaults(run=_run)

    up_parser = actions.add_parser(
        "up", help="boot a lab that stays", description="Boots a lab that stays up for many `run`s."
    )
    _add_machine(up_parser)
    up_parser.set_defaults(run=_up)

    down_parser = actions.add_parser("down", help="end it", description="Ends the lab that is up.")
    _add_name(down_parser)
    down_parser.set_defaults(run=_down)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=DEFAULT_NAME, help="of the lab that is up, where there are several")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--arch", choices=list(RECIPES), help=f"default {DEFAULT_ARCHITECTURE}")
    parser.add_argument("--dom0", choices=["pv", "pvh"], help="how Xen runs dom0 on x86_64 (default pv)")
    parser.add_argument(
        "--kernel",
        choices=["debian", "own"],
        help="dom0's (default debian); for aarch64 also own: built here, with irqfd and virtio over grants",
    )
    parser.add_argument(
        "--share", type=Path, metavar="DIR", help="what dom0 has as /host (default: the working directory)"
    )
    parser.add_argument(
        "--memory", type=int, default=2048, metavar="MIB", help="of the machine (default 2048)"
    )
    parser.add_argument(
        "--dom0-memory", type=int, default=1024, metavar="MIB", help="dom0's share of it (default 1024)"
    )


def _boot(arguments: argparse.Namespace, name: str | None) -> Lab:
    quiet = getattr(arguments, "quiet", False)
    return Lab.boot(
        arguments.arch or DEFAULT_ARCHITECTURE,
        arguments.dom0,
        kernel=arguments.kernel,
        share=arguments.share,
        name=name,
        memory=arguments.memory,
        dom0_memory=arguments.dom0_memory,
        say=silent if quiet else on_stderr,
    )


def _attach(arguments: argparse.Namespace) -> Lab:
    lab = Lab.attach(arguments.name, say=on_stderr)
    share = arguments.share and arguments.share.resolve()
    for asked, is_there in (
        (arguments.arch, lab.architecture),
        (arguments.dom0, lab.dom0),
        (arguments.kernel, lab.kernel),
        (share, lab.share),
    ):
        if asked is not None and asked != is_there:
            lab.close()
            raise LabError(
                f"the lab that is up has {is_there}, and not {asked}: end it (xenvirt lab down), or give "
                "this one another --name"
            )
    return lab


def _run(arguments: argparse.Namespace) -> int:
    say = silent if arguments.quiet else on_stderr
    try:
        up = is_up(arguments.name)
        if not up:  # what it refuses it refuses before anything is booted
            files_for(arguments.arch or DEFAULT_ARCHITECTURE, arguments.wheel, say)
        with _attach(arguments) if up else _boot(arguments, None) as lab:
            return lab.run(*arguments.argv, wheel=arguments.wheel)
    except LabError as error:
        return _failed(error)


def _up(arguments: argparse.Namespace) -> int:
    try:
        _boot(arguments, arguments.name).close()
    except LabError as error:
        return _failed(error)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    try:
        down(arguments.name)
    except LabError as error:
        return _failed(error)
    return 0


def _failed(error: LabError) -> int:
    print(f"xenvirt lab: {error}", file=sys.stderr)
    return FAILED
