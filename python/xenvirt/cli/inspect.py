"""``xenvirt inspect``: what somebody's vhost-user backend offers."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Final

from xenvirt.errors import DisconnectedError
from xenvirt.vhost_user.inspection import Inspection, inspect
from xenvirt.virtio.ids import DeviceId

ALSO_CALLED: Final = {"blk": DeviceId.BLOCK, "rng": DeviceId.ENTROPY, "9p": DeviceId.NINEP}
LABEL: Final = 21
"""How wide the left column is."""
SHOWN_BYTES: Final = 16
"""How many bytes of a field are shown."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "inspect",
        help="what a vhost-user backend offers",
        description="Asks a vhost-user backend what it offers, and hangs up. The backend serves on, unless "
        "it is one that quits after any client. vhost-user does not tell what kind of device it is: say "
        "--device to have its features named and its configuration space decoded.",
    )
    parser.add_argument("socket", metavar="SOCKET", help="the path where the backend listens")
    parser.add_argument("--device", type=_device, metavar="TYPE", help="what it is: block, net, console, ...")
    parser.add_argument(
        "--config-size",
        type=_size,
        metavar="BYTES",
        help="how much of the configuration space to ask for, instead of what the type has; too much ends "
        "some backends",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="S",
        help="how long connecting, and then each answer, may take (default 5)",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")
    parser.add_argument("--log", action="store_true", help="show what was said, too (on standard error)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints what the backend said. The exit status is 1 if it did not answer everything that was asked."""
    try:
        found = inspect(
            arguments.socket, arguments.device, config_size=arguments.config_size, timeout=arguments.timeout
        )
    except DisconnectedError as error:
        # rust-vmm's do, and so the message alone would send one looking for a daemon that is there.
        why = "a daemon may take its socket away while it serves another client"
        raise DisconnectedError(f"{error}; {why}") from error
    if arguments.log:
        print(*found.wire_log, sep="\n", file=sys.stderr)
    if arguments.json:
        json.dump(as_dict(found), sys.stdout, indent=2)
        print()
    else:
        print(as_text(found, shutil.get_terminal_size((100, 24)).columns))
    if found.failure is not None:
        print(f"xenvirt inspect: {found.failure}{_hint(found)}", file=sys.stderr)
        return 1
    return 0


def as_dict(found: Inspection) -> dict[str, object]:
    """What was found, for JSON. Bit masks are strings, since readers of JSON cut large numbers."""

    def mask(bits: int | None, names: list[str]) -> dict[str, object] | None:
        return None if bits is None else {"bits": hex(bits), "names": names}

    config = None
    if found.config is not None:
        fields = {name: _plain(value) for name, value in found.config_fields.items()}
        config = {"bytes": found.config.hex(), "fields": fields}
    return {
        "socket": found.socket,
        "device_type": None if found.device_id is None else found.device_id.name,
        "features": mask(found.features, found.feature_names),
        "protocol_features": mask(found.protocol_features, found.protocol_feature_names),
        "queues": found.queues,
        "ring_sizes": None,
        "memory_slots": found.memory_slots,
        "status": None if found.status is None else int(found.status),
        "config": config,
        "untold": dict(found.untold),
        "failure": found.failure,
    }


def as_text(found: Inspection, width: int) -> str:
    """What was found, a line for each part, none longer than `width` characters if that can be."""
    lines = []
    for label, text in _parts(found):
        lines += textwrap.wrap(
            text,
            max(width, 60),
            initial_indent=label.ljust(LABEL),
            subsequent_indent=" " * LABEL,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def _parts(found: Inspection) -> Iterator[tuple[str, str]]:
    untold = found.untold

    def told(what: str, answer: object) -> tuple[str, str]:
        return what, f"untold: {untold[what]}" if what in untold else str(answer)

    given = "" if found.device_id is None else f"; taken to be {found.device_id.name}, as you say"
    yield "socket", found.socket
    yield "device type", f"untold: {untold['device type']}{given}"
    yield told("features", _mask(found.features, found.feature_names))
    yield told("protocol features", _mask(found.protocol_features, found.protocol_feature_names))
    yield told("queues", found.queues)
    yield told("ring sizes", "")
    yield told("memory slots", found.memory_slots)
    yield told("status", _status(found))
    yield told("configuration space", _bytes(found.config or b""))
    for name, value in found.config_fields.items():
        yield f"  {name}", _bytes(value) if isinstance(value, bytes) else str(value)


def _mask(bits: int | None, names: list[str]) -> str:
    return f"{bits or 0:#x}: {', '.join(names)}" if bits else "none"


def _status(found: Inspection) -> str:
    if not found.status:
        return "0: reset"
    return f"{int(found.status):#x}: {', '.join(flag.name or '' for flag in found.status)}"


def _bytes(data: bytes) -> str:
    if len(data) > SHOWN_BYTES and not any(data):
        return f"{len(data)} bytes, all of them 0"
    more = " ..." if len(data) > SHOWN_BYTES else ""
    return f"{len(data)} bytes: {data[:SHOWN_BYTES].hex(' ')}{more}"


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _hint(found: Inspection) -> str:
    """What may be behind it, if not even the first question was answered."""
    if found.features is not None:
        return ""
    return " (does it serve another client at the moment? is it a vhost-user backend?)"


def _device(text: str) -> DeviceId:
    if text.lower() in ALSO_CALLED:
        return ALSO_CALLED[text.lower()]
    try:
        return DeviceId[text.upper().replace("-", "_")]
    except KeyError:
        names = ", ".join(device.name.lower() for device in DeviceId)
        raise argparse.ArgumentTypeError(f"{text!r} is none of {names}") from None


def _size(text: str) -> int:
    try:
        size = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 1 <= size <= 256:
        raise argparse.ArgumentTypeError(f"{size} is not between 1 and 256")
    return size
