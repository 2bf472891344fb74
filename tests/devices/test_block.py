"""The block devices, driven in process by our driver: no socket, no guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from xenvirt import connect
from xenvirt.devices import BlockDevice, NativeBlockDevice, RawImage
from xenvirt.devices.block import MAX_RANGE_SECTORS, MAX_RANGES
from xenvirt.drivers import BlockDriver, Request
from xenvirt.errors import RequestFailedError, RequestUnsupportedError
from xenvirt.virtio.block import BlockConfig, BlockFeature, DiscardWriteZeroes, RangeFlag, RequestType, Status

from .disks import DISKS, MakeDisk

SECTORS = 2048
SIZE = SECTORS * 512

Maker = Callable[..., BlockDriver]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(b"\xaa" * SIZE)
    return made


@pytest.fixture(params=DISKS)
def make_disk(request: pytest.FixtureRequest) -> MakeDisk:
    return DISKS[request.param]


@pytest.fixture
def disks() -> list[BlockDevice]:
    """The devices that `drive` has made."""
    return []


@pytest.fixture
def drive(path: Path, make_disk: MakeDisk, disks: list[BlockDevice]) -> Iterator[Maker]:
    """Makes a device over the image and gives a driver that is connected to it."""
    with ExitStack() as stack:

        def make(wanted_features: int | None = None, **options: Any) -> BlockDriver:
            device = stack.enter_context(make_disk(path, **options))
            disks.append(device)
            link = stack.enter_context(connect(device))

            class Driver(BlockDriver):
                pass

            if wanted_features is not None:
                Driver.wanted_features = wanted_features
            return Driver(link)

        yield make


@pytest.fixture
def syncs(disks: list[BlockDevice], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Gives how often the disks were made durable."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)

    def count() -> int:
        native = (disk.storage_counters.syncs for disk in disks if isinstance(disk, NativeBlockDevice))
        return len(synced) + sum(native)

    return count


def test_reads_and_writes_what_is_in_the_image(drive: Maker, path: Path) -> None:
    disk = drive()
    disk.write(1000, b"hello" * 1000)
    disk.flush()
    assert disk.read(990, 5020) == b"\xaa" * 10 + b"hello" * 1000 + b"\xaa" * 10
    assert path.read_bytes()[1000:6000] == b"hello" * 1000


def test_says_what_it_is(drive: Maker) -> None:
    disk = drive(queues=3, queue_size=128, serial="serial-1")
    assert (disk.capacity, disk.size, disk.queues, disk.read_only) == (SECTORS, SIZE, 3, False)
    assert disk.get_id() == "serial-1"
    assert disk.config.seg_max == 126
    assert disk.config.num_queues == 3
    assert disk.features & BlockFeature.MQ
    assert disk.features & BlockFeature.DISCARD


def test_the_serial_is_the_end_of_the_name_unless_said(make_disk: MakeDisk, tmp_path: Path) -> None:
    image = tmp_path / "a-very-long-name-of-a-disk-image.raw"
    image.write_bytes(bytes(512))
    with make_disk(image) as device, connect(device) as link:
        assert BlockDriver(link).get_id() == "me-of-a-disk-image.raw"[-20:]


def test_a_serial_of_20_bytes_is_not_terminated(drive: Maker) -> None:
    assert drive(serial="x" * 20).get_id() == "x" * 20


def test_every_queue_serves(drive: Maker) -> None:
    disk = drive(queues=4)
    for queue in range(4):
        disk.write(queue * 512, bytes([queue]) * 512, queue=queue)
    for queue in range(4):
        assert disk.read((3 - queue) * 512, 512, queue=queue) == bytes([3 - queue]) * 512


def test_many_requests_of_all_kinds_in_one_batch(drive: Maker) -> None:
    disk = drive()
    link = disk.link
    pending: list[Any] = []
    for sector in range(0, 60, 2):
        pending.append(link.submit(disk.write_request(sector, bytes([sector]) * 1024)))
        pending.append(link.submit(disk.read_request(1000 + sector, 1)))
    pending.append(link.submit(disk.get_id_request()))
    pending.append(link.submit(disk.flush_request()))
    results = [one.result() for one in pending]
    assert results[1] == b"\xaa" * 512
    assert results[-2] == "disk.raw"
    assert disk.read(0, 60 * 512) == b"".join(bytes([sector]) * 1024 for sector in range(0, 60, 2))


@pytest.mark.parametrize(
    ("sector", "count", "fits"),
    [
        (SECTORS - 1, 1, True),
        (SECTORS - 8, 8, True),
        (SECTORS, 1, False),
        (SECTORS - 1, 2, False),
        (2**55, 1, False),
        (2**64 - 1, 1, False),
        (2**64 - 1, 2, False),
    ],
)
def test_bounds_are_checked_for_reads_and_writes(
    drive: Maker, path: Path, sector: int, count: int, fits: bool
) -> None:
    disk = drive()
    requests: list[Request[Any]] = [
        disk.read_request(sector, count),
        disk.write_request(sector, b"\xbb" * 512 * count),
    ]
    for request in requests:
        if fits:
            disk.link.run(request)
        else:
            with pytest.raises(RequestFailedError, match="IOERR"):
                disk.link.run(request)
    assert path.stat().st_size == SIZE
    assert (b"\xbb" in path.read_bytes()) == fits


def test_one_bad_request_leaves_the_others_of_its_batch_alone(drive: Maker) -> None:
    disk = drive()
    good, bad, after = (disk.link.submit(disk.read_request(sector, 1)) for sector in (0, SECTORS, 1))
    assert good.result() == after.result() == b"\xaa" * 512
    with pytest.raises(RequestFailedError):
        bad.result()


@pytest.mark.parametrize("size", [1, 511, 513, 1000])
def test_data_that_is_not_whole_sectors_is_refused(drive: Maker, path: Path, size: int) -> None:
    disk = drive()
    link = disk.link
    read = link.submit(disk.raw_request(RequestType.IN, 0, writable=[size]))
    write = link.submit(disk.raw_request(RequestType.OUT, 0, readable=[b"\xbb" * size]))
    fine = link.submit(disk.read_request(5, 2))
    assert read.result()[0] == Status.IOERR
    assert write.result()[0] == Status.IOERR
    assert fine.result() == b"\xaa" * 1024
    assert b"\xbb" not in path.read_bytes()


def test_data_may_be_split_anyhow(drive: Maker) -> None:
    disk = drive()
    status, _ = disk.link.run(
        disk.raw_request(RequestType.OUT, 2, readable=[b"a" * 100, b"b" * 412, b"c" * 512])
    )
    assert status == Status.OK
    status, answer = disk.link.run(disk.raw_request(RequestType.IN, 2, writable=[1, 511, 512]))
    assert status == Status.OK
    assert b"".join(answer.buffers[:3]) == b"a" * 100 + b"b" * 412 + b"c" * 512


@pytest.mark.parametrize("kind", [2, 5, RequestType.SECURE_ERASE, RequestType.ZONE_REPORT, 0xFFFF_FFFF])
def test_an_unknown_request_is_unsupported(drive: Maker, kind: int) -> None:
    disk = drive()
    status, _ = disk.link.run(disk.raw_request(kind, writable=[16]))
    assert status == Status.UNSUPP


def test_a_read_only_device_refuses_writes_of_any_kind(drive: Maker, path: Path) -> None:
    disk = drive(read_only=True)
    assert disk.read_only
    assert not disk.features & (BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES | BlockFeature.CONFIG_WCE)
    assert disk.read(0, 512) == b"\xaa" * 512
    with pytest.raises(RequestFailedError, match="IOERR"):
        disk.write(0, bytes(512))
    for request in (disk.discard_request([(0, 8)]), disk.write_zeroes_request([(0, 8)])):
        with pytest.raises(RequestFailedError, match="IOERR"):
            disk.link.run(request)
    with pytest.raises(RequestUnsupportedError):
        disk.discard(0, 4096)
    assert path.read_bytes() == b"\xaa" * SIZE


def test_an_image_that_was_opened_read_only_makes_a_read_only_device(make_disk: MakeDisk, path: Path) -> None:
    with make_disk(RawImage(path, read_only=True)) as device, connect(device) as link:
        assert BlockDriver(link).read_only


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroed_ranges_read_as_zeroes(drive: Maker, path: Path, unmap: bool) -> None:
    drive().write_zeroes(4096, 65536, unmap=unmap)
    data = path.read_bytes()
    assert data == b"\xaa" * 4096 + bytes(65536) + b"\xaa" * (SIZE - 4096 - 65536)


def test_discarded_ranges_are_freed(drive: Maker, path: Path) -> None:
    before = path.stat().st_blocks
    drive().discard(0, SIZE // 2)
    assert path.stat().st_blocks < before
    assert path.read_bytes()[SIZE // 2 :] == b"\xaa" * (SIZE // 2)


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (RequestType.DISCARD, b"", Status.IOERR),
        (RequestType.DISCARD, bytes(15), Status.IOERR),
        (RequestType.DISCARD, bytes(17), Status.IOERR),
        (RequestType.DISCARD, bytes(16 * (MAX_RANGES + 1)), Status.IOERR),
        (RequestType.DISCARD, bytes(16 * MAX_RANGES), Status.OK),
        (RequestType.DISCARD, DiscardWriteZeroes(0, 8, RangeFlag.UNMAP).to_bytes(), Status.UNSUPP),
        (RequestType.WRITE_ZEROES, DiscardWriteZeroes(0, 8, 2).to_bytes(), Status.UNSUPP),
        (RequestType.WRITE_ZEROES, DiscardWriteZeroes(SECTORS, 1).to_bytes(), Status.IOERR),
        (RequestType.WRITE_ZEROES, DiscardWriteZeroes(SECTORS - 1, 2).to_bytes(), Status.IOERR),
        (RequestType.WRITE_ZEROES, DiscardWriteZeroes(2**64 - 1, 2).to_bytes(), Status.IOERR),
        (RequestType.WRITE_ZEROES, DiscardWriteZeroes(0, MAX_RANGE_SECTORS + 1).to_bytes(), Status.IOERR),
        (
            RequestType.WRITE_ZEROES,
            DiscardWriteZeroes(0, 8).to_bytes() + DiscardWriteZeroes(SECTORS, 8).to_bytes(),
            Status.IOERR,
        ),
    ],
)
def test_a_range_that_cannot_be_is_refused_and_nothing_is_done(
    drive: Maker, path: Path, kind: RequestType, data: bytes, status: Status
) -> None:
    disk = drive()
    got, _ = disk.link.run(disk.raw_request(kind, readable=[data] if data else []))
    assert got == status
    assert path.read_bytes() == b"\xaa" * SIZE


def test_ranges_of_several_requests_in_one_batch_get_their_own_status(drive: Maker, path: Path) -> None:
    disk = drive()
    requests = [
        disk.write_zeroes_request([(0, 8), (16, 8)]),
        disk.write_zeroes_request([(SECTORS, 8)]),
        disk.write_zeroes_request([(32, 8)], unmap=True),
    ]
    pending = [disk.link.submit(request) for request in requests]
    pending[0].result()
    with pytest.raises(RequestFailedError):
        pending[1].result()
    pending[2].result()
    data = path.read_bytes()
    assert [data[start * 512] for start in (0, 8, 16, 24, 32, 40)] == [0, 0xAA, 0, 0xAA, 0, 0xAA]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (BlockFeature.FLUSH, False),
        (BlockFeature.FLUSH | BlockFeature.CONFIG_WCE, False),
        (BlockFeature.CONFIG_WCE, True),
        (0, True),
    ],
)
def test_writes_are_durable_at_once_for_a_driver_that_cannot_flush(
    drive: Maker, syncs: Callable[[], int], wanted: int, expected: bool
) -> None:
    disk = drive(wanted_features=wanted)
    disk.write(0, bytes(512))
    assert bool(syncs()) == expected
    if wanted & BlockFeature.CONFIG_WCE:
        assert disk.refresh().writeback == (not expected)


def test_the_driver_switches_the_cache_and_nothing_else(drive: Maker, syncs: Callable[[], int]) -> None:
    disk = drive()
    disk.set_writeback(False)
    assert disk.config.writeback == 0
    disk.write(0, bytes(512))
    assert syncs() == 1
    disk.set_writeback(True)
    disk.write(0, bytes(512))
    assert syncs() == 1
    disk.link.write_config(0, b"\xff" * BlockConfig.size())
    assert disk.refresh() == BlockConfig.from_bytes(disk.config_space)
    assert disk.capacity == SECTORS


def test_the_next_driver_finds_the_cache_as_the_first_did(make_disk: MakeDisk, path: Path) -> None:
    with make_disk(path) as device:
        with connect(device) as link:
            BlockDriver(link).set_writeback(False)
        with connect(device) as link:
            assert BlockDriver(link).config.writeback == 1


def test_a_failing_flush_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a native disk says of it is tested in Rust.
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with BlockDevice(path) as device, connect(device) as link:
        disk = BlockDriver(link)
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(RequestFailedError, match="flush: the device answered IOERR"):
            disk.flush()


def test_a_truncated_image_fails_reads_beyond_its_end(drive: Maker, path: Path) -> None:
    disk = drive()
    os.truncate(path, 4096)
    assert disk.read(0, 4096) == b"\xaa" * 4096
    with pytest.raises(RequestFailedError):
        disk.read(4096, 512)


def test_a_resized_disk_tells_the_driver(make_disk: MakeDisk, path: Path) -> None:
    with make_disk(path) as device, connect(device) as link:
        disk = BlockDriver(link)
        device.resize(SIZE * 2)
        assert link.config_changes == 1
        assert disk.refresh().capacity == SECTORS * 2
        disk.write(SIZE, b"beyond")
        with pytest.raises(ValueError, match="whole sectors"):
            device.resize(1000)


def test_a_tail_that_is_no_whole_sector_is_left_alone(make_disk: MakeDisk, tmp_path: Path) -> None:
    image = tmp_path / "odd.raw"
    image.write_bytes(bytes(1000))
    with make_disk(image) as device, connect(device) as link:
        disk = BlockDriver(link)
        assert disk.capacity == 1
        with pytest.raises(RequestFailedError):
            disk.write(512, bytes(512))
    assert image.stat().st_size == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": 0}, "queues is 0; a device has 1 to 256"),
        ({"queues": 257}, "queues is 257"),
        ({"serial": "x" * 21}, "has 21 bytes; GET_ID gives at most 20"),
    ],
)
def test_a_device_that_cannot_be_is_refused(
    make_disk: MakeDisk, path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_disk(path, **options)


def test_closing_the_device_frees_the_image(make_disk: MakeDisk, path: Path) -> None:
    device = make_disk(path)
    with pytest.raises(BlockingIOError):
        make_disk(path)
    device.close()
    make_disk(path).close()
