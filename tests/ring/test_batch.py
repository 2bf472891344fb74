"""Many chains at once: columns, groups, copies, trailers."""

import array
import os
import tempfile

import pytest

from xenvirt._native import Batch, DriverQueue, Mask, VirtQueue
from xenvirt.errors import RingError
from xenvirt.virtio.block import RequestHeader, RequestType, Status

FILL = b"\xa5"


class Tagged:
    """A header with fields of every kind."""

    @classmethod
    def fields(cls) -> tuple[tuple[str, str, int], ...]:
        return (("byte", "B", 0), ("half", "H", 2), ("signed", "i", 4), ("mac", "6s", 8))

    @classmethod
    def size(cls) -> int:
        return 14


def request(kind: int, sector: int) -> bytes:
    return RequestHeader(type=kind, sector=sector).to_bytes()


def take(device: VirtQueue, trailer: int = 1) -> Batch:
    batch = device.pop_batch(header=RequestHeader, trailer=trailer)
    assert batch is not None
    return batch


def test_a_disk_is_served_by_the_batch() -> None:
    driver, device = DriverQueue.pair(64, indirect=True, event_idx=True)
    data = bytearray(b"".join(bytes([n]) * 512 for n in range(16)))
    driver.submit([request(RequestType.IN, 3)], [512, 1])
    driver.submit([request(RequestType.OUT, 5), 1024 * b"w"], [1])
    driver.submit([request(RequestType.IN, 15)], [1024, 1])
    driver.submit([request(RequestType.IN, 2**64 - 1)], [512, 1])
    driver.submit([request(RequestType.FLUSH, 0)], [1])
    driver.submit([request(99, 0)], [1])
    batch = take(device)
    assert len(batch) == 6
    assert batch.header["sector"].tolist() == [3, 5, 15, 2**64 - 1, 0, 0]
    assert batch.readable.tolist() == [0, 1024, 0, 0, 0, 0]
    assert batch.total_readable == 1024
    assert batch.writable.tolist() == [512, 0, 1024, 512, 0, 0]
    groups = batch.group_by("type")
    assert [(kind, len(part)) for kind, part in groups] == [(0, 3), (1, 1), (4, 1), (99, 1)]
    for kind, part in groups:
        sectors = part.header["sector"]
        match kind:
            case RequestType.IN:
                done = part.write_from(data, sectors, unit=512)
                assert done.tolist() == [True, False, False]
                part.write_trailer(Status.OK, where=done, otherwise=Status.IOERR)
            case RequestType.OUT:
                done = part.read_into(data, sectors, unit=512)
                part.write_trailer(Status.OK, where=done, otherwise=Status.IOERR)
            case RequestType.FLUSH:
                part.write_trailer(Status.OK)
            case _:
                part.write_trailer(Status.UNSUPP)
    batch.complete()
    assert data[5 * 512 : 7 * 512] == 1024 * b"w"
    assert [(buffers, used) for _, buffers, used in driver.completed()] == [
        ([512 * b"\3", b"\0"], 513),
        ([b"\0"], 1),
        ([bytes(1024), b"\1"], 1025),
        ([bytes(512), b"\1"], 513),
        ([b"\0"], 1),
        ([b"\2"], 1),
    ]
    assert device.pop_batch(header=RequestHeader, trailer=1) is None


def test_columns_have_the_format_of_their_fields() -> None:
    driver, device = DriverQueue.pair(8)
    for n in range(3):
        driver.submit([bytes([n, 0, n, 1]) + (-n).to_bytes(4, "little", signed=True) + 6 * bytes([65 + n])])
    batch = device.pop_batch(Tagged)
    assert batch is not None
    header = batch.header
    assert (len(header), header.keys(), "mac" in header, "mtu" in header) == (
        4,
        ["byte", "half", "signed", "mac"],
        True,
        False,
    )
    assert [header[name].format for name in ("byte", "half", "signed", "mac")] == ["B", "H", "i", "B"]
    assert header["byte"].tolist() == [0, 1, 2]
    assert header["half"].tolist() == [256, 257, 258]
    assert header["signed"].tolist() == [0, -1, -2]
    assert header["mac"].shape == (3, 6)
    assert bytes(header["mac"]) == b"AAAAAABBBBBBCCCCCC"
    assert header["byte"].readonly
    assert [value for value, _ in batch.group_by("signed")] == [0, -1, -2]
    with pytest.raises(TypeError, match="is of bytes"):
        batch.group_by("mac")
    with pytest.raises(KeyError, match="there are: byte, half, signed, mac"):
        header["mtu"]


def test_a_header_may_be_split_in_any_way() -> None:
    driver, device = DriverQueue.pair(32)
    header = request(RequestType.OUT, 7)
    driver.submit([header[:1], header[1:9], header[9:] + b"da", b"ta"], [1])
    driver.submit([header + b"data"], [1])
    batch = take(device)
    assert batch.header["sector"].tolist() == [7, 7]
    assert batch.readable.tolist() == [4, 4]
    target = bytearray(8)
    assert batch.read_into(target, [0, 4]).all()
    assert target == b"datadata"


