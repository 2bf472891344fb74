"""The driver of the sound device (virtio 1.3, section 5.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from xenvirt.virtio.sound import Event, Format, JackInfo, PcmInfo, Rate
from xenvirt.virtio.sound import Request as Code

from .driver import AsyncDriver, Driver
from .receiver import AsyncReceiver, Receiver
from .request import Link
from .sound_requests import EVENT_BUFFERS, SoundRequests, formats_of, is_playback, rates_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AsyncSoundDriver", "SoundDriver", "formats_of", "is_playback", "rates_of"]


class SoundDriver(SoundRequests, Driver):
    """Plays and records.

    ::

        with connect("sound.sock") as link, SoundDriver(link) as sound:
            sound.set_params(0, rate=Rate.HZ_48000, format=Format.S16, channels=2, period=4096)
            sound.prepare(0)
            sound.start(0)
            sound.write(0, samples)
            sound.stop(0)
            sound.release(0)

    or, all in one, ``sound.play(0, samples, rate=...)``. The order is the device's to check (section
    5.14.6.6).

    Raises, in each operation:
        RequestUnsupportedError: the device cannot do that (NOT_SUPP).
        RequestFailedError: it answered BAD_MSG (no such stream, or not in this order) or IO_ERR.
        ResponseError: it wrote no status that exists.
        LinkTimeoutError: it did not answer in time.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._events = Receiver(link, self.event_request, EVENT_BUFFERS)

    def streams(self) -> list[PcmInfo]:
        """What each stream can do; :func:`formats_of` and :func:`rates_of` read the bit masks."""
        return self._perform(self._streams())

    def jacks(self) -> list[JackInfo]:
        """The jacks, and whether something is plugged in."""
        return self._perform(self._jacks())

    def set_params(
        self,
        stream: int,
        *,
        rate: Rate,
        format: Format,  # noqa: A002 - the specification's word
        channels: int,
        period: int,
        periods: int = 4,
        features: int = 0,
    ) -> None:
        """Says how a stream will be.

        Args:
            stream: its number.
            rate: samples a second.
            format: of a sample.
            channels: samples at one time.
            period: bytes that are given to the device at once.
            periods: how many of them the device's buffer has.
            features: :class:`~xenvirt.virtio.sound.PcmFeature`, of those that the stream has.
        """
        self._perform(self._set_params(stream, rate, format, channels, period, periods, features))

    def prepare(self, stream: int) -> None:
        """Gets a stream ready, after its parameters are set."""
        self._perform(self._simple(Code.PCM_PREPARE, stream))

    def start(self, stream: int) -> None:
        """Samples flow from now on."""
        self._perform(self._simple(Code.PCM_START, stream))

    def stop(self, stream: int) -> None:
        """Samples flow no more."""
        self._perform(self._simple(Code.PCM_STOP, stream))

    def release(self, stream: int) -> None:
        """Gives up what :meth:`prepare` got."""
        self._perform(self._simple(Code.PCM_RELEASE, stream))

    def write(self, stream: int, samples: Buffer) -> None:
        """Plays samples, a period at a time, and returns when the device has given all of them back.

        Raises:
            ValueError: :meth:`set_params` was not called for the stream.
        """
        self._perform(self._write(stream, samples))

    def read(self, stream: int, size: int) -> bytes:
        """Records exactly `size` bytes, a period at a time.

        Raises:
            ValueError: :meth:`set_params` was not called for the stream.
        """
        return self._perform(self._read(stream, size))

    def play(
        self,
        stream: int,
        samples: Buffer,
        *,
        rate: Rate,
        format: Format,  # noqa: A002 - the specification's word
        channels: int,
        period: int = 4096,
    ) -> None:
        """Sets the parameters, plays all samples, and releases the stream."""
        self._perform(self._play(stream, samples, rate, format, channels, period))

    def events(self) -> list[Event]:
        """What the device has told since the last time: jacks, elapsed periods, underruns."""
        return self._events.get_all()


class AsyncSoundDriver(SoundRequests, AsyncDriver):
    """Plays and records, for asyncio."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._events = await AsyncReceiver.start(self.link, self.event_request, EVENT_BUFFERS)
        return self

    async def streams(self) -> list[PcmInfo]:
        """As :meth:`SoundDriver.streams`."""
        return await self._perform(self._streams())

    async def jacks(self) -> list[JackInfo]:
        """As :meth:`SoundDriver.jacks`."""
        return await self._perform(self._jacks())

    async def set_params(
        self,
        stream: int,
        *,
        rate: Rate,
        format: Format,  # noqa: A002 - the specification's word
        channels: int,
        period: int,
        periods: int = 4,
        features: int = 0,
    ) -> None:
        """As :meth:`SoundDriver.set_params`."""
        await self._perform(self._set_params(stream, rate, format, channels, period, periods, features))

    async def prepare(self, stream: int) -> None:
        """As :meth:`SoundDriver.prepare`."""
        await self._perform(self._simple(Code.PCM_PREPARE, stream))

    async def start(self, stream: int) -> None:
        """As :meth:`SoundDriver.start`."""
        await self._perform(self._simple(Code.PCM_START, stream))

    async def stop(self, stream: int) -> None:
        """As :meth:`SoundDriver.stop`."""
        await self._perform(self._simple(Code.PCM_STOP, stream))

    async def release(self, stream: int) -> None:
        """As :meth:`SoundDriver.release`."""
        await self._perform(self._simple(Code.PCM_RELEASE, stream))

    async def write(self, stream: int, samples: Buffer) -> None:
        """As :meth:`SoundDriver.write`."""
        await self._perform(self._write(stream, samples))

    async def read(self, stream: int, size: int) -> bytes:
        """As :meth:`SoundDriver.read`."""
        return await self._perform(self._read(stream, size))

    async def play(
        self,
        stream: int,
        samples: Buffer,
        *,
        rate: Rate,
        format: Format,  # noqa: A002 - the specification's word
        channels: int,
        period: int = 4096,
    ) -> None:
        """As :meth:`SoundDriver.play`."""
        await self._perform(self._play(stream, samples, rate, format, channels, period))

    async def events(self) -> list[Event]:
        """As :meth:`SoundDriver.events`."""
        return await self._events.get_all()
