"""``xenvirt attach``: the virtio devices of Xen guests, served as the toolstack announces them."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

from xenvirt.errors import MappingError, VirtioNodeError, XenvirtError
from xenvirt.xen.attach import Attacher, mapping
from xenvirt.xen.attach.backend import check
from xenvirt.xen.attach.mapping import Empty, Ignored, Mapping, PythonClass
from xenvirt.xen.attach.records import ROOT, forget_guests_that_are_gone
from xenvirt.xen.attach.slot import GuestSlots
from xenvirt.xen.virtio_node import VirtioNode, node_paths, read_node
from xenvirt.xen.xenbus import XenbusState
from xenvirt.xen.xenstore import XenStore

from .transport import number

log = logging.getLogger("xenvirt")

UNIT = "xenvirt-attach.service"
"""The systemd unit's file, in xenvirt.xen.attach."""

DESCRIPTION = """\
Serves the virtio devices of Xen guests: those that xl.cfg names by virtio=[...] (Xen 4.18 and newer) or by a
disk with specification=virtio (4.17), as they come and go in the xenstore. What serves which is said by a
file of rules (--map), or by one rule on the command line (--class, --socket, --daemon). A device that no rule
fits, or whose backend cannot be started, is an empty slot for its guest: left alone it would keep the guest
from booting.
"""

EPILOG = """\
a file of rules, the first that fits counts:

    [[device]]
    type = "block"                      # a device type, by name or number
    guest = "web-*"                     # the guest's name
    class = "xenvirt.devices:BlockDevice"
    arguments = { image = "{target}", read_only = "{read_only}" }

    [[device]]
    type = "i2c"
    socket = "/run/i2c-{domid}.sock"    # a vhost-user daemon that runs

    [[device]]
    type = "vsock"
    command = ["vhost-device-vsock", "--socket={socket}", "--guest-cid={domid}"]

Other keys: kind ("virtio", "virtio_disk"), devid, env, socket_suffix, ignore = true (somebody else serves
it), empty = true. When the attach process ends or is killed, guests wait, and the next one goes on with their
devices: what it needs for that is in /run/xenvirt/guests.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "attach",
        help="serve the virtio devices of Xen guests",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--domid", type=number(0, 0x7FEF), metavar="N", help="one guest's devices, until it is gone"
    )
    which.add_argument("--watch", action="store_true", help="all guests', for ever")
    which.add_argument(
        "--print-unit", action="store_true", help="print the systemd unit, and do nothing else"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--map", type=Path, metavar="FILE", help="the file of rules")
    what.add_argument(
        "--class", dest="class_name", metavar="MODULE:CLASS", help="a Python class serves them all"
    )
    what.add_argument("--socket", metavar="PATH", help="the vhost-user daemon that listens there does")
    what.add_argument(
        "--daemon", metavar="COMMAND", help="one does that is started: 'vhost-device-rng --socket={socket}'"
    )
    parser.add_argument(
        "--socket-suffix",
        metavar="TEXT",
        help="what the daemon of --daemon appends to its socket's path; rust-vmm's number them: 0",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of --class, a text; may be given several times",
    )
    slot = parser.add_argument_group("a slot of which the xenstore says nothing (with --domid)")
    slot.add_argument("--base", type=_integer, metavar="ADDRESS", help="of its registers: 0x2000000")
    slot.add_argument("--irq", type=_integer, metavar="N", help="its interrupt: 33")
    slot.add_argument("--type", metavar="NAME", help="the type of device, a name or number; for daemons")
    slot.add_argument("--grants", action="store_true", help="the guest offers its memory by grants")
    parser.add_argument("--dry-run", action="store_true", help="say what it would do with what is there now")
    parser.add_argument("--xenstore", metavar="PATH", help="its socket or device (default: the first found)")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: everything")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end, or the guest is gone."""
    if arguments.print_unit:
        print(unit(), end="")
        return 0
    level = (logging.INFO, logging.INFO, logging.DEBUG)[min(arguments.verbose, 2)]
    logging.basicConfig(level=level, format="xenvirt attach: %(message)s")
    rules = _rules(arguments)
    with XenStore(arguments.xenstore) as store:
        fixed = _fixed(arguments)
        if arguments.dry_run:
            return dry_run(store, rules, arguments.domid, fixed)
        return serve(store, rules, arguments.domid, fixed)