def test_a_trailer_may_be_split_in_any_way() -> None:
    driver, device = DriverQueue.pair(32)
    driver.submit([request(0, 0)], [4, 1, 2, 1])
    driver.submit([request(0, 0)], [4 + 4])
    driver.submit([request(0, 0)], [4 + 3, 1])
    batch = take(device, trailer=4)
    assert batch.writable.tolist() == [4, 4, 4]
    assert batch.write_from(b"data", [0, 0, 0]).all()
    batch.write_trailer(0x04030201)
    batch.complete()
    contents = [b"".join(buffers) for _, buffers, _ in driver.completed()]
    assert contents == 3 * [b"data\1\2\3\4"]


def test_the_used_length_claims_no_byte_that_was_not_written() -> None:
    driver, device = DriverQueue.pair(32)
    for _ in range(3):
        driver.submit([request(0, 0)], [8, 1])
    batch = take(device)
    done = batch.write_from(b"12345678", [0, 1, 0])
    assert done.tolist() == [True, False, True]
    batch.select(Mask([True, True, False])).write_trailer(7)
    batch.complete()
    # The middle one: zeroes before its trailer. The last one: data, but no trailer.
    assert [(b"".join(buffers), used) for _, buffers, used in driver.completed()] == [
        (b"12345678\7", 9),
        (bytes(8) + b"\7", 9),
        (b"12345678" + FILL, 8),
    ]


def test_parts_share_the_requests_of_the_whole() -> None:
    driver, device = DriverQueue.pair(32)
    for kind in (0, 1, 0, 1):
        driver.submit([request(kind, kind)], [1])
    batch = take(device)
    (zero, even), (one, odd) = batch.group_by("type")
    assert (zero, one, even.header["type"].tolist(), odd.header["sector"].tolist()) == (0, 1, [0, 0], [1, 1])
    odd.write_trailer(1)
    odd.complete()
    assert [token for token, _, _ in driver.completed()] == [1, 3]
    with pytest.raises(ValueError, match="completed already"):
        batch.write_trailer(0)
    even.write_trailer(2)
    batch.complete()
    assert [(token, used) for token, _, used in driver.completed()] == [(0, 1), (2, 1)]


def test_a_batch_with_which_nothing_was_done_is_completed_once_and_by_all_of_its_parts() -> None:
    driver, device = DriverQueue.pair(8)
    for sector in range(2):
        driver.submit([request(0, sector)], [1])
    batch = take(device)
    part = batch.select(Mask([True, False]))
    batch.complete()
    assert [(token, used) for token, _, used in driver.completed()] == [(0, 0), (1, 0)]
    for late in (batch, part):
        late.complete()
        with pytest.raises(ValueError, match="completed already"):
            late.write_trailer(0)
    assert driver.completed() == []


def test_what_a_part_completed_is_not_completed_again_where_nothing_else_was_done() -> None:
    driver, device = DriverQueue.pair(8)
    for sector in range(2):
        driver.submit([request(0, sector)], [1])
    batch = take(device)
    batch.select(Mask([False, True])).complete()
    assert [token for token, _, _ in driver.completed()] == [1]
    batch.complete()
    assert [token for token, _, _ in driver.completed()] == [0]


def test_a_dropped_batch_stays_with_the_device_also_where_nothing_was_done() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([request(0, 0)], [1])
    batch = take(device)
    assert device.kept == 1
    del batch
    assert device.kept == 0
    assert driver.completed() == []


