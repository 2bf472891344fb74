"""``xenvirt serve console``: a guest's console at this terminal, or at a new one."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack

from xenvirt import Device, VhostUserSocket
from xenvirt.devices import ConsoleDevice, Port, Pty, Stdio

from .transport import add_transport, make_transport


def add_device(devices: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the device."""
    parser = devices.add_parser(
        "console",
        help="a console of a guest: /dev/hvc0 on Linux",
        description="Serves a console: at this terminal, where Ctrl-] ends it and Ctrl-C goes to the guest, "
        "or at a new pseudo-terminal.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--pty", action="store_true", help="make a pseudo-terminal, and say which")
    where.add_argument("--stdio", action="store_true", help="standard input and output (the default)")
    add_transport(parser)
    parser.set_defaults(
        make=_make,
        qemu="-device vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=12,chardev=dev",
    )


def _make(arguments: argparse.Namespace, stack: ExitStack) -> list[tuple[Device, VhostUserSocket]]:
    port: Port
    if arguments.pty:
        port = pty = Pty()
        print(f"xenvirt: the console is {pty.path}", file=sys.stderr)
    else:
        # As if it were typed to whoever serves: it ends everything in order.
        arguments.key = "Ctrl-]" if sys.stdin.isatty() else "Ctrl-C"
        port = Stdio(lambda: signal.raise_signal(signal.SIGINT))
    stack.callback(port.close)
    device = ConsoleDevice(port)
    if port.window_size() is not None:
        before = signal.signal(signal.SIGWINCH, lambda _number, _frame: _resize(device, port))
        stack.callback(signal.signal, signal.SIGWINCH, before)
    return [(device, make_transport(arguments))]


def _resize(device: ConsoleDevice, port: Port) -> None:
    if size := port.window_size():
        device.resize(*size)
