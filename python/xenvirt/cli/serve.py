"""``xenvirt serve``: a ready-made device behind a vhost-user socket."""

from __future__ import annotations

import argparse
import grp
import logging
import pwd
import socket
import sys
from collections.abc import Callable

from xenvirt import Device, VhostUserSocket, serve
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.errors import XenvirtError

GUEST_MEMORY = "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem"
"""What QEMU needs for every vhost-user device: memory that can be shared."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a device over a vhost-user socket",
        description="Serves a device over a vhost-user socket until Ctrl-C or SIGTERM.",
    )
    devices = parser.add_subparsers(dest="device", metavar="DEVICE", required=True)

    entropy = devices.add_parser(
        "entropy", help="random bytes for a guest", description="Serves an entropy device."
    )
    _add_transport(entropy)
    entropy.set_defaults(make=lambda _: EntropyDevice(), qemu="vhost-user-rng-pci")

    blk = devices.add_parser(
        "blk", help="a disk over a raw image", description="Serves a raw image as a disk."
    )
    blk.add_argument(
        "image", metavar="IMAGE", help="a file or block device; to make one: truncate -s 1G IMAGE"
    )
    blk.add_argument("--read-only", action="store_true", help="refuse writes, and tell the guest")
    blk.add_argument(
        "--queues", type=_number(1, 256), default=1, metavar="N", help="request queues, 1 to 256 (default 1)"
    )
    blk.add_argument("--threads", action="store_true", help="serve each queue on a thread of its own")
    blk.add_argument("--serial", help="the disk's serial number, at most 20 bytes (default: the file's name)")
    _add_transport(blk)
    blk.set_defaults(make=_make_block, qemu="vhost-user-blk-pci")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end."""
    level = logging.DEBUG if arguments.verbose > 1 else logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        transport = _transport(arguments)
        device: Device = arguments.make(arguments)
    except ValueError as error:
        raise XenvirtError(str(error)) from error
    try:
        serve(device, transport, ready_fd=arguments.ready_fd)
    finally:
        if isinstance(device, BlockDevice):
            device.close()
    return 0


class _Announced(VhostUserSocket):
    """Says on standard error that a frontend can connect, once it can."""

    hint = ""

    def open(self) -> socket.socket:
        opened = super().open()
        verb = "connected to" if self.connect else "listening on"
        print(f"xenvirt: {verb} {self.path}; Ctrl-C ends it", file=sys.stderr)
        if self.hint and sys.stderr.isatty():
            print(self.hint, file=sys.stderr)
        return opened


def _transport(arguments: argparse.Namespace) -> VhostUserSocket:
    if arguments.fd is not None:
        return VhostUserSocket.from_fd(arguments.fd)
    transport = _Announced(
        arguments.socket, mode=arguments.socket_mode, owner=arguments.socket_owner, connect=arguments.connect
    )
    if not arguments.connect:
        transport.hint = (
            f"  for a guest: qemu-system-x86_64 {GUEST_MEMORY} "
            f"-chardev socket,id=dev,path={arguments.socket} -device {arguments.qemu},chardev=dev ..."
        )
    return transport


def _add_transport(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", metavar="PATH", help="make this Unix socket, and listen")
    where.add_argument(
        "--fd",
        type=_number(0, 1 << 20),
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
        type=_number(0, 1 << 20),
        metavar="N",
        help="write a newline there once the socket is open",
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log connections; twice: everything"
    )


def _make_block(arguments: argparse.Namespace) -> Device:
    return BlockDevice(
        arguments.image,
        read_only=arguments.read_only,
        queues=arguments.queues,
        serial=arguments.serial,
        thread_per_queue=arguments.threads,
    )


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return parse


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
