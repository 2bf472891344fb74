"""One chain at a time: reading, writing, views, files, completing."""

import gc
import os
import tempfile
import threading

import pytest

from xenvirt._native import Chain, DriverQueue, VirtQueue

FILL = b"\xa5"


def take(device: VirtQueue) -> Chain:
    chain = device.pop()
    assert chain is not None
    return chain


def test_a_request_goes_there_and_back() -> None:
    driver, device = DriverQueue.pair(8)
    token = driver.submit([b"ques", b"tion"], [3, 10])
    chain = take(device)
    assert (chain.readable, chain.writable, chain.completed) == (8, 13, False)
    assert chain.read(5) == b"quest"
    assert chain.read() == b"ion"
    assert chain.read() == b""
    assert chain.write(b"ans") == 3
    assert chain.write(memoryview(b"xwerx")[1:4]) == 3
    assert (chain.readable, chain.writable) == (0, 7)
    chain.complete()
    assert chain.completed
    assert driver.completed() == [(token, [b"ans", b"wer" + 7 * FILL], 6)]
    assert driver.completed() == []
    assert device.pop() is None


def test_iterating_takes_what_is_there() -> None:
    driver, device = DriverQueue.pair(8, indirect=True, event_idx=True)
    tokens = [driver.submit([bytes([n])], [1]) for n in range(5)]
    for chain in device:
        chain.write(chain.read())
        chain.complete()
    assert driver.completed() == [(token, [bytes([n])], 1) for n, token in enumerate(tokens)]
    assert list(device) == []


def test_chains_that_belong_together_are_seen_together() -> None:
    driver, device = DriverQueue.pair(8)
    tokens = [driver.submit([], [4]) for _ in range(3)]
    first, second, third = list(device)
    third.write(b"tri")
    device.complete([third, first])
    assert [(token, used) for token, _, used in driver.completed()] == [(tokens[2], 3), (tokens[0], 0)]
    assert (first.completed, second.completed, third.completed) == (True, False, True)
    device.complete([])


def test_chains_that_do_not_belong_together_are_not_completed() -> None:
    driver, device = DriverQueue.pair(8)
    other_driver, other_device = DriverQueue.pair(8)
    driver.submit([], [4])
    driver.submit([], [4])
    other_driver.submit([], [4])
    (one, two), other = list(device), take(other_device)
    with pytest.raises(ValueError, match="another queue"):
        device.complete([one, other])
    with pytest.raises(ValueError, match="completed"):
        device.complete([one, two, one])
    two.complete()
    with pytest.raises(ValueError, match="completed"):
        device.complete([one, two])
    assert (one.completed, other.completed, len(driver.completed())) == (False, False, 1)


def test_readinto_fills_what_fits() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"0123456789"], [])
    chain = take(device)
    buffer = bytearray(4)
    assert chain.readinto(buffer) == 4
    assert chain.readinto(memoryview(buffer)[2:]) == 2
    assert buffer == b"0145"
    large = bytearray(100)
    assert chain.readinto(large) == 4
    assert large[:5] == b"6789\0"


def test_what_does_not_fit_is_not_written() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([], [4])
    chain = take(device)
    with pytest.raises(ValueError, match="5 bytes do not fit, 4 writable bytes are left"):
        chain.write(b"12345")
    with pytest.raises(ValueError, match="do not fit"):
        chain.complete(5)
    chain.complete()
    assert driver.completed() == [(0, [4 * FILL], 0)]


def test_a_chain_is_completed_once() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"x"], [4])
    chain = take(device)
    chain.complete()
    for again in (chain.complete, chain.read, lambda: chain.write(b"x"), chain.writable_views):
        with pytest.raises(ValueError, match="completed already"):
            again()


def test_views_are_the_memory_of_the_chain() -> None:
    driver, device = DriverQueue.pair(8)
    token = driver.submit([b"abc", b"defg"], [2, 4])
    chain = take(device)
    chain.read(1)
    assert [bytes(view) for view in chain.readable_views()] == [b"bc", b"defg"]
    chain.write(b"1")
    views = chain.writable_views()
    assert [len(view) for view in views] == [1, 4]
    for view in views:
        memoryview(view)[:] = len(view) * b"v"
    chain.complete(4)
    assert driver.completed() == [(token, [b"1v", b"vvvv"], 4)]


def test_readable_views_cannot_be_written() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"abc"], [])
    [view] = take(device).readable_views()
    assert view.readonly
    with pytest.raises(TypeError):
        memoryview(view)[0] = 1


def test_a_view_in_use_keeps_the_chain_from_being_completed() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([], [4])
    chain = take(device)
    used = memoryview(chain.writable_views()[0])
    with pytest.raises(BufferError):
        chain.complete(4)
    assert not chain.completed
    used[:] = b"done"
    used.release()
    chain.complete(4)
    assert driver.completed() == [(0, [b"done"], 4)]


def test_a_view_ends_with_its_chain() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([], [4])
    chain = take(device)
    [view] = chain.writable_views()
    chain.complete()
    with pytest.raises(ValueError, match="released"):
        memoryview(view)


def test_files_and_chains_exchange_bytes() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"to the ", b"file"], [6, 10])
    chain = take(device)
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        assert chain.write_from_file(file, 2, 5) == 5
        assert chain.write_from_file(file.fileno(), 0) == 10, "the file ends, the chain does not"
        assert chain.read_to_file(file, 100) == 11
        assert os.pread(file.fileno(), 20, 100) == b"to the file"
    chain.complete()
    assert driver.completed() == [(0, [b"234560", b"123456789" + FILL], 15)]


def test_a_stream_gives_what_it_has() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"out"], [10])
    chain = take(device)
    inside, outside = os.pipe()
    try:
        os.write(outside, b"inward")
        assert chain.write_from_file(inside) == 6
        assert chain.read_to_file(outside) == 3
        assert os.read(inside, 10) == b"out"
    finally:
        os.close(inside)
        os.close(outside)
    with pytest.raises(OSError, match="Bad file descriptor"):
        chain.write_from_file(inside)


def test_a_kept_chain_is_completed_from_another_thread() -> None:
    driver, device = DriverQueue.pair(8)
    token = driver.submit([], [100_000])
    chain = take(device)
    assert device.kept == 1

    def later() -> None:
        chain.write(100_000 * b"x")
        chain.complete()

    thread = threading.Thread(target=later)
    thread.start()
    thread.join()
    assert device.kept == 0
    assert driver.completed() == [(token, [100_000 * b"x"], 100_000)]


def test_a_dropped_chain_is_not_kept() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([], [4])
    chain = device.pop()
    assert device.kept == 1
    del chain
    gc.collect()
    assert (device.kept, driver.pending, driver.completed()) == (0, 1, [])


def test_a_queue_and_a_chain_say_what_they_are() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"abc"], [4])
    chain = take(device)
    assert repr(device) == "<VirtQueue 0 of 8 descriptors, running, 1 chains kept>"
    assert repr(chain) == "<Chain 0: 3 bytes left to read, 4 to write>"
    assert repr(driver) == "<DriverQueue 0 of 8 descriptors, 1 pending>"
    assert (device.index, device.size, device.running) == (0, 8, True)
    chain.read()
    chain.complete()
    assert device.counters == (0, 1, 3, 0, 2, 0)
