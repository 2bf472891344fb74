"""Where ``xenvirt serve`` serves: the options of a vhost-user socket."""

from __future__ import annotations

import argparse
import grp
import pwd
import socket
import sys
from collections.abc import Callable

from xenvirt import VhostUserSocket
from xenvirt.server import POLL_SECONDS

GUEST_MEMORY = "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem"
"""What QEMU needs for every vhost-user device: memory that can be shared."""


class Announced(VhostUserSocket):
    """Says on standard error that a frontend can connect, once it can."""

    hint = ""
    key = "Ctrl-C"

    def open(self) -> socket.socket:
        opened = super().open()
        verb = "connected to" if self.connect else "listening on"
        print(f"xenvirt: {verb} {self.path}; {self.key} ends it", file=sys.stderr)
        if self.hint and sys.stderr.isatty():
            print(self.hint, file=sys.stderr)
        return opened


def make_transport(arguments: argparse.Namespace, path: str | None = None) -> VhostUserSocket:
    """The transport that the options say.

    Args:
        arguments: the options; and `qemu`, what a guest of QEMU is told beside its memory and the chardev,
            and `key`, what is to be typed to end it.
        path: another socket than that of the options.

    Raises:
        ValueError: the options do not go together.
    """
    if arguments.fd is not None and path is None:
        return VhostUserSocket.from_fd(arguments.fd)
    path = path or arguments.socket
    transport = Announced(
        path, mode=arguments.socket_mode, owner=arguments.socket_owner, connect=arguments.connect
    )
    transport.key = arguments.key
    if not arguments.connect:
        transport.hint = (
            f"  for a guest: qemu-system-x86_64 {GUEST_MEMORY} "
            f"-chardev socket,id=dev,path={path} {arguments.qemu} ..."
        )
    return transport


def add_transport(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the transport."""
    parser.set_defaults(key="Ctrl-C")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", metavar="PATH", help="make this Unix socket, and listen")
    where.add_argument(
        "--fd",
        type=number(0, 1 << 20),
        metavar="N",
        help="use this inherited socket (systemd's are from 3 on)",
    )
    parser.add_argument(
        "--connect", action="store_true", help="connect to --socket, where the frontend listens"
    )
    parser.add_argument(
        "--socket-mode", type=_mode, metavar="MODE", help="permission bits of the socket, octal: 660"
    )
    parser.add_argument("--socket-owner", type=_owner, metavar="USER[:GROUP]", help="who owns the socket")
    parser.add_argument(
        "--ready-fd",
        type=number(0, 1 << 20),
        metavar="N",
        help="write a newline there once the socket is open",
    )
    parser.add_argument(
        "--poll",
        type=_seconds,
        default=POLL_SECONDS,
        metavar="SECONDS",
        help="for how long the queues are looked at again after each request, before sleeping: a longer time "
        f"is faster, for a core (default {POLL_SECONDS})",
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log connections; twice: everything"
    )


def number(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that is a number between these two."""

    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 <= value <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 60 seconds")
    return value


def _mode(text: str) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal number such as 660") from None
    if not 0 <= value <= 0o777:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 777")
    return value


def _owner(text: str) -> tuple[int, int]:
    """``user``, ``user:group`` or ``:group``, by name or number; -1 for what is not said."""
    user, _, group = text.partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise argparse.ArgumentTypeError(str(error.args[0])) from None
    return uid, gid
