"""The entropy device, driven in process by our driver."""

from __future__ import annotations

import pytest

from xenvirt import connect
from xenvirt.devices import EntropyDevice
from xenvirt.drivers import EntropyDriver


def test_gives_what_its_source_gives() -> None:
    given: list[int] = []

    def source(size: int) -> bytes:
        given.append(size)
        return bytes(number % 251 for number in range(size))

    with connect(EntropyDevice(source)) as link, EntropyDriver(link) as rng:
        assert rng.read(300) == bytes(number % 251 for number in range(300))
    assert given == [300]


def test_gives_at_most_its_limit_for_one_buffer() -> None:
    given: list[int] = []

    def source(size: int) -> bytes:
        given.append(size)
        return bytes(size)

    with connect(EntropyDevice(source, limit=100)) as link, EntropyDriver(link) as rng:
        assert len(rng.read(250)) == 250
    assert given == [100, 100, 50]


def test_random_bytes_differ() -> None:
    with connect(EntropyDevice()) as link, EntropyDriver(link) as rng:
        assert rng.read(64) != rng.read(64)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        EntropyDevice(limit=0)
