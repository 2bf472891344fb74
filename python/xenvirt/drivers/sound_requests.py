"""The requests of a sound driver, without I/O (virtio 1.3, section 5.14.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from xenvirt.errors import RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio.features import Feature
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.rings import largest_ring
from xenvirt.virtio.sound import (
    Direction,
    Event,
    Format,
    Header,
    JackInfo,
    PcmHeader,
    PcmInfo,
    PcmSetParams,
    PcmStatus,
    PcmTransfer,
    QueryInfo,
    Queue,
    Rate,
    SoundConfig,
    Status,
)
from xenvirt.virtio.sound import Request as Code
from xenvirt.virtio.structure import Structure

from .driver import DriverCore, Plan
from .request import Answer, LinkInfo, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

S = TypeVar("S", bound=Structure)

EVENT_BUFFERS = 16


class SoundRequests(DriverCore):
    """What the blocking driver and that of asyncio have in common: the requests.

    Attributes:
        config: the configuration space: how many jacks, streams and channel maps there are.
    """

    device_id: ClassVar[DeviceId] = DeviceId.SOUND
    # With it vhost-device-sound 0.3.0 is busy for ever with the first buffer for events.
    avoided_features: ClassVar[int] = Feature.EVENT_IDX
    config_structure: ClassVar[type[Structure] | None] = SoundConfig

    config: SoundConfig
    _parameters: dict[int, PcmSetParams]

    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:  # noqa: ARG002 - four queues, whatever the link
        return (largest_ring(self.device_id),) * 4

    def _started(self, link: LinkInfo, space: bytes) -> None:
        super()._started(link, space)
        self.config = SoundConfig.from_bytes(space)
        self._parameters = {}

    @staticmethod
    def info_request(code: Code, start: int, count: int, kind: type[S]) -> Request[list[S]]:
        """Asks for the descriptions of jacks, streams or channel maps."""
        size = kind.size()
        what = f"{code.name} of {count} from {start} on"

        def parse(answer: Answer) -> list[S]:
            _check(Header.from_bytes(answer.buffers[0]).code, what)
            return [kind.from_bytes(answer.buffers[1][at * size :]) for at in range(count)]

        message = QueryInfo(code, start, count, size).to_bytes()
        return Request(Queue.CONTROL, (message,), (Header.size(), count * size), parse, what)

    @staticmethod
    def control_request(message: PcmHeader | PcmSetParams) -> Request[None]:
        """SET_PARAMS, PREPARE, RELEASE, START or STOP."""
        what = f"{Code(message.code).name} of stream {message.stream_id}"

        def parse(answer: Answer) -> None:
            _check(Header.from_bytes(answer.buffers[0]).code, what)

        return Request(Queue.CONTROL, (message.to_bytes(),), (Header.size(),), parse, what)

    @staticmethod
    def write_request(stream: int, samples: Buffer) -> Request[PcmStatus]:
        """Plays one period: the device gives the buffer back when it has."""
        data = bytes(samples)
        what = f"playing {len(data)} bytes on stream {stream}"

        def parse(answer: Answer) -> PcmStatus:
            status = PcmStatus.from_bytes(answer.buffers[0])
            _check(status.status, what)
            return status

        header = PcmTransfer(stream).to_bytes()
        return Request(Queue.TX, (header, data), (PcmStatus.size(),), parse, what)

    @staticmethod
    def read_request(stream: int, size: int) -> Request[bytes]:
        """Records one period of at most `size` bytes."""
        what = f"recording {size} bytes of stream {stream}"

        def parse(answer: Answer) -> bytes:
            _check(PcmStatus.from_bytes(answer.buffers[1]).status, what)
            # 5.14.6.8.2: the used length tells how much was recorded, the status is part of it.
            return answer.buffers[0][: max(min(answer.used - PcmStatus.size(), size), 0)]

        return Request(Queue.RX, (PcmTransfer(stream).to_bytes(),), (size, PcmStatus.size()), parse, what)

    @staticmethod
    def event_request() -> Request[Event]:
        """A buffer for one event."""

        def parse(answer: Answer) -> Event:
            if answer.used < Event.size():
                raise ResponseError(f"the sound device wrote {answer.used} bytes as an event of 8")
            return Event.from_bytes(answer.buffers[0])

        return Request(Queue.EVENT, (), (Event.size(),), parse, "event of the sound device")

    # ---- whole operations

    def _streams(self) -> Plan[list[PcmInfo]]:
        if not self.config.streams:
            return []
        (infos,) = yield [self.info_request(Code.PCM_INFO, 0, self.config.streams, PcmInfo)]
        return list(infos)

    def _jacks(self) -> Plan[list[JackInfo]]:
        if not self.config.jacks:
            return []
        (infos,) = yield [self.info_request(Code.JACK_INFO, 0, self.config.jacks, JackInfo)]
        return list(infos)

    def _set_params(
        self, stream: int, rate: Rate, sample: Format, channels: int, period: int, periods: int, features: int
    ) -> Plan[None]:
        if period <= 0 or periods <= 0:
            raise ValueError(f"{periods} periods of {period} bytes: both must be at least 1")
        parameters = PcmSetParams(
            Code.PCM_SET_PARAMS, stream, period * periods, period, features, channels, sample, rate
        )
        yield [self.control_request(parameters)]
        self._parameters[stream] = parameters

    def _simple(self, code: Code, stream: int) -> Plan[None]:
        yield [self.control_request(PcmHeader(code, stream))]

    def _write(self, stream: int, samples: Buffer) -> Plan[None]:
        period = self._known(stream).period_bytes
        view = memoryview(samples).cast("B")
        if view:
            # All at once: the ring is as full as can be all the time, so that no period comes too late.
            yield [self.write_request(stream, view[at : at + period]) for at in range(0, len(view), period)]

    def _read(self, stream: int, size: int) -> Plan[bytes]:
        period = self._known(stream).period_bytes
        data = bytearray()
        while len(data) < size:
            (part,) = yield [self.read_request(stream, min(period, size - len(data)))]
            if not part:
                raise ResponseError(f"the sound device recorded nothing on stream {stream}, and says OK")
            data += part
        return bytes(data)

    def _play(
        self, stream: int, samples: Buffer, rate: Rate, sample: Format, channels: int, period: int
    ) -> Plan[None]:
        yield from self._set_params(stream, rate, sample, channels, period, 4, 0)
        yield from self._simple(Code.PCM_PREPARE, stream)
        yield from self._simple(Code.PCM_START, stream)
        yield from self._write(stream, samples)
        yield from self._simple(Code.PCM_STOP, stream)
        yield from self._simple(Code.PCM_RELEASE, stream)

    def _known(self, stream: int) -> PcmSetParams:
        if stream not in self._parameters:
            raise ValueError(f"stream {stream} has no parameters yet: set_params comes first")
        return self._parameters[stream]


def formats_of(info: PcmInfo) -> set[Format]:
    """The sample formats that a stream can do."""
    return {one for one in Format if info.formats >> one & 1}


def rates_of(info: PcmInfo) -> set[Rate]:
    """The sample rates that a stream can do."""
    return {one for one in Rate if info.rates >> one & 1}


def is_playback(info: PcmInfo) -> bool:
    """True if samples go to the device, False if they come from it."""
    return info.direction == Direction.OUTPUT


def _check(code: int, what: str) -> None:
    if code == Status.OK:
        return
    if code == Status.NOT_SUPP:
        raise RequestUnsupportedError(f"{what}: the device cannot do that (NOT_SUPP)", code)
    try:
        name = Status(code).name
    except ValueError:
        raise ResponseError(
            f"{what}: the device wrote no status, or one that does not exist ({code:#x})", code
        ) from None
    raise RequestFailedError(f"{what}: the device answered {name}", code)
