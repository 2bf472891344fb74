"""``xenvirt serve``: a ready-made device behind a vhost-user socket."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack

from xenvirt import Device, VhostUserSocket, serve_all
from xenvirt.devices import BlockDevice, EntropyDevice, NativeBlockDevice
from xenvirt.errors import XenvirtError

from . import serve_console, serve_net
from .transport import add_transport, make_transport, number


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a device over a vhost-user socket",
        description="Serves a device over a vhost-user socket until Ctrl-C or SIGTERM.",
    )
    devices = parser.add_subparsers(dest="device", metavar="DEVICE", required=True)
    _add_entropy(devices)
    _add_block(devices)
    serve_console.add_device(devices)
    serve_net.add_device(devices)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end.

    Each device has set `make`: it gets the arguments and a stack for what is to be closed at the end, and
    gives the devices and where they are served.
    """
    level = logging.DEBUG if arguments.verbose > 1 else logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    with ExitStack() as stack:
        try:
            served: list[tuple[Device, VhostUserSocket]] = arguments.make(arguments, stack)
        except ValueError as error:
            raise XenvirtError(str(error)) from error
        serve_all(served, poll=arguments.poll, ready_fd=arguments.ready_fd)
    return 0


def _add_entropy(devices: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    entropy = devices.add_parser(
        "entropy", help="random bytes for a guest", description="Serves an entropy device."
    )
    add_transport(entropy)
    entropy.set_defaults(make=_make_entropy, qemu="-device vhost-user-rng-pci,chardev=dev")


def _make_entropy(arguments: argparse.Namespace, _stack: ExitStack) -> list[tuple[Device, VhostUserSocket]]:
    return [(EntropyDevice(), make_transport(arguments))]


def _add_block(devices: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    blk = devices.add_parser(
        "blk", help="a disk over a raw image", description="Serves a raw image as a disk."
    )
    blk.add_argument(
        "image", metavar="IMAGE", help="a file or block device; to make one: truncate -s 1G IMAGE"
    )
    blk.add_argument("--read-only", action="store_true", help="refuse writes, and tell the guest")
    blk.add_argument(
        "--queues", type=number(1, 256), default=1, metavar="N", help="request queues, 1 to 256 (default 1)"
    )
    blk.add_argument("--threads", action="store_true", help="serve each queue on a thread of its own")
    blk.add_argument("--serial", help="the disk's serial number, at most 20 bytes (default: the file's name)")
    blk.add_argument(
        "--native", action="store_true", help="answer requests in Rust, by io_uring where that is allowed"
    )
    add_transport(blk)
    blk.set_defaults(make=_make_block, qemu="-device vhost-user-blk-pci,chardev=dev")


def _make_block(arguments: argparse.Namespace, stack: ExitStack) -> list[tuple[Device, VhostUserSocket]]:
    transport = make_transport(arguments)
    make = NativeBlockDevice if arguments.native else BlockDevice
    device = make(
        arguments.image,
        read_only=arguments.read_only,
        queues=arguments.queues,
        serial=arguments.serial,
        thread_per_queue=arguments.threads,
    )
    return [(stack.enter_context(device), transport)]
