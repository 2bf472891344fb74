"""The entropy driver asks until it has enough, and takes no nonsense. No native code runs here."""

from __future__ import annotations

import asyncio

import pytest

from xenvirt.drivers import AsyncEntropyDriver, EntropyDriver
from xenvirt.errors import ResponseError

from .fake_link import FakeAsyncLink, FakeLink


def sparing(_queue: int, readable: bytes, writable: list[bytearray]) -> int:
    """Gives at most 7 bytes at a time."""
    assert readable == b""
    size = min(len(writable[0]), 7)
    writable[0][:size] = bytes(range(1, size + 1))
    return size


def test_reads_exactly_what_was_asked_in_single_buffers() -> None:
    link = FakeLink(sparing)
    with EntropyDriver(link) as rng:
        assert rng.read(10) == bytes([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
        assert rng.read(0) == b""
    assert [request.writable for request in link.requests] == [(10,), (3,)]


def test_a_large_read_is_cut() -> None:
    link = FakeLink(lambda _queue, _readable, writable: len(writable[0]))
    assert len(EntropyDriver(link).read(200_000)) == 200_000
    assert [request.writable for request in link.requests] == [(65536,)] * 3 + [(200_000 - 3 * 65536,)]


@pytest.mark.parametrize("used", [0, 11])
def test_a_device_that_gives_nothing_or_too_much_is_named(used: int) -> None:
    with pytest.raises(ResponseError, match=f"says it wrote {used} bytes to a buffer of 10"):
        EntropyDriver(FakeLink(lambda _queue, _readable, _writable: used)).read(10)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot read -1 bytes"):
        EntropyDriver(FakeLink(sparing)).read(-1)


def test_the_driver_of_asyncio_does_the_same() -> None:
    async def use() -> bytes:
        async with AsyncEntropyDriver(FakeAsyncLink(FakeLink(sparing))) as rng:
            return await rng.read(8)

    assert asyncio.run(use()) == bytes([1, 2, 3, 4, 5, 6, 7, 1])
