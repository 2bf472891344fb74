"""The SCSI driver: commands as SPC and SBC have them, and errors with their sense data."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from xenvirt.drivers import AsyncScsiDriver, ScsiDriver
from xenvirt.drivers.scsi_requests import lun_bytes, transfer_block
from xenvirt.errors import CheckConditionError, RequestFailedError, ResponseError
from xenvirt.virtio.scsi import CommandRequest, CommandResponse, Response, ScsiConfig
from xenvirt.virtio.sense import Capacity, ScsiStatus, Sense, SenseKey

from .fake_link import FakeAsyncLink, FakeLink

BLOCK = 512
INVALID_OPCODE = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0])


class Disk:
    """A SCSI disk of a few lines."""

    def __init__(self, blocks: int) -> None:
        self.data = bytearray(blocks * BLOCK)
        self.last_block = blocks - 1
        self.log: list[tuple[int, bytes]] = []  # command code, address of the unit
        self.attention = 0
        self.response = Response.OK
        self.status = ScsiStatus.GOOD
        self.sense = b""

    def __call__(self, queue: int, readable: bytes, writable: list[bytearray]) -> int:
        assert queue == 2
        request = CommandRequest.from_bytes(readable)
        cdb, payload = request.cdb, readable[CommandRequest.size() :]
        room = len(writable[1]) if len(writable) > 1 else 0
        self.log.append((cdb[0], request.lun))
        status, sense, data = int(self.status), self.sense, b""
        if self.attention:
            self.attention -= 1
            status, sense = ScsiStatus.CHECK_CONDITION, bytes([0x72, 6, 0x29, 0])
        elif cdb[0] == 0x12:
            data = b"\0\x80\6\2\x1f\0\0\0" + b"xenvirt " + b"fake disk".ljust(16) + b"0.1 "
        elif cdb[0] == 0x25:
            data = min(self.last_block, 0xFFFF_FFFF).to_bytes(4, "big") + BLOCK.to_bytes(4, "big")
        elif cdb[0] == 0x9E:
            data = self.last_block.to_bytes(8, "big") + BLOCK.to_bytes(4, "big") + bytes(20)
        elif cdb[0] in (0x28, 0x88):
            at, count = where(cdb)
            data = bytes(self.data[at * BLOCK : (at + count) * BLOCK])
        elif cdb[0] in (0x2A, 0x8A):
            at, _ = where(cdb)
            self.data[at * BLOCK : at * BLOCK + len(payload)] = payload
        elif cdb[0] not in (0x00, 0x35):
            status, sense = ScsiStatus.CHECK_CONDITION, INVALID_OPCODE
        if room:
            writable[1][: len(data)] = data
        writable[0][:] = CommandResponse(
            len(sense), room - len(data) if room else 0, 0, status, self.response, sense
        ).to_bytes()
        return len(writable[0]) + len(data)


def where(cdb: bytes) -> tuple[int, int]:
    if cdb[0] & 0xF0 == 0x80:
        return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")


def link_to(disk: Disk, **config: int) -> FakeLink:
    return FakeLink(disk, space=bytearray(ScsiConfig(num_queues=1, **config).to_bytes()))


def test_a_unit_says_what_it_is() -> None:
    link = link_to(Disk(8))
    with ScsiDriver(link) as scsi:
        assert link.started == (128, 128, 128)
        said = scsi.inquiry()
        assert (said.device_type, said.removable) == (0, True)
        assert (said.vendor, said.product, said.revision) == ("xenvirt", "fake disk", "0.1")
        capacity = scsi.read_capacity()
        assert (capacity, capacity.size) == (Capacity(8, BLOCK), 4096)
        scsi.test_unit_ready()
        scsi.synchronize_cache()


def test_what_is_written_is_read_in_commands_of_the_size_that_the_host_takes() -> None:
    disk = Disk(64)
    with ScsiDriver(link_to(disk, max_sectors=8)) as scsi:
        data = bytes(range(256)) * 40
        scsi.write(3, data)
        assert disk.data[3 * BLOCK : 3 * BLOCK + len(data)] == data
        assert scsi.read(3, 20) == data
        assert scsi.read(0, 0) == b""
    codes = [code for code, _ in disk.log]
    assert codes == [0x25, 0x2A, 0x2A, 0x2A, 0x25, 0x28, 0x28, 0x28, 0x25]


def test_a_large_disk_is_asked_in_the_long_form() -> None:
    disk = Disk(1)
    disk.last_block = 1 << 33
    with ScsiDriver(link_to(disk)) as scsi:
        assert scsi.read_capacity() == Capacity((1 << 33) + 1, BLOCK)
    assert transfer_block(0x28, 0x88, 1 << 32, 1) == bytes.fromhex("8800 0000000100000000 00000001 0000")
    assert transfer_block(0x28, 0x88, 5, 0x1_0000)[0] == 0x88
    assert transfer_block(0x28, 0x88, 5, 0xFFFF) == bytes.fromhex("28 00 00000005 00 ffff 00")


def test_a_unit_is_addressed_as_virtio_has_it() -> None:
    disk = Disk(8)
    ScsiDriver(link_to(disk)).inquiry(target=7, lun=0x123)
    assert disk.log[0][1] == bytes([1, 7, 0x41, 0x23, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="targets 0 to 255"):
        lun_bytes(256, 0)


def test_unit_attention_is_no_failure_of_the_command() -> None:
    disk = Disk(300)
    disk.attention = 1
    with ScsiDriver(link_to(disk)) as scsi:
        scsi.test_unit_ready()
        scsi.read_capacity()
        disk.attention = 2
        assert scsi.read(0, 300) == bytes(300 * BLOCK)
        disk.attention = 99
        with pytest.raises(CheckConditionError, match="UNIT_ATTENTION, power on, reset"):
            scsi.test_unit_ready()


def test_sense_data_is_decoded_into_the_error() -> None:
    with ScsiDriver(link_to(Disk(1))) as scsi:
        result = scsi.command(bytes([0xEE]))
        with pytest.raises(
            CheckConditionError,
            match=r"command 0xee \(target 0, unit 0\): ILLEGAL_REQUEST, invalid command operation code",
        ) as caught:
            result.check()
    error = caught.value
    assert (error.key, error.asc, error.ascq) == (SenseKey.ILLEGAL_REQUEST, 0x20, 0)
    assert error.status == ScsiStatus.CHECK_CONDITION
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (copy.key, copy.asc, str(copy)) == (error.key, error.asc, str(error))


def test_both_formats_of_sense_data_and_none_are_understood() -> None:
    fixed = Sense.from_bytes(INVALID_OPCODE)
    assert fixed == Sense(5, 0x20, 0)
    assert Sense.from_bytes(b"\x73\x03\x11\x01") == Sense(3, 0x11, 1, deferred=True)
    assert str(Sense(3, 0x11, 1)) == "MEDIUM_ERROR, ASC 0x11, ASCQ 0x01"
    assert Sense.from_bytes(b"") is None
    assert Sense.from_bytes(b"\x7f" * 18) is None


@pytest.mark.parametrize(
    ("response", "status", "error", "message"),
    [
        (Response.BAD_TARGET, 0, RequestFailedError, "the host answered BAD_TARGET"),
        (Response.OK, ScsiStatus.BUSY, RequestFailedError, "the unit answered BUSY"),
        (Response.OK, ScsiStatus.CHECK_CONDITION, CheckConditionError, "without sense data"),
        (0xA5, 0, ResponseError, "response 0xa5 and status 0x0"),
        (Response.OK, 0xA5, ResponseError, "status 0xa5"),
    ],
)
def test_each_answer_becomes_its_error(
    response: int, status: int, error: type[Exception], message: str
) -> None:
    disk = Disk(1)
    disk.response, disk.status = response, status  # type: ignore[assignment]
    with pytest.raises(error, match=message):
        ScsiDriver(link_to(disk)).test_unit_ready()


def test_an_answer_that_claims_more_than_there_is_makes_no_sense() -> None:
    def liar(_queue: int, _readable: bytes, writable: list[bytearray]) -> int:
        writable[0][:] = CommandResponse(resid=100).to_bytes()
        return len(writable[0])

    with pytest.raises(ResponseError, match="100 of 8 bytes were not used"):
        ScsiDriver(FakeLink(liar)).read_capacity()


def test_good_with_too_little_data_is_no_answer() -> None:
    disk = Disk(2)
    with pytest.raises(ResponseError, match="says GOOD, and gave 1024 bytes of 2048"):
        ScsiDriver(link_to(disk)).read(0, 4)


def test_a_write_takes_whole_blocks() -> None:
    with pytest.raises(ValueError, match="cannot write 100 bytes at block 0: blocks have 512 bytes"):
        ScsiDriver(link_to(Disk(1))).write(0, bytes(100))


def test_the_driver_of_asyncio_does_the_same() -> None:
    disk = Disk(600)

    async def use() -> tuple[bytes, str, int]:
        async with AsyncScsiDriver(FakeAsyncLink(link_to(disk))) as scsi:
            await scsi.test_unit_ready()
            await scsi.write(0, b"abcd" * 128 * 600)
            await scsi.synchronize_cache()
            product = (await scsi.inquiry()).product
            assert (await scsi.command(bytes(6))).check() == b""
            return await scsi.read(599, 1), product, (await scsi.read_capacity()).blocks

    assert asyncio.run(use()) == (b"abcd" * 128, "fake disk", 600)
