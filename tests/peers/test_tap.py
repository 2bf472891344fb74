"""The tap without a guest: what it offers, and what it says of interfaces that will not do."""

import errno

import pytest

from xenvirt import connect
from xenvirt.devices import NetDevice, Tap
from xenvirt.drivers import NetDriver
from xenvirt.virtio.net import NetFeature

pytestmark = pytest.mark.usefixtures("privileged")


def test_a_tap_offers_offloads_and_the_mtu_of_its_interface() -> None:
    tap = Tap("xenvirt%d", pairs=2)
    try:
        assert tap.name.startswith("xenvirt")
        with connect(NetDevice(tap)) as link:
            wanted = NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.CSUM | NetFeature.MQ
            assert link.offered_features & wanted == wanted
            net = NetDriver(link)
            assert (net.config.mtu, net.max_pairs) == (1500, 2)
            net.set_pairs(2)
            net.set_pairs(1)
    finally:
        tap.close()


def test_an_interface_that_is_down_takes_no_frame_and_no_harm() -> None:
    tap = Tap("xenvirt%d")
    try:
        for _ in range(2):
            with connect(NetDevice(tap)) as link, NetDriver(link) as net:
                net.send_all([bytes(60)] * 10)
        assert tap.refused == 20
    finally:
        tap.close()


def test_an_interface_in_use_is_refused_by_name() -> None:
    tap = Tap("xenvirt%d")
    try:
        with pytest.raises(OSError, match="cannot open the tap") as caught:
            Tap(tap.name)
        assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, tap.name)
    finally:
        tap.close()
    with pytest.raises(OSError, match="cannot open the tap"):
        Tap("lo")
    with pytest.raises(ValueError, match="cannot be an interface"):
        Tap("")
