"""``xenvirt map``: a guest's memory, as this dom0 can map it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from xenvirt.xen import ForeignMemory
from xenvirt.xen.memory_picture import picture
from xenvirt.xen.ram import GuestRam, guest_ram
from xenvirt.xen.survey import FRAME, Content, Stretch, survey

UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "map",
        help="in a dom0: show a Xen guest's memory: what is mapped, holes, errors",
        description="Maps all of a Xen guest's memory, a few MiB at a time and only for reading, and shows "
        "what is there (data, or zeroes), what is not, and why not. The guest runs on meanwhile.",
    )
    parser.add_argument("domid", type=int, metavar="DOMID", help="the guest's number (xl list)")
    parser.add_argument(
        "--range",
        dest="ranges",
        action="append",
        type=address_range,
        metavar="START-END",
        help="guest physical addresses to look at, instead of what the xenstore says of its RAM; repeatable",
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw a picture there as well")
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")
    parser.set_defaults(run=run)


def address_range(text: str) -> range:
    """ "0x1000-0x3000", the end not included."""
    start, dash, stop = text.partition("-")
    try:
        addresses = range(int(start, 0), int(stop, 0))
    except ValueError:
        addresses = range(0)
    if not dash or not addresses or addresses.start < 0 or addresses.start % FRAME or addresses.stop % FRAME:
        raise argparse.ArgumentTypeError(f"{text}: START-END is wanted, multiples of {FRAME:#x}")
    return addresses


def run(arguments: argparse.Namespace) -> int:
    """Prints what is found. The exit status is 1 if not a frame could be mapped."""
    ranges: list[range] = arguments.ranges
    guest = GuestRam("", "", sum(map(len, ranges))) if ranges else guest_ram(arguments.domid)
    with ForeignMemory() as foreign:
        stretches = list(survey(foreign, arguments.domid, ranges or guest.ranges()))
    title = title_of(arguments.domid, guest)
    if arguments.svg:
        arguments.svg.write_text(picture(title, stretches))
    if arguments.json:
        json.dump(as_json(arguments.domid, guest, stretches), sys.stdout, indent=2)
        print()
    else:
        print(title)
        print("\n".join(as_text(stretches)))
    return 0 if any(one.content in (Content.DATA, Content.ZEROES) for one in stretches) else 1


def title_of(domid: int, guest: GuestRam) -> str:
    """What is shown."""
    words = [f"domain {domid}", guest.name, guest.kind, size_of(guest.size)]
    return ", ".join(word for word in words if word)


def as_text(stretches: Sequence[Stretch]) -> list[str]:
    """A line for each stretch, and the sums."""
    lines = []
    for one in stretches:
        what = one.content.value + (f": {one.reason}" if one.reason else "")
        first, last = one.addresses.start, one.addresses.stop - 1
        lines.append(f"  {first:#014x} to {last:#014x}  {size_of(len(one.addresses)):>12}  {what}")
    sums = [
        f"{size_of(total)} {content.value}"
        for content in Content
        if (total := sum(len(one.addresses) for one in stretches if one.content is content))
    ]
    return [*lines, ", ".join(sums)]


def as_json(domid: int, guest: GuestRam, stretches: Sequence[Stretch]) -> dict[str, object]:
    """The same for programs; addresses and sizes in bytes."""
    return {
        "domid": domid,
        "name": guest.name,
        "kind": guest.kind,
        "size": guest.size,
        "stretches": [
            {
                "start": one.addresses.start,
                "end": one.addresses.stop,
                "content": one.content.value,
                **({"errno": one.errno, "reason": one.reason} if one.errno else {}),
            }
            for one in stretches
        ],
    }


def size_of(count: int) -> str:
    """A number of bytes in the largest unit that leaves no rest."""
    for unit, name in UNITS:
        if count and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"
