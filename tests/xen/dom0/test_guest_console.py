"""A Python console serves a Linux domU: a terminal, and a channel with a name, both ways."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest

from xenvirt import Server
from xenvirt.devices import ConsoleDevice, Port

from .guest_place import at, place
from .linux_guest import TIMEOUT, LinuxGuest

pytestmark = pytest.mark.dom0("aarch64")

SIZE = 1 << 17
# The terminal is hvc1: hvc0 is Xen's own console. Its echo is off before the host may say anything.
SCRIPT = f"""
    echo name $(cat /sys/class/virtio-ports/vport0p1/name)
    exec 3<> /dev/vport0p1 4<> /dev/hvc1
    stty raw -echo <&4
    echo size $(stty size <&4)
    echo ready >&4
    read line <&4
    echo "heard: $line" >&4
    head -c {SIZE} <&3 > /tmp/data
    echo got $(sha256sum < /tmp/data | cut -d ' ' -f 1)
    cat /tmp/data >&3
    echo kernel $(dmesg | grep -c 'still in use')
    read line <&4
    echo "to the end"
"""


def received(end: socket.socket, size: int) -> bytes:
    """So many bytes from a port."""
    data = bytearray()
    while len(data) < size and (more := end.recv(size - len(data))):
        data += more
    return bytes(data)


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_a_terminal_and_a_channel_carry_both_ways(grants: bool) -> None:
    device, sent = place(grants=grants), os.urandom(SIZE)
    terminal, terminal_end = socket.socketpair()
    channel, channel_end = socket.socketpair()
    with terminal, terminal_end, channel, channel_end, LinuxGuest(SCRIPT, devices=[device]) as guest:
        for end in (terminal, channel):
            end.settimeout(TIMEOUT)
        console = ConsoleDevice(
            Port(terminal_end.fileno(), terminal_end.fileno()),
            Port(channel_end.fileno(), channel_end.fileno(), name="channel", console=False),
            size=(97, 31),
        )
        with Server() as server:
            served = server.add(console, at(guest, device))
            guest.unpause()
            assert guest.wait_for("name (.*)\n")[1] == "channel"
            assert guest.wait_for("size (.*)\n")[1] == "31 97"
            assert received(terminal, 6) == b"ready\n"
            terminal.sendall("grüß dich\n".encode())
            answer = "heard: grüß dich\n".encode()
            assert received(terminal, len(answer)) == answer
            channel.sendall(sent)
            assert guest.wait_for("got ([0-9a-f]{64})")[1] == hashlib.sha256(sent).hexdigest()
            assert received(channel, SIZE) == sent
            assert guest.wait_for("kernel ([0-9]+)")[1] == "0"
            terminal.sendall(b"\n")
            guest.wait_for("to the end")
            assert served.counters.errors == 0
