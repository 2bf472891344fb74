"""The commands of a SCSI driver, without I/O (virtio 1.3, section 5.6.6; the commands: SPC-6, SBC-5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xenvirt.errors import CheckConditionError, RequestFailedError, ResponseError
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.rings import largest_ring
from xenvirt.virtio.scsi import (
    CDB_DEFAULT_SIZE,
    SENSE_DEFAULT_SIZE,
    CommandRequest,
    CommandResponse,
    Response,
    ScsiConfig,
)
from xenvirt.virtio.sense import Capacity, Inquiry, ScsiStatus, Sense, SenseKey
from xenvirt.virtio.structure import Structure

from .driver import DriverCore, Plan
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

CONTROL_QUEUE, EVENT_QUEUE, REQUEST_QUEUE = 0, 1, 2

MAX_TRANSFER = 128 * 1024
"""The most bytes of data that :meth:`read` and :meth:`write` put in one command; longer ones take several."""

ATTEMPTS = 4
"""How often a command is tried while the unit answers UNIT ATTENTION, which is no failure of the command."""

INQUIRY_SIZE = 96


def lun_bytes(target: int, lun: int) -> bytes:
    """The address of a unit as virtio writes it (section 5.6.6.1): single level, flat space.

    Raises:
        ValueError: `target` is above 255 or `lun` above 16383.
    """
    if not (0 <= target <= 0xFF and 0 <= lun <= 0x3FFF):
        raise ValueError(f"target {target}, unit {lun}: virtio has targets 0 to 255 and units 0 to 16383")
    return bytes([1, target, 0x40 | lun >> 8, lun & 0xFF, 0, 0, 0, 0])


@dataclass(frozen=True)
class CommandResult:
    """What came back for one command, whether it succeeded or not."""

    what: str
    """What was asked, for messages."""
    response: int
    """A :class:`~xenvirt.virtio.scsi.Response`: how the host fared."""
    status: int
    """A :class:`~xenvirt.virtio.sense.ScsiStatus`: how the unit fared, if the host came as far."""
    sense: bytes
    """The sense data."""
    residual: int
    """Bytes of the data buffers that were not used."""
    data: bytes
    """What was read."""

    @property
    def wants_another_try(self) -> bool:
        """True after UNIT ATTENTION: the unit told something new, and did not do the command."""
        if self.response != Response.OK or self.status != ScsiStatus.CHECK_CONDITION:
            return False
        sense = Sense.from_bytes(self.sense)
        return sense is not None and sense.key == SenseKey.UNIT_ATTENTION and not sense.deferred

    def check(self) -> bytes:
        """The data, if all went well.

        Raises:
            CheckConditionError: the unit refused or failed, and says why.
            RequestFailedError: the host did not get as far, or the unit is busy.
            ResponseError: there is no such response or status.
        """
        try:
            response, status = Response(self.response), ScsiStatus(self.status)
        except ValueError:
            raise ResponseError(
                f"{self.what}: the device answered response {self.response:#x} and status {self.status:#x}: "
                "there is no such pair",
                self.response,
            ) from None
        if response != Response.OK:
            raise RequestFailedError(f"{self.what}: the host answered {response.name}", response)
        if status == ScsiStatus.CHECK_CONDITION:
            sense = Sense.from_bytes(self.sense)
            if sense is None:
                raise CheckConditionError(f"{self.what}: CHECK CONDITION without sense data", status)
            raise CheckConditionError(f"{self.what}: {sense}", status, sense.key, sense.asc, sense.ascq)
        if status not in (ScsiStatus.GOOD, ScsiStatus.CONDITION_MET):
            raise RequestFailedError(f"{self.what}: the unit answered {status.name}", status)
        return self.data


class ScsiRequests(DriverCore):
    """What the blocking driver and that of asyncio have in common: the commands, and the host's limits.

    Attributes:
        config: the configuration space: how many targets there can be, and the largest transfer.
    """

    device_id: ClassVar[DeviceId] = DeviceId.SCSI
    config_structure: ClassVar[type[Structure] | None] = ScsiConfig

    config: ScsiConfig
    _tag = 0

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - one request queue will do
        return (largest_ring(self.device_id),) * 3

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.config = ScsiConfig.from_bytes(space)

    def command_request(
        self,
        cdb: bytes,
        *,
        data: Buffer = b"",
        size: int = 0,
        target: int = 0,
        lun: int = 0,
        what: str | None = None,
    ) -> Request[CommandResult]:
        """Any command. Its result is given as it is; :meth:`CommandResult.check` raises what is wrong.

        Args:
            cdb: the command block, at most as long as the host's (32 bytes, usually).
            data: what the unit shall read.
            size: how many bytes it may write.
            target: the target's number.
            lun: the unit's number in the target.
            what: what it is, for messages.

        Raises:
            ValueError: the command block is empty or too long, or there can be no such unit.
        """
        room = self.config.cdb_size or CDB_DEFAULT_SIZE
        if not 1 <= len(cdb) <= room:
            raise ValueError(f"a command block has 1 to {room} bytes here, not {len(cdb)}")
        self._tag += 1
        name = f"{what or f'SCSI command {cdb[0]:#04x}'} (target {target}, unit {lun})"
        front = CommandRequest(lun_bytes(target, lun), self._tag).to_bytes()
        header = front[: CommandRequest.offset("cdb")] + cdb.ljust(room, b"\0")
        sense_room = self.config.sense_size or SENSE_DEFAULT_SIZE
        response_size = CommandResponse.offset("sense") + sense_room

        def parse(answer: Answer) -> CommandResult:
            response = CommandResponse.from_bytes(answer.buffers[0])
            sense = answer.buffers[0][CommandResponse.offset("sense") :]
            if response.resid > size + len(payload) or response.sense_len > sense_room:
                raise ResponseError(
                    f"{name}: the device says that {response.resid} of {size + len(payload)} bytes were not "
                    f"used, and that there are {response.sense_len} of {sense_room} bytes of sense data",
                    response.response,
                )
            got = answer.buffers[1][: max(size - response.resid, 0)] if size else b""
            return CommandResult(
                name, response.response, response.status, sense[: response.sense_len], response.resid, got
            )

        payload = bytes(data)
        readable = [header, payload] if payload else [header]
        writable = [response_size, size] if size else [response_size]
        return Request(REQUEST_QUEUE, readable, writable, parse, name)

    def read_request(
        self, block: int, count: int, block_size: int, *, target: int = 0, lun: int = 0
    ) -> Request[CommandResult]:
        """READ(10), or READ(16) where the numbers need it."""
        what = f"read of {count} blocks at {block}"
        cdb = transfer_block(0x28, 0x88, block, count)
        return self.command_request(cdb, size=count * block_size, target=target, lun=lun, what=what)

    def write_request(
        self, block: int, data: Buffer, block_size: int, *, target: int = 0, lun: int = 0
    ) -> Request[CommandResult]:
        """WRITE(10), or WRITE(16) where the numbers need it; `data` is whole blocks."""
        count = memoryview(data).nbytes // block_size
        what = f"write of {count} blocks at {block}"
        return self.command_request(
            transfer_block(0x2A, 0x8A, block, count), data=data, target=target, lun=lun, what=what
        )

    # ---- whole operations

    def _command(self, cdb: bytes, data: Buffer, size: int, target: int, lun: int, what: str) -> Plan[bytes]:
        request = self.command_request(cdb, data=data, size=size, target=target, lun=lun, what=what)
        result: CommandResult
        for _ in range(ATTEMPTS):
            (result,) = yield [request]
            if not result.wants_another_try:
                break
        return result.check()

    def _test_unit_ready(self, target: int, lun: int) -> Plan[None]:
        yield from self._command(bytes(6), b"", 0, target, lun, "TEST UNIT READY")

    def _inquiry(self, target: int, lun: int) -> Plan[Inquiry]:
        cdb = bytes([0x12, 0, 0, 0, INQUIRY_SIZE, 0])
        data = yield from self._command(cdb, b"", INQUIRY_SIZE, target, lun, "INQUIRY")
        if len(data) < 5:
            raise ResponseError(f"INQUIRY of target {target}, unit {lun}: the unit gave {len(data)} bytes")
        return Inquiry.from_bytes(data)

    def _read_capacity(self, target: int, lun: int) -> Plan[Capacity]:
        data = yield from self._command(
            bytes([0x25]).ljust(10, b"\0"), b"", 8, target, lun, "READ CAPACITY(10)"
        )
        last, size = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        if last == 0xFFFF_FFFF:
            cdb = bytes([0x9E, 0x10]).ljust(13, b"\0") + bytes([32, 0, 0])
            data = yield from self._command(cdb, b"", 32, target, lun, "READ CAPACITY(16)")
            last, size = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:12], "big")
        if size == 0:
            raise ResponseError(
                f"READ CAPACITY of target {target}, unit {lun}: blocks of 0 bytes in {data.hex()}"
            )
        return Capacity(last + 1, size)

    def _read(self, block: int, count: int, target: int, lun: int) -> Plan[bytes]:
        if block < 0 or count < 0:
            raise ValueError(f"cannot read {count} blocks at {block}")
        size = (yield from self._read_capacity(target, lun)).block_size
        step = self._step(size)
        requests = [
            self.read_request(at, min(step, block + count - at), size, target=target, lun=lun)
            for at in range(block, block + count, step)
        ]
        results = (yield from self._tried(requests)) if requests else []
        parts = [result.check() for result in results]
        if sum(map(len, parts)) != count * size:
            raise ResponseError(
                f"read of {count} blocks at {block}: the unit says GOOD, and gave {sum(map(len, parts))} "
                f"bytes of {count * size}",
                ScsiStatus.GOOD,
            )
        return b"".join(parts)

    def _write(self, block: int, data: Buffer, target: int, lun: int) -> Plan[None]:
        view = memoryview(data).cast("B")
        size = (yield from self._read_capacity(target, lun)).block_size
        if block < 0 or len(view) % size:
            raise ValueError(f"cannot write {len(view)} bytes at block {block}: blocks have {size} bytes")
        step = self._step(size) * size
        requests = [
            self.write_request(block + at // size, view[at : at + step], size, target=target, lun=lun)
            for at in range(0, len(view), step)
        ]
        if requests:
            for result in (yield from self._tried(requests)):
                result.check()

    def _synchronize_cache(self, target: int, lun: int) -> Plan[None]:
        cdb = bytes([0x35]).ljust(10, b"\0")
        yield from self._command(cdb, b"", 0, target, lun, "SYNCHRONIZE CACHE(10)")

    def _tried(self, requests: Sequence[Request[CommandResult]]) -> Plan[list[CommandResult]]:
        """Runs commands side by side; those that meet UNIT ATTENTION again."""
        results: list[CommandResult] = list((yield requests))
        for _ in range(ATTEMPTS - 1):
            again = [index for index, result in enumerate(results) if result.wants_another_try]
            if not again:
                break
            for index, result in zip(again, (yield [requests[index] for index in again]), strict=True):
                results[index] = result
        return results

    def _step(self, block_size: int) -> int:
        """How many blocks go in one command. The host's limit counts sectors of 512 bytes."""
        limit = min(MAX_TRANSFER, (self.config.max_sectors or 0xFFFF) * 512)
        return max(limit // block_size, 1)


def transfer_block(short: int, long: int, block: int, count: int) -> bytes:
    """The command block of a transfer: the form of 10 bytes if the numbers fit it, else that of 16.

    Raises:
        ValueError: not even the long one has room.
    """
    if block <= 0xFFFF_FFFF and count <= 0xFFFF:
        return bytes([short, 0]) + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    if block > 0xFFFF_FFFF_FFFF_FFFF or count > 0xFFFF_FFFF:
        raise ValueError(f"{count} blocks at {block}: SCSI has no command for it")
    return bytes([long, 0]) + block.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)
