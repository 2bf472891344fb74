"""Whatever a driver does to the block device, it finds what a plain array of bytes would hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenvirt import connect
from xenvirt.drivers import BlockDriver
from xenvirt.virtio.block import RequestType, Status

from .disks import DISKS

SECTORS = 64
SIZE = SECTORS * 512

sectors = st.integers(0, SECTORS)
ranges = st.tuples(sectors, sectors).map(lambda ends: (min(ends), max(ends) - min(ends)))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE), st.binary(max_size=2000)),
        st.tuples(st.just("read"), st.integers(0, SIZE), st.integers(0, 3000)),
        st.tuples(st.sampled_from(["zero", "zero and free", "discard"]), ranges, st.none()),
        st.tuples(st.just("flush"), st.none(), st.none()),
    ),
    max_size=30,
)


def within(kind: str, path: str, check: Callable[[BlockDriver], None]) -> None:
    with DISKS[kind](path) as device, connect(device) as link, BlockDriver(link) as disk:
        check(disk)


@pytest.mark.parametrize("disk_kind", DISKS)
@given(steps=operations)
def test_a_disk_is_an_array_of_bytes(disk_kind: str, steps: list[tuple[str, Any, Any]]) -> None:
    expected = bytearray(SIZE)

    def check(disk: BlockDriver) -> None:
        for name, first, second in steps:
            match name:
                case "write":
                    data = second[: SIZE - first]
                    disk.write(first, data)
                    expected[first : first + len(data)] = data
                case "read":
                    size = min(second, SIZE - first)
                    assert disk.read(first, size) == expected[first : first + size]
                case "flush":
                    disk.flush()
                case "discard":
                    disk.discard(first[0] * 512, first[1] * 512)
                    expected[first[0] * 512 : sum(first) * 512] = bytes(first[1] * 512)
                case _:
                    disk.write_zeroes(first[0] * 512, first[1] * 512, unmap="free" in name)
                    expected[first[0] * 512 : sum(first) * 512] = bytes(first[1] * 512)
        assert disk.read(0, SIZE) == expected

    with tempfile.NamedTemporaryFile() as image:
        image.truncate(SIZE)
        within(disk_kind, image.name, check)
        assert Path(image.name).read_bytes() == expected


@pytest.mark.parametrize("disk_kind", DISKS)
@settings(max_examples=200)
@given(
    kind=st.one_of(st.sampled_from([int(one) for one in RequestType]), st.integers(0, 2**32 - 1)),
    sector=st.one_of(st.integers(0, SECTORS + 2), st.integers(0, 2**64 - 1)),
    readable=st.lists(st.binary(min_size=1, max_size=600), max_size=4),
    writable=st.lists(st.integers(1, 1100), max_size=4),
)
def test_any_request_gets_a_status_and_stays_inside_the_disk(
    disk_kind: str, kind: int, sector: int, readable: list[bytes], writable: list[int]
) -> None:
    def check(disk: BlockDriver) -> None:
        status, answer = disk.link.run(disk.raw_request(kind, sector, readable=readable, writable=writable))
        assert status in (Status.OK, Status.IOERR, Status.UNSUPP)
        assert answer.used <= sum(writable) + 1
        assert disk.read(0, 512) is not None

    with tempfile.NamedTemporaryFile() as image:
        image.truncate(SIZE)
        within(disk_kind, image.name, check)
        assert Path(image.name).stat().st_size == SIZE
