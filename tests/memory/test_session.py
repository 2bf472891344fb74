"""The memory of a session: a device uses it, its transport owns it."""

import pytest

from xenvirt import Session, connect
from xenvirt._native import Endpoint
from xenvirt.devices import EntropyDevice
from xenvirt.drivers import EntropyDriver
from xenvirt.errors import GuestAddressError


def test_the_memory_of_a_session_is_its_transports_to_replace_and_to_close() -> None:
    memory = Endpoint(0, [16], b"").memory
    assert memory.regions == ()
    with pytest.raises(ValueError, match="its transport's to replace and to close"):
        memory.replace([])
    with pytest.raises(ValueError, match="its transport's to replace and to close"):
        memory.close()
    assert memory.read(0, 0) == b""
    assert not memory.closed


class Remembering(EntropyDevice):
    """Keeps its session beyond the session's end."""

    def activate(self, session: Session) -> None:
        self.session = session


def test_a_device_reaches_its_drivers_memory_until_the_driver_is_gone() -> None:
    device = Remembering()
    with connect(device) as link, EntropyDriver(link) as rng:
        drawn = rng.read(64)
        memory = device.session.memory
        start = [
            (region, memory.read(region.guest_address, region.size).find(drawn)) for region in memory.regions
        ]
        region, offset = next(found for found in start if found[1] >= 0)
        view = memory.view(region.guest_address + offset, 64)
        assert bytes(view) == drawn
    assert device.session.memory.regions == ()
    with pytest.raises(GuestAddressError):
        memory.read(region.guest_address, 1)
    assert len(bytes(view)) == 64, "a view outlives the table"
