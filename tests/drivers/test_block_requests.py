"""The block driver says what the specification wants, and reads answers with suspicion. No native code runs
here.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirt.drivers import AsyncBlockDriver, BlockDriver
from xenvirt.errors import NegotiationError, RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio import Feature
from xenvirt.virtio.block import BlockConfig, BlockFeature, RangeFlag, RequestType, Status

from .fake_link import Disk, FakeAsyncLink, FakeLink

SECTORS = 1024


def link_to(disk: Disk, features: int = 0, queue_count: int = 1, **config: int) -> FakeLink:
    space = bytearray(BlockConfig(capacity=len(disk.data) // 512, **config).to_bytes())  # type: ignore[arg-type]
    return FakeLink(disk, Feature.VERSION_1 | features, queue_count, space)


def test_negotiates_what_is_offered_and_known() -> None:
    link = link_to(Disk(8), BlockFeature.FLUSH | BlockFeature.ZONED | Feature.EVENT_IDX | Feature.RING_PACKED)
    with BlockDriver(link) as disk:
        assert disk.features == Feature.VERSION_1 | Feature.EVENT_IDX | BlockFeature.FLUSH
        assert (disk.capacity, disk.size, disk.read_only) == (8, 4096, False)
    assert link.started == (128,)


def test_a_device_without_version_1_is_refused_by_name() -> None:
    with pytest.raises(NegotiationError, match=r"BlockDriver needs VERSION_1.*0x20 only.*type BLOCK"):
        BlockDriver(FakeLink(Disk(1), BlockFeature.RO))


def test_uses_all_queues_of_a_multiqueue_device_or_as_many_as_asked() -> None:
    link = link_to(Disk(8), BlockFeature.MQ, queue_count=4)
    assert BlockDriver(link).queues == 4
    assert BlockDriver(link, queues=2, queue_size=64).queues == 2
    assert link.started == (64, 64)
    assert BlockDriver(link_to(Disk(8), queue_count=4)).queues == 1, "without MQ there is one queue"


@given(offset=st.integers(0, 64 * 512), data=st.binary(max_size=3000))
def test_writes_and_reads_at_any_byte(offset: int, data: bytes) -> None:
    device = Disk(80)
    device.data[:] = bytes(range(256)) * (len(device.data) // 256)
    expected = bytearray(device.data)
    expected[offset : offset + len(data)] = data
    disk = BlockDriver(link_to(device))
    disk.write(offset, data)
    assert device.data == expected
    assert disk.read(offset, len(data)) == data


def test_an_aligned_write_reads_nothing() -> None:
    device = Disk(8)
    BlockDriver(link_to(device)).write(512, b"x" * 1024)
    assert device.log == [(RequestType.OUT, 1, 1024)]


def test_a_long_transfer_is_cut_and_its_requests_run_side_by_side() -> None:
    device = Disk(SECTORS)
    link = link_to(device)
    disk = BlockDriver(link)
    data = bytes(range(256)) * (SECTORS * 2)
    disk.write(0, data)
    assert device.log == [(RequestType.OUT, sector, 131072) for sector in (0, 256, 512, 768)]
    assert link.most_waiting == 4
    assert disk.read(0, len(data)) == data


def test_segments_follow_the_limits_of_the_device() -> None:
    link = link_to(Disk(SECTORS), BlockFeature.SIZE_MAX | BlockFeature.SEG_MAX, size_max=1024, seg_max=3)
    disk = BlockDriver(link)
    assert disk.read_request(0, 5).writable == [1024, 1024, 512, 1]
    assert [len(memoryview(part)) for part in disk.write_request(0, bytes(2048)).readable] == [16, 1024, 1024]
    with pytest.raises(ValueError, match=r"read of 7 sectors at 0 takes 4 segments.*the device allows 3"):
        disk.read_request(0, 7)
    assert len(disk.read(0, 4096)) == 4096
    assert [len(request.writable) for request in link.requests] == [4, 2]


def test_a_write_takes_whole_sectors() -> None:
    with pytest.raises(ValueError, match="whole sectors of 512 bytes, not 100"):
        BlockDriver(link_to(Disk(1))).write_request(0, bytes(100))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (Status.IOERR, RequestFailedError, "read of 1 sectors at 3: the device answered IOERR"),
        (Status.UNSUPP, RequestUnsupportedError, "does not know this request"),
        (Status.ZONE_UNALIGNED_WP, RequestFailedError, "ZONE_UNALIGNED_WP"),
        (0xA5, ResponseError, r"no status, or one that does not exist \(0xa5\)"),
    ],
)
def test_each_status_becomes_its_error(status: int, error: type[Exception], message: str) -> None:
    device = Disk(8)
    device.status = status
    with pytest.raises(error, match=message) as caught:
        BlockDriver(link_to(device)).read(3 * 512, 512)
    assert getattr(caught.value, "status", None) == status


def test_ok_with_too_few_bytes_is_no_answer() -> None:
    def liar(_queue: int, _readable: bytes, writable: list[bytearray]) -> int:
        writable[-1][0] = Status.OK
        return 1

    with pytest.raises(ResponseError, match="says OK, and that it wrote 1 bytes of 513"):
        BlockDriver(FakeLink(liar)).read(0, 512)


def test_one_failing_part_fails_the_whole_after_all_have_ended() -> None:
    link = link_to(Disk(300))
    with pytest.raises(RequestFailedError, match="read of 256 sectors at 256"):
        BlockDriver(link).read(0, 512 * 512)
    assert link.waiting == []


def test_flush_is_sent_where_there_is_a_cache() -> None:
    device = Disk(1)
    BlockDriver(link_to(device)).flush()
    assert device.log == []
    BlockDriver(link_to(device, BlockFeature.FLUSH)).flush()
    assert device.log == [(RequestType.FLUSH, 0, 0)]


def test_ranges_are_cut_as_the_device_allows() -> None:
    device = Disk(64)
    device.data[:] = b"\xff" * len(device.data)
    link = link_to(device, BlockFeature.WRITE_ZEROES, max_write_zeroes_sectors=4, max_write_zeroes_seg=2)
    BlockDriver(link).write_zeroes(512, 10 * 512, unmap=True)
    assert [kind for kind, _, _ in device.log] == [RequestType.WRITE_ZEROES] * 2
    assert [size for _, _, size in device.log] == [32, 16]
    assert device.data == b"\xff" * 512 + bytes(10 * 512) + b"\xff" * (53 * 512)
    flags = bytes(link.requests[0].readable[1])[12:16]
    assert int.from_bytes(flags, "little") == RangeFlag.UNMAP


def test_a_range_must_be_aligned() -> None:
    disk = BlockDriver(link_to(Disk(8), BlockFeature.DISCARD))
    with pytest.raises(ValueError, match="multiples of 512"):
        disk.discard(1, 512)


def test_what_was_not_negotiated_is_refused_without_asking() -> None:
    device = Disk(8)
    disk = BlockDriver(link_to(device))
    with pytest.raises(RequestUnsupportedError, match="cannot discard: DISCARD was not negotiated"):
        disk.discard(0, 512)
    with pytest.raises(RequestUnsupportedError, match="WRITE_ZEROES"):
        disk.write_zeroes(0, 512)
    with pytest.raises(RequestUnsupportedError, match="CONFIG_WCE"):
        disk.set_writeback(True)
    assert device.log == []


def test_the_serial_number_ends_at_its_first_zero() -> None:
    assert BlockDriver(link_to(Disk(1))).get_id() == "serial-7"


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (0, 8),
        (BlockFeature.SEG_MAX, 16),
        (BlockFeature.BLK_SIZE | BlockFeature.CONFIG_WCE, 33),
        (BlockFeature.MQ, 36),
        (BlockFeature.DISCARD, 48),
        (BlockFeature.WRITE_ZEROES | BlockFeature.MQ, 60),
        (BlockFeature.SECURE_ERASE, 72),
    ],
)
def test_no_more_of_the_configuration_space_is_read_than_the_features_speak_of(
    features: int, size: int
) -> None:
    disk = BlockDriver(link_to(Disk(8), features))
    assert len(disk.config_space) == size
    assert disk.capacity == 8


def test_the_cache_is_switched_through_the_configuration_space() -> None:
    link = link_to(Disk(1), BlockFeature.CONFIG_WCE)
    disk = BlockDriver(link)
    disk.set_writeback(True)
    assert link.space[32] == 1
    assert disk.config.writeback == 1


def test_any_request_can_be_sent_raw() -> None:
    device = Disk(1)
    device.status = 77
    link = link_to(device)
    disk = BlockDriver(link)
    status, answer = link.run(disk.raw_request(0x1234, 9, readable=[b"abc"], writable=[4]))
    assert (status, answer.used, answer.buffers[0]) == (77, 1, b"\xa5" * 4)
    assert device.log == [(0x1234, 9, 3)]


def test_the_driver_of_asyncio_does_the_same() -> None:
    async def use() -> tuple[bytes, str]:
        async with AsyncBlockDriver(FakeAsyncLink(link_to(Disk(SECTORS), BlockFeature.FLUSH))) as disk:
            await disk.write(100, b"abc" * 100_000)
            await disk.flush()
            return await disk.read(103, 6), await disk.get_id()

    assert asyncio.run(use()) == (b"abcabc", "serial-7")
