"""``xenvirt serve net``: a guest's network card on a tap, a sink, or a cable to another guest."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from xenvirt import Device, VhostUserSocket
from xenvirt.devices import NetBackend, NetDevice, Sink, Tap, cable

from .transport import add_transport, make_transport, number


def add_device(devices: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the device."""
    parser = devices.add_parser(
        "net",
        help="a network card of a guest",
        description="Serves a network device: wired to an interface of this host, to another guest, or to "
        "nothing. To bring a tap up: ip link set NAME up; ip address add 10.0.0.1/24 dev NAME.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--tap",
        metavar="NAME",
        help="this tap interface, made if there is none; with %%d in it the kernel chooses",
    )
    where.add_argument("--sink", action="store_true", help="drop every frame, and say in the end how many")
    where.add_argument(
        "--pair", metavar="PATH2", help="a cable to a second device, which is served at this socket"
    )
    parser.add_argument("--mac", help="the guest's address, as 52:54:00:12:34:56 (default: a random one)")
    parser.add_argument("--mtu", type=number(68, 65535), metavar="BYTES", help="what the guest is told")
    parser.add_argument(
        "--queues", type=number(1, 127), default=1, metavar="N", help="queue pairs, 1 to 127 (default 1)"
    )
    parser.add_argument(
        "--threads", action="store_true", help="serve each queue on a thread of its own; not with --tap"
    )
    add_transport(parser)
    parser.set_defaults(
        make=_make,
        qemu="-netdev vhost-user,id=net,chardev=dev -device virtio-net-pci,netdev=net",
    )


def _make(arguments: argparse.Namespace, stack: ExitStack) -> list[tuple[Device, VhostUserSocket]]:
    transports = [make_transport(arguments)]
    backends: list[NetBackend] = []
    if arguments.pair is not None:
        transports.append(make_transport(arguments, arguments.pair))
        backends.extend(cable(pairs=arguments.queues))
    elif arguments.sink:
        sink = Sink(pairs=arguments.queues)
        backends.append(sink)
    else:
        tap = Tap(arguments.tap, pairs=arguments.queues)
        print(f"xenvirt: the tap is {tap.name}", file=sys.stderr)
        backends.append(tap)
    for backend in backends:
        stack.callback(backend.close)
    # An address that was given is that of the first device; the second one shall not have the same.
    macs = [arguments.mac, None]
    devices = [
        NetDevice(end, mac=mac, mtu=arguments.mtu, thread_per_queue=arguments.threads)
        for end, mac in zip(backends, macs, strict=False)
    ]
    if arguments.sink:
        stack.callback(_count, sink)
    return list(zip(devices, transports, strict=True))


def _count(sink: Sink) -> None:
    print(f"xenvirt: {sink.frames} frames, {sink.octets} bytes", file=sys.stderr)
