"""A Python network card serves a Linux domU: its kernel and dom0's speak TCP through a tap."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest

from xenvirt import Server
from xenvirt.devices import NetDevice

from .guest_place import at, place
from .host_tap import GUEST, HOST, UP, tap_of_dom0
from .linux_guest import TIMEOUT, LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

MAC = "52:54:00:12:34:56"
SIZE = 1 << 20
SCRIPT = f"""
    {UP}
    echo mac $(cat /sys/class/net/eth0/address)
    ping -c 3 -i 0.1 -s 1400 {HOST} | grep received
    nc {HOST} $PORT < /dev/null > /tmp/data
    echo got $(sha256sum < /tmp/data | cut -d ' ' -f 1)
    nc {HOST} $PORT < /tmp/data
    cd /sys/bus/virtio/drivers/virtio_net
    echo virtio0 > unbind
    echo virtio0 > bind
    {UP}
    ping -c 1 {HOST} | grep received
    echo kernel $(dmesg | grep -c 'still in use')
    echo "to the end"
"""


def connected(listener: socket.socket) -> socket.socket:
    """The next connection of the guest."""
    connection, (address, _) = listener.accept()
    assert address == GUEST
    connection.settimeout(TIMEOUT)
    return connection


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_tcp_and_pings_pass_both_ways(grants: bool) -> None:
    device, sent = place(grants=grants), os.urandom(SIZE)
    with tap_of_dom0() as tap, socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        listener.settimeout(TIMEOUT)
        script = f"PORT={listener.getsockname()[1]}\n{SCRIPT}"
        with LinuxGuest(script, devices=[device]) as guest, Server() as server:
            served = server.add(NetDevice(tap, mac=MAC), at(guest, device))
            guest.unpause()
            assert guest.wait_for("mac (.*)\n")[1] == MAC
            with connected(listener) as connection:
                connection.sendall(sent)
            assert guest.wait_for("got ([0-9a-f]{64})")[1] == hashlib.sha256(sent).hexdigest()
            with connected(listener) as connection, connection.makefile("rb") as file:
                assert file.read() == sent
            guest.wait_for("to the end")
            assert "3 packets received" in guest.console
            assert "1 packets received" in guest.console
            assert guest.wait_for("kernel ([0-9]+)")[1] == "0"
            assert served.counters.errors == 0
            assert tap.refused == 0
