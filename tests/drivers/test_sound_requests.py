"""The sound driver: control messages in their order, and samples in periods."""

from __future__ import annotations

import asyncio

import pytest

from xenvirt.drivers import AsyncSoundDriver, SoundDriver
from xenvirt.drivers.sound import formats_of, is_playback, rates_of
from xenvirt.errors import RequestFailedError, RequestUnsupportedError, ResponseError
from xenvirt.virtio import Feature
from xenvirt.virtio.sound import (
    Event,
    EventType,
    Format,
    Header,
    JackInfo,
    PcmInfo,
    PcmSetParams,
    PcmStatus,
    QueryInfo,
    Queue,
    Rate,
    Request,
    SoundConfig,
    Status,
)

from .fake_link import FakeAsyncLink, FakeLink

STREAMS = [
    PcmInfo(formats=1 << Format.S16 | 1 << Format.U8, rates=1 << Rate.HZ_48000, channels_max=2),
    PcmInfo(direction=1, formats=1 << Format.S16, rates=1 << Rate.HZ_8000, channels_max=1),
]


class Card:
    """A sound device."""

    def __init__(self, streams: int = 2) -> None:
        config = SoundConfig(jacks=1, streams=streams)
        self.link = FakeLink(self, Feature.VERSION_1, space=bytearray(config.to_bytes()))
        self.codes: list[int] = []
        self.parameters: list[PcmSetParams] = []
        self.played: list[bytes] = []
        self.recorded = bytes(range(256))
        self.events: list[Event] = []
        self.status = int(Status.OK)

    def __call__(self, queue: int, readable: bytes, writable: list[bytearray]) -> int | None:
        if queue == Queue.EVENT:
            if not self.events:
                return None
            writable[0][:] = self.events.pop(0).to_bytes()
            return 8
        if queue == Queue.TX:
            assert readable[:4] == bytes(4)
            self.played.append(readable[4:])
            writable[0][:] = PcmStatus(self.status, 5).to_bytes()
            return 8
        if queue == Queue.RX:
            part, self.recorded = self.recorded[: len(writable[0])], self.recorded[len(writable[0]) :]
            writable[0][: len(part)] = part
            writable[1][:] = PcmStatus(self.status).to_bytes()
            return len(part) + 8
        code = Header.from_bytes(readable).code
        self.codes.append(code)
        writable[0][:] = Header(self.status).to_bytes()
        if code == Request.PCM_SET_PARAMS:
            self.parameters.append(PcmSetParams.from_bytes(readable))
        elif code in (Request.PCM_INFO, Request.JACK_INFO):
            query = QueryInfo.from_bytes(readable)
            kind = STREAMS if code == Request.PCM_INFO else [JackInfo(connected=1)]
            infos = kind[query.start_id :][: query.count]
            writable[1][:] = b"".join(info.to_bytes() for info in infos)
        return sum(map(len, writable))


def test_the_streams_say_what_they_can() -> None:
    card = Card()
    card.link.offered_features |= Feature.EVENT_IDX
    with SoundDriver(card.link) as sound:
        assert not sound.features & Feature.EVENT_IDX, "vhost-device-sound cannot do it"
        assert card.link.started == (64,) * 4, "vhost-device-sound takes no larger ring"
        out, back = sound.streams()
        assert (formats_of(out), rates_of(out)) == ({Format.S16, Format.U8}, {Rate.HZ_48000})
        assert (is_playback(out), is_playback(back)) == (True, False)
        assert [jack.connected for jack in sound.jacks()] == [1]


def test_a_device_without_streams_is_not_asked() -> None:
    card = Card(streams=0)
    assert SoundDriver(card.link).streams() == []
    assert card.codes == []


def test_playing_keeps_the_order_and_cuts_periods() -> None:
    card = Card()
    samples = bytes(range(256)) * 5
    SoundDriver(card.link).play(0, samples, rate=Rate.HZ_48000, format=Format.S16, channels=2, period=500)
    assert card.codes == [
        Request.PCM_SET_PARAMS,
        Request.PCM_PREPARE,
        Request.PCM_START,
        Request.PCM_STOP,
        Request.PCM_RELEASE,
    ]
    assert [len(period) for period in card.played] == [500, 500, 280]
    assert b"".join(card.played) == samples
    (parameters,) = card.parameters
    assert (parameters.buffer_bytes, parameters.period_bytes, parameters.channels) == (2000, 500, 2)
    assert (parameters.format, parameters.rate) == (Format.S16, Rate.HZ_48000)


def test_recording_gives_exactly_what_was_asked() -> None:
    card = Card()
    sound = SoundDriver(card.link)
    sound.set_params(1, rate=Rate.HZ_8000, format=Format.S16, channels=1, period=100)
    assert sound.read(1, 250) == bytes(range(250))
    with pytest.raises(ResponseError, match="recorded nothing on stream 1"):
        sound.read(1, 100)


def test_samples_need_parameters_first() -> None:
    sound = SoundDriver(Card().link)
    with pytest.raises(ValueError, match="stream 0 has no parameters yet"):
        sound.write(0, b"samples")
    with pytest.raises(ValueError, match="4 periods of 0 bytes"):
        sound.set_params(0, rate=Rate.HZ_8000, format=Format.S16, channels=1, period=0)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (Status.BAD_MSG, RequestFailedError, "PCM_START of stream 9: the device answered BAD_MSG"),
        (Status.NOT_SUPP, RequestUnsupportedError, "the device cannot do that"),
        (Status.IO_ERR, RequestFailedError, "IO_ERR"),
        (0xA5A5A5A5, ResponseError, "no status, or one that does not exist .0xa5a5a5a5"),
    ],
)
def test_each_status_becomes_its_error(status: int, error: type[Exception], message: str) -> None:
    card = Card()
    card.status = status
    with pytest.raises(error, match=message):
        SoundDriver(card.link).start(9)


def test_a_period_that_fails_fails_the_writing() -> None:
    card = Card()
    sound = SoundDriver(card.link)
    sound.set_params(0, rate=Rate.HZ_8000, format=Format.S16, channels=1, period=100)
    card.status = Status.IO_ERR
    with pytest.raises(RequestFailedError, match="playing 100 bytes on stream 0"):
        sound.write(0, bytes(300))


def test_events_are_kept_until_somebody_asks() -> None:
    card = Card()
    sound = SoundDriver(card.link)
    assert sound.events() == []
    card.events = [Event(EventType.JACK_CONNECTED, 1), Event(EventType.PCM_XRUN, 0)]
    assert [event.code for event in sound.events()] == [EventType.JACK_CONNECTED, EventType.PCM_XRUN]


def test_the_driver_of_asyncio_does_the_same() -> None:
    async def use() -> None:
        card = Card()
        async with AsyncSoundDriver(FakeAsyncLink(card.link)) as sound:
            assert len(await sound.streams()) == 2
            assert len(await sound.jacks()) == 1
            await sound.play(0, bytes(1000), rate=Rate.HZ_8000, format=Format.S16, channels=1, period=300)
            assert [len(period) for period in card.played] == [300, 300, 300, 100]
            await sound.set_params(1, rate=Rate.HZ_8000, format=Format.S16, channels=1, period=100)
            await sound.prepare(1)
            await sound.start(1)
            assert await sound.read(1, 150) == bytes(range(150))
            await sound.stop(1)
            await sound.release(1)
            card.events = [Event(EventType.PCM_XRUN, 1)]
            await sound.write(1, b"")
            await sound.streams()
            await asyncio.sleep(0)
            assert [event.data for event in await sound.events()] == [1]

    asyncio.run(use())
