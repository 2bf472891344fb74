"""The I2C and SPI drivers: what they put on the ring, and what they make of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from xenvirt.drivers import AsyncI2cDriver, AsyncSpiDriver, I2cDriver, SpiDriver
from xenvirt.drivers.i2c import Read, Write
from xenvirt.errors import NegotiationError, RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio import Feature
from xenvirt.virtio.i2c import I2cFeature, RequestFlag, RequestHeader
from xenvirt.virtio.spi import Mode, SpiConfig, TransferHeader

from .fake_link import Device, FakeAsyncLink, FakeLink


def i2c_link(device: Device) -> FakeLink:
    return FakeLink(device, Feature.VERSION_1 | I2cFeature.ZERO_LENGTH_REQUEST)


def spi_link(device: Device) -> FakeLink:
    config = SpiConfig(cs_max_number=2, max_freq_hz=10_000_000)
    return FakeLink(device, space=bytearray(config.to_bytes()))


def chip(status: int = 0) -> Callable[[int, bytes, list[bytearray]], int]:
    """Reads as 1, 2, 3..., whatever the bus."""

    def answer(_queue: int, _readable: bytes, writable: list[bytearray]) -> int:
        for buffer in writable[:-1]:
            buffer[:] = bytes(range(1, len(buffer) + 1))
        writable[-1][0] = status
        return sum(map(len, writable))

    return answer


def test_i2c_reads_and_writes_with_shifted_addresses() -> None:
    link = i2c_link(chip())
    with I2cDriver(link) as bus:
        assert bus.read(0x50, 3) == b"\1\2\3"
        bus.write(0x51, b"data")
    read, write = link.requests
    assert RequestHeader.from_bytes(read.readable[0]) == RequestHeader(0xA0, flags=RequestFlag.READ)
    assert RequestHeader.from_bytes(write.readable[0]) == RequestHeader(0xA2)
    assert (read.writable, write.readable[1:], write.writable) == ([3, 1], [b"data"], [1])


def test_a_combined_transfer_goes_out_at_once_and_is_marked_as_one() -> None:
    link = i2c_link(chip())
    with I2cDriver(link) as bus:
        assert bus.write_read(0x50, b"\x10", 2) == b"\1\2"
        assert bus.transfer([Write(1, b"a"), Read(2, 1), Write(3, b"b")]) == [b"", b"\1", b""]
    assert link.most_waiting == 3
    flags = [RequestHeader.from_bytes(request.readable[0]).flags for request in link.requests]
    fail, read = RequestFlag.FAIL_NEXT, RequestFlag.READ
    assert flags == [fail, read, fail, fail | read, 0]


def test_without_data_there_is_no_buffer_for_it() -> None:
    link = i2c_link(chip())
    with I2cDriver(link) as bus:
        bus.write(0x50, b"")
        assert bus.read(0x50, 0) == b""
    assert [(len(request.readable), request.writable) for request in link.requests] == [(1, [1]), (1, [1])]


def test_i2c_needs_requests_without_data() -> None:
    with pytest.raises(NegotiationError, match="I2cDriver needs ZERO_LENGTH_REQUEST"):
        I2cDriver(FakeLink(chip()))


@pytest.mark.parametrize("address", [-1, 0x80, 0x3FF])
def test_an_address_has_7_bits(address: int) -> None:
    with pytest.raises(ValueError, match="0 to 0x7f"):
        I2cDriver(i2c_link(chip())).read(address, 1)


def test_an_i2c_error_names_the_message() -> None:
    with pytest.raises(RequestFailedError, match=r"read of 2 bytes from I2C address 0x50: .* ERR"):
        I2cDriver(i2c_link(chip(1))).read(0x50, 2)
    with pytest.raises(ResponseError, match=r"does not exist \(0xa5\)") as caught:
        I2cDriver(i2c_link(chip(0xA5))).read(0x50, 2)
    assert caught.value.status == 0xA5


def test_spi_is_full_duplex_and_can_be_either_half() -> None:
    link = spi_link(chip())
    with SpiDriver(link) as bus:
        assert bus.config.max_freq_hz == 10_000_000
        assert bus.transfer(b"ping", speed=1000, chip=1, mode=Mode.CPOL) == b"\1\2\3\4"
        bus.write(b"out", speed=1)
        assert bus.read(2, speed=1) == b"\1\2"
    both, out, back = link.requests
    header = TransferHeader.from_bytes(both.readable[0])
    assert (header.chip_select_id, header.mode, header.freq, header.bits_per_word) == (1, Mode.CPOL, 1000, 8)
    assert (both.readable[1:], both.writable) == ([b"ping"], [4, 1])
    assert (out.readable[1:], out.writable) == ([b"out"], [1])
    assert (back.readable[1:], back.writable) == ([], [2, 1])


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (1, RequestUnsupportedError, "cannot do that .PARAM_ERR.: TransferHeader"),
        (2, RequestFailedError, "SPI transfer of 3 bytes with chip 0: the controller failed"),
        (0xA5, ResponseError, "no result, or one that does not exist"),
    ],
)
def test_each_spi_result_becomes_its_error(result: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SpiDriver(spi_link(chip(result))).transfer(b"abc", speed=1)


def test_an_spi_transfer_has_something_to_do() -> None:
    bus = SpiDriver(spi_link(chip()))
    with pytest.raises(ValueError, match="0 bytes to send and 0 to receive"):
        bus.transfer(b"", speed=1)
    with pytest.raises(ValueError, match="2 to send, 3 to receive"):
        bus.transfer_request(TransferHeader(), b"ab", 3)


def test_the_drivers_of_asyncio_do_the_same() -> None:
    async def use() -> tuple[bytes, list[bytes], bytes, bytes]:
        async with AsyncI2cDriver(FakeAsyncLink(i2c_link(chip()))) as bus:
            await bus.write(0x50, b"x")
            read = await bus.write_read(0x50, b"\0", 3)
            transferred = await bus.transfer([Read(1, 1), Read(2, 2)])
        async with AsyncSpiDriver(FakeAsyncLink(spi_link(chip()))) as spi:
            await spi.write(b"x", speed=1)
            return read, transferred, await spi.transfer(b"ab", speed=1), await spi.read(1, speed=1)

    assert asyncio.run(use()) == (b"\1\2\3", [b"\1", b"\1\2"], b"\1\2", b"\1")


def test_on_asyncio_one_failing_message_fails_the_transfer() -> None:
    async def use() -> None:
        async with AsyncI2cDriver(FakeAsyncLink(i2c_link(chip(1)))) as bus:
            await bus.write_read(0x50, b"\0", 3)

    with pytest.raises(RequestFailedError, match="write of 1 bytes to I2C address 0x50"):
        asyncio.run(use())
