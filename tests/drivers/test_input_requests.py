"""The input driver: the window of the configuration space, and events."""

from __future__ import annotations

import asyncio

import pytest

from xenvirt.drivers import AsyncInputDriver, InputDriver
from xenvirt.errors import LinkTimeoutError, ResponseError
from xenvirt.virtio import Feature
from xenvirt.virtio.input import AbsInfo, ConfigSelect, DeviceIds, InputConfig, InputEvent

from .fake_link import FakeAsyncLink, FakeLink

EV_SYN, EV_KEY, EV_ABS, EV_LED = 0, 1, 3, 0x11
REPORT = InputEvent(EV_SYN, 0, 0)


class Tablet(FakeLink):
    """An input device, whose configuration space shows what was selected."""

    shown = {  # noqa: RUF012
        (ConfigSelect.ID_NAME, 0): b"tablet of the tests\0",
        (ConfigSelect.ID_SERIAL, 0): b"s-1",
        (ConfigSelect.ID_DEVIDS, 0): DeviceIds(3, 0x1234, 0x5678, 1).to_bytes().ljust(128, b"\0"),
        (ConfigSelect.PROP_BITS, 0): b"\x02",
        (ConfigSelect.EV_BITS, EV_KEY): b"\0\x01\x80",
        (ConfigSelect.ABS_INFO, 0): AbsInfo(-5, 1000, 1, 2, 3).to_bytes(),
    }

    def __init__(self) -> None:
        super().__init__(self.device_answer, Feature.VERSION_1, space=bytearray(InputConfig().to_bytes()))
        self.coming: list[bytes] = []
        self.lights: list[InputEvent] = []

    def write_config(self, offset: int, data: bytes) -> None:
        assert (offset, len(data)) == (0, 2)
        select, subsel = data
        content = self.shown.get((ConfigSelect(select), subsel), b"")
        self.space[:] = InputConfig(select, subsel, len(content), data=content).to_bytes()

    def device_answer(self, queue: int, readable: bytes, writable: list[bytearray]) -> int | None:
        if queue == 1:
            self.lights.append(InputEvent.from_bytes(readable))
            return 0
        if not self.coming:
            return None
        data = self.coming.pop(0)
        writable[0][: len(data)] = data
        return len(data)

    def type(self, *events: InputEvent) -> None:
        self.coming += [event.to_bytes() for event in events]


def test_the_device_is_asked_what_it_is() -> None:
    with InputDriver(Tablet()) as tablet:
        assert tablet.name() == "tablet of the tests"
        assert tablet.serial() == "s-1"
        assert tablet.ids() == DeviceIds(3, 0x1234, 0x5678, 1)
        assert tablet.properties() == {1}
        assert tablet.event_codes(EV_KEY) == {8, 23}
        assert tablet.event_codes(EV_ABS) == set()
        assert tablet.abs_info(0) == AbsInfo(-5, 1000, 1, 2, 3)
        assert tablet.abs_info(1) is None


def test_events_come_one_by_one_or_as_reports() -> None:
    device = Tablet()
    tablet = InputDriver(device)
    key, release, move = InputEvent(EV_KEY, 30, 1), InputEvent(EV_KEY, 30, 0), InputEvent(EV_ABS, 0, 99)
    device.type(key, REPORT, release, move, REPORT, key)
    assert tablet.receive() == key
    assert tablet.receive() == REPORT
    assert tablet.receive_report() == [release, move]
    with pytest.raises(LinkTimeoutError, match=r"within 0.01 s: event of the input device"):
        tablet.receive_report(0.01)
    device.type(REPORT)
    assert tablet.receive_report() == [key], "half a report is kept for the next time"


def test_the_device_has_its_buffers_back_after_each_event() -> None:
    device = Tablet()
    tablet = InputDriver(device)
    for number in range(200):
        device.type(InputEvent(EV_KEY, number, 1))
        assert tablet.receive().code == number
    assert len(device.waiting) == 64


def test_a_light_is_switched() -> None:
    device = Tablet()
    InputDriver(device).send(InputEvent(EV_LED, 1, 1))
    assert device.lights == [InputEvent(EV_LED, 1, 1)]


def test_answers_that_make_no_sense_are_named() -> None:
    device = Tablet()
    tablet = InputDriver(device)
    device.coming.append(b"abc")
    with pytest.raises(ResponseError, match="wrote 3 bytes as an event of 8"):
        tablet.receive()
    device.write_config = lambda *_: None  # type: ignore[method-assign]
    device.space[2] = 200
    with pytest.raises(ResponseError, match="shows 200 bytes of at most 128 for select 0x1, subsel 0x0"):
        tablet.name()


def test_the_driver_of_asyncio_does_the_same() -> None:
    async def use() -> None:
        device = Tablet()
        link = FakeAsyncLink(device)
        async with AsyncInputDriver(link) as tablet:
            assert await tablet.name() == "tablet of the tests"
            assert await tablet.serial() == "s-1"
            assert (await tablet.ids()).vendor == 0x1234
            assert await tablet.properties() == {1}
            assert await tablet.event_codes(EV_KEY) == {8, 23}
            assert await tablet.abs_info(0) == AbsInfo(-5, 1000, 1, 2, 3)
            assert await tablet.abs_info(7) is None
            key = InputEvent(EV_KEY, 30, 1)
            device.type(key, REPORT, key, key, REPORT)
            link.poke()
            assert await tablet.receive() == key
            assert await tablet.receive() == REPORT
            assert await tablet.receive_report() == [key, key]
            device.type(key)
            link.poke()
            async for event in tablet:
                assert event == key
                break
            await tablet.send(InputEvent(EV_LED, 1, 1))
            assert device.lights

    asyncio.run(use())
