"""``xenvirt map``: what it makes of what was found. That it finds it is tests/xen/dom0/test_map.py's."""

from __future__ import annotations

import argparse
import errno
import xml.etree.ElementTree as ElementTree

import pytest

from xenvirt.cli import main
from xenvirt.cli.map import address_range, as_json, as_text, size_of, title_of
from xenvirt.xen.memory_picture import COLOURS, banks, picture
from xenvirt.xen.ram import GuestRam
from xenvirt.xen.survey import Content, Stretch, joined

FRAME = 4096
MIB = 1 << 20
GUEST = GuestRam("web", "pvh", 4 * MIB)
FOUND = [
    Stretch(range(0x9F000), Content.DATA),
    Stretch(range(0x9F000, MIB), Content.HOLE, "there is no such frame in the domain", errno.EINVAL),
    Stretch(range(MIB, 4 * MIB), Content.ZEROES),
    Stretch(range(1 << 32, (1 << 32) + FRAME), Content.FAILED, "the frame is paged out", errno.ENOENT),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_each_stretch_is_a_line_and_the_sums_are_the_last() -> None:
    assert as_text(FOUND) == [
        "  0x000000000000 to 0x00000009efff       636 KiB  data",
        "  0x00000009f000 to 0x0000000fffff       388 KiB  hole: there is no such frame in the domain",
        "  0x000000100000 to 0x0000003fffff         3 MiB  zeroes",
        "  0x000100000000 to 0x000100000fff         4 KiB  failed: the frame is paged out",
        "636 KiB data, 3 MiB zeroes, 388 KiB hole, 4 KiB failed",
    ]


def test_the_title_leaves_out_what_nobody_has_said() -> None:
    assert title_of(5, GUEST) == "domain 5, web, pvh, 4 MiB"
    assert title_of(5, GuestRam("", "", 3 * FRAME)) == "domain 5, 12 KiB"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (4096, "4 KiB"), (3 << 30, "3 GiB")],
)
def test_a_size_is_exact(count: int, words: str) -> None:
    assert size_of(count) == words


def test_as_json_an_error_has_its_number() -> None:
    report = as_json(5, GUEST, FOUND)
    assert (report["domid"], report["name"], report["kind"], report["size"]) == (5, "web", "pvh", 4 * MIB)
    stretches = report["stretches"]
    assert isinstance(stretches, list)
    assert stretches[0] == {"start": 0, "end": 0x9F000, "content": "data"}
    assert stretches[3]["errno"] == errno.ENOENT


def test_neighbours_are_joined_where_the_same_is_found() -> None:
    frames = [
        Stretch(range(at * FRAME, (at + 1) * FRAME), content, "", number)
        for at, content, number in [
            (0, Content.DATA, 0),
            (1, Content.DATA, 0),
            (2, Content.FAILED, errno.ENOENT),
            (3, Content.FAILED, errno.EPERM),
            (5, Content.FAILED, errno.EPERM),
        ]
    ]
    assert [one.addresses for one in joined(frames)] == [
        range(2 * FRAME),
        range(2 * FRAME, 3 * FRAME),
        range(3 * FRAME, 4 * FRAME),
        range(5 * FRAME, 6 * FRAME),
    ]
    assert list(joined([])) == []


def test_the_picture_has_a_cell_for_each_frame_of_a_small_guest() -> None:
    drawn = ElementTree.fromstring(picture("a <guest> & more", FOUND))  # noqa: S314 - we have just made it
    texts = [one.text for one in drawn.iter(f"{SVG}text")]
    assert texts[0] == "a <guest> & more"
    assert "a cell is 4 KiB" in texts
    assert {"0x0", "0x40000", "0x100000000"} <= set(texts)
    fills = [one.get("fill") for one in drawn.iter(f"{SVG}rect")]
    in_legend = 1
    assert {content: fills.count(colour) - in_legend for content, colour in COLOURS.items()} == {
        Content.DATA: 0x9F,
        Content.HOLE: 0x100 - 0x9F,
        Content.ZEROES: 0x300,
        Content.FAILED: 1,
    }


def test_of_a_large_guest_a_cell_shows_the_most_important() -> None:
    gib = 1 << 30
    found = [
        Stretch(range(FRAME), Content.DATA),
        Stretch(range(FRAME, gib), Content.ZEROES),
        Stretch(range(gib, gib + FRAME), Content.FAILED, "", errno.ENOENT),
        Stretch(range(gib + FRAME, 64 * gib), Content.HOLE),
    ]
    drawn = ElementTree.fromstring(picture("large", found))  # noqa: S314
    fills = [one.get("fill") for one in drawn.iter(f"{SVG}rect")]
    assert fills.count(COLOURS[Content.DATA]) == 1 + 1
    assert fills.count(COLOURS[Content.FAILED]) == 1 + 1
    assert len(fills) < 7000


def test_a_gap_begins_another_bank() -> None:
    assert [len(bank) for bank in banks(FOUND)] == [3, 1]


@pytest.mark.parametrize("text", ["", "0", "0x1000", "0x2000-0x1000", "1-0x1000", "0-9", "a-b"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="START-END"):
        address_range(text)


def test_a_range_is_in_any_base() -> None:
    assert address_range("0x1000-12288") == range(0x1000, 0x3000)


def test_without_xen_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "5", "--range", "0-0x1000"]) == 1
    assert capsys.readouterr().err.startswith("xenvirt map: ")