def test_offsets_may_be_any_integers() -> None:
    driver, device = DriverQueue.pair(32)
    for _ in range(3):
        driver.submit([request(0, 0)], [1, 1])
    batch = take(device)
    for offsets in (
        [2, 1, -1],
        (2, 1, 2**64),
        array.array("H", [2, 1, 9]),
        array.array("i", [2, 1, -1]),
        array.array("I", [2, 1, 9]),
        array.array("q", [2, 1, -1]),
        array.array("Q", [2, 1, 2**63]),
    ):
        assert batch.write_from(b"abc", offsets).tolist() == [True, True, False]
    for bad in (["a", "b", "c"], 3.5, array.array("d", [1, 2, 3])):
        with pytest.raises(TypeError):
            batch.write_from(b"abc", bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 offsets given for a batch of 3 requests"):
        batch.write_from(b"abc", [0, 1])


def test_numpy_takes_columns_and_gives_offsets() -> None:
    np = pytest.importorskip("numpy")
    driver, device = DriverQueue.pair(32)
    for n in range(4):
        driver.submit([request(0, n)], [2, 1])
    batch = take(device)
    sectors = np.asarray(batch.header["sector"])
    assert sectors.dtype == np.uint64
    data = np.arange(8, dtype=np.uint8)
    assert batch.write_from(data, (sectors * np.uint64(2))[::-1]).all()
    batch.complete()
    assert [buffers[0] for _, buffers, _ in driver.completed()] == [b"\6\7", b"\4\5", b"\2\3", b"\0\1"]


def test_an_offset_that_overflows_is_not_done() -> None:
    driver, device = DriverQueue.pair(32)
    driver.submit([request(0, 2**63)], [1, 1])
    batch = take(device)
    assert not batch.write_from(b"x", batch.header["sector"], unit=2).any()


def test_files_are_read_and_written_in_place() -> None:
    driver, device = DriverQueue.pair(64)
    driver.submit([request(0, 1)], [3, 5, 1])
    driver.submit([request(0, 2)], [8, 1])
    driver.submit([request(0, 2)], [4, 1])
    driver.submit([request(0, 2**62)], [4, 1])
    with tempfile.TemporaryFile() as file:
        os.pwrite(file.fileno(), b"........sector 1half", 0)
        reads = take(device)
        done = reads.write_from_file(file, reads.header["sector"], unit=8)
        assert done.tolist() == [True, False, True, False]
        assert reads.write_from_file(file, [0, 0, 0, 0], limit=7).tolist() == [False, False, True, True]
        driver.submit([request(1, 3), b"writ", b"ten!"], [1])
        driver.submit([request(1, 4), b"beyond"], [1])
        writes = take(device)
        done = writes.read_into_file(file.fileno(), writes.header["sector"], unit=8, limit=36)
        assert done.tolist() == [True, False]
        assert os.pread(file.fileno(), 100, 24) == b"written!"
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            assert not writes.read_into_file(full, [0, 0]).any()


def test_zeroes_are_written() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([request(0, 0)], [3, 2, 1])
    batch = take(device)
    batch.write_zeroes()
    batch.complete()
    assert driver.completed() == [(0, [bytes(3), bytes(2), FILL], 5)]


@pytest.mark.parametrize(
    ("readable", "writable", "rule"),
    [([b"short"], [1], "chain-header"), ([bytes(16)], [], "chain-trailer"), ([], [1], "chain-header")],
)
def test_a_chain_too_short_for_its_header_or_trailer_fails_the_queue(
    readable: list[bytes], writable: list[int], rule: str
) -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([request(0, 0)], [1])
    driver.submit(readable, writable)
    good = take(device)
    assert len(good) == 1
    with pytest.raises(RingError) as raised:
        take(device)
    assert (raised.value.rule, raised.value.queue, device.running) == (rule, 0, False)
    good.complete()
    assert len(driver.completed()) == 1


def test_a_batch_has_at_most_as_many_chains_as_asked_for() -> None:
    driver, device = DriverQueue.pair(8)
    for _ in range(5):
        driver.submit([b"x"])
    sizes = []
    while batch := device.pop_batch(limit=2):
        sizes.append(len(batch))
        batch.complete()
    assert sizes == [2, 2, 1]
    with pytest.raises(ValueError, match="limit is 0"):
        device.pop_batch(limit=0)
    with pytest.raises(ValueError, match="trailer is 9"):
        device.pop_batch(trailer=9)


def test_a_trailer_value_fits_its_bytes() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([request(0, 0)], [1])
    batch = take(device)
    with pytest.raises(ValueError, match="0x100 does not fit 1 bytes"):
        batch.write_trailer(256)
    with pytest.raises(OverflowError):
        batch.write_trailer(-1)
    with pytest.raises(ValueError, match="2 mask entries given"):
        batch.write_trailer(0, where=Mask([True, False]))


def test_a_batch_without_a_trailer_takes_none() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([b"x"], [1])
    batch = device.pop_batch()
    assert batch is not None
    with pytest.raises(ValueError, match="does not fit 0 bytes"):
        batch.write_trailer(0)
    with pytest.raises(KeyError, match="no header field"):
        batch.header["type"]


def test_a_mask_is_a_list_of_truths() -> None:
    mask = Mask([True, False, True])
    assert (len(mask), mask[0], mask[-1], mask[1], mask.count()) == (3, True, True, False, 2)
    assert (mask.any(), mask.all(), (~mask).tolist()) == (True, False, [False, True, False])
    assert list(mask) == [True, False, True]
    assert mask == Mask([True, False, True])
    assert mask != ~mask
    assert repr(mask) == "<Mask, 2 of 3>"
    with pytest.raises(IndexError):
        mask[3]
    empty = Mask([])
    assert (empty.all(), empty.any()) == (True, False)


def test_an_empty_part_has_empty_columns() -> None:
    driver, device = DriverQueue.pair(8)
    driver.submit([request(0, 0)], [1])
    batch = take(device)
    nothing = batch.select(Mask([False]))
    assert (len(nothing), nothing.header["sector"].tolist(), nothing.readable.tolist()) == (0, [], [])
    assert nothing.group_by("type") == []
    assert nothing.write_from(b"", nothing.header["sector"]).tolist() == []
    nothing.complete()
    assert driver.completed() == []
