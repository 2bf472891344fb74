"""The driver's end: room, order, notifications."""

import select

import pytest

from xenvirt._native import DriverQueue
from xenvirt.errors import QueueFullError


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("indirect", [False, True])
def test_a_full_ring_takes_more_after_a_completion(indirect: bool) -> None:
    driver, device = DriverQueue.pair(4, indirect=indirect)
    fits = 4 if indirect else 2
    for _ in range(fits):
        driver.submit([b"x"], [1])
    with pytest.raises(QueueFullError, match="queue 0: the ring is full: 0 of 4 descriptors are free"):
        driver.submit([b"x"], [1])
    assert driver.pending == fits
    chain = device.pop()
    assert chain is not None
    chain.complete()
    assert len(driver.completed()) == 1
    driver.submit([b"x"], [1])


def test_memory_comes_back() -> None:
    driver, device = DriverQueue.pair(4, 65536)
    for _ in range(10):
        driver.submit([40_000 * b"x"], [20_000])
        with pytest.raises(QueueFullError, match="no memory for"):
            driver.submit([], [20_000])
        chain = device.pop()
        assert chain is not None
        assert len(chain.read()) == 40_000
        chain.complete()
        assert len(driver.completed()) == 1


def test_what_can_never_fit_is_a_value_error() -> None:
    driver, _device = DriverQueue.pair(4, 65536)
    with pytest.raises(ValueError, match="5 buffers does not fit a ring of 4"):
        driver.submit(5 * [b"x"])
    with pytest.raises(ValueError, match="do not fit the"):
        driver.submit([], [65536])
    with pytest.raises(ValueError, match="at least one buffer"):
        driver.submit()
    with pytest.raises(ValueError, match="does not fit 64 bytes of memory"):
        DriverQueue.pair(4, 64)
    with pytest.raises(TypeError):
        driver.submit(["text"])  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        driver.submit([], [2**32])


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_eventfd_tells_when_something_came_back(event_idx: bool) -> None:
    driver, device = DriverQueue.pair(8, event_idx=event_idx)
    assert driver.completed() == []
    assert not readable(driver.fileno())
    for round_ in range(3):
        driver.submit([], [1])
        assert not readable(driver.fileno())
        for chain in device:
            chain.complete()
        assert readable(driver.fileno())
        assert [token for token, _, _ in driver.completed()] == [round_]
        assert not readable(driver.fileno())


def test_kicks_come_when_the_device_waits_for_them() -> None:
    driver, device = DriverQueue.pair(8, event_idx=True)
    assert device.pop() is None
    driver.submit([], [1])
    assert readable(driver.kick_fd)


def test_completions_out_of_order_are_told_apart() -> None:
    driver, device = DriverQueue.pair(8)
    tokens = [driver.submit([], [1]) for _ in range(4)]
    chains = list(device)
    for chain, byte in zip(reversed(chains), b"dcba", strict=True):
        chain.write(bytes([byte]))
        chain.complete()
    assert [(token, buffers) for token, buffers, _ in driver.completed()] == [
        (token, [letter]) for token, letter in zip(reversed(tokens), [b"d", b"c", b"b", b"a"], strict=True)
    ]


def test_with_in_order_early_completions_wait_for_their_turn() -> None:
    driver, device = DriverQueue.pair(8, in_order=True)
    tokens = [driver.submit([], [1]) for _ in range(3)]
    first, second, third = device
    third.complete()
    second.complete()
    assert driver.completed() == []
    first.complete()
    assert [token for token, _, _ in driver.completed()] == tokens