def serve(store: XenStore, rules: Mapping, domid: int | None, fixed: VirtioNode | None) -> int:
    """Serves what is announced, or the one slot that the command line names."""
    if domid is not None and not store.is_domain_introduced(domid):
        raise XenvirtError(f"there is no domain {domid}: see xl list")
    for rule in rules.rules:
        # A class's module is imported by that, and not only when a guest waits for it.
        if isinstance(rule.backend, PythonClass) and (problem := check(rule.backend)):
            log.warning("%s: %s", rule.place, problem)
    if fixed is not None:
        fixed = replace(fixed, uuid=store.get(f"/local/domain/{domid}/vm"))
    forget_guests_that_are_gone(ROOT, store)
    with (
        GuestSlots(ROOT) as slots,
        Attacher(store, rules, slots.open, domid, fixed, slots.take_over) as attacher,
        _ended_by_signals(attacher),
    ):
        log.info("ready")
        notify("READY=1")
        attacher.run()
        notify("STOPPING=1")
    return 0


def dry_run(store: XenStore, rules: Mapping, domid: int | None, fixed: VirtioNode | None) -> int:
    """Says what would become of each device that is announced now; 1 if one of them would not be served."""
    status = 0
    nodes: list[VirtioNode | VirtioNodeError] = [fixed] if fixed is not None else list(_nodes(store, domid))
    for node in nodes:
        if isinstance(node, VirtioNodeError):
            print(f"left alone: {node}")
            status = 1
            continue
        guest = store.get(f"/local/domain/{node.domid}/name", "") or ""
        print(f"{node.name}, guest {guest!r}, {_state(node)}")
        try:
            backend = rules.backend_for(node, guest)
        except MappingError as error:
            print(f"    cannot be served: {error}")
            status = 1
            continue
        if isinstance(backend, Ignored):
            print(f"    {backend}")
            continue
        problem = check(backend)
        memory = "by grants" if node.grants else "by foreign mappings"
        if problem is not None:
            print(f"    an empty slot, because {problem}")
            status = 1
        else:
            print(f"    {backend}" + ("" if isinstance(backend, Empty) else f"; its memory {memory}"))
    if not nodes:
        where = "no guest has" if domid is None else f"domain {domid} has not"
        print(f"{where} announced any virtio device to this domain")
    return status


def unit() -> str:
    """The systemd unit that comes with the package, for this Python."""
    text = (resources.files("xenvirt.xen.attach") / UNIT).read_text()
    return text.replace("ExecStart=xenvirt ", f"ExecStart={sys.executable} -m xenvirt ")


def notify(state: str) -> None:
    """Tells systemd, where it has started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            end.send(state.encode())


def _rules(arguments: argparse.Namespace) -> Mapping:
    """The rules of the file, or the one of the command line."""
    if arguments.map is not None:
        return mapping.load(arguments.map)
    rule: dict[str, Any] = {}
    if arguments.class_name is not None:
        rule["class"] = arguments.class_name
        rule["arguments"] = dict(_setting(text) for text in arguments.set)
    elif arguments.set:
        raise XenvirtError("--set goes with --class")
    if arguments.socket is not None:
        rule["socket"] = arguments.socket
    if arguments.daemon is not None:
        rule["command"] = shlex.split(arguments.daemon)
    if arguments.socket_suffix is not None:
        rule["socket_suffix"] = arguments.socket_suffix
    return mapping.parse({"device": [rule]} if rule else {}, "the command line")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise XenvirtError(f"--set wants NAME=VALUE, not {text!r}")
    return name, value


def _fixed(arguments: argparse.Namespace) -> VirtioNode | None:
    """The slot that the command line names."""
    if arguments.base is None and arguments.irq is None:
        if arguments.type is not None or arguments.grants:
            raise XenvirtError("--type and --grants go with --base and --irq: else the xenstore says them")
        return None
    if arguments.domid is None or arguments.base is None or arguments.irq is None:
        raise XenvirtError("--base, --irq and --domid go together")
    return VirtioNode(
        domid=arguments.domid,
        devid=0,
        kind="virtio",
        path="",
        device_id=mapping.device_id(arguments.type, "--type"),
        base=arguments.base,
        irq=arguments.irq,
        grants=arguments.grants,
        state=XenbusState.UNKNOWN,
        online=True,
        read_only=False,
        target=None,
        uuid=None,
    )


def _nodes(store: XenStore, domid: int | None) -> Iterator[VirtioNode | VirtioNodeError]:
    for path in node_paths(store, domid):
        try:
            node = read_node(store, path)
        except VirtioNodeError as error:
            yield error
        else:
            if node is not None:
                yield node


def _state(node: VirtioNode) -> str:
    match node.state:
        case XenbusState.UNKNOWN:
            return "of which the xenstore says nothing"
        case XenbusState.INITIALISING:
            return "waiting for a backend"
        case XenbusState.CLOSING | XenbusState.CLOSED:
            return "going away"
        case _:
            return "with a backend, or left by one"


def _integer(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number: write 33 or 0x2000000")
    return value


@contextmanager
def _ended_by_signals(attacher: Attacher) -> Iterator[None]:
    """SIGINT and SIGTERM end it in order."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        attacher.stop()

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
