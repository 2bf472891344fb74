"""Our console in real guests: what Linux's driver prints and reads, and how large it thinks the terminal is.

QEMU's own vhost-user devices have no console; the one for tests takes the type of device as an option.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xenvirt import Server, VhostUserSocket
from xenvirt.devices import ConsoleDevice, Port

from .guests import PATIENCE, QemuGuest, Running, UmlGuest
from .workloads import FEATURES

CONSOLE = 3
ECHO_SIZE = 16384

# Asks for the size only once it was told: busybox's stty makes an error of 0 by 0, which Linux starts with.
SIMPLE = f"""
await /dev/hvc0
exec 3<>/dev/hvc0
stty -F /dev/hvc0 raw -echo
echo ready >&3
head -c {ECHO_SIZE} <&3 > /tmp/got
result got $(sha256sum /tmp/got | cut -d ' ' -f 1)
cat /tmp/got >&3
for attempt in $(seq 200); do
    size=$(stty -F /dev/hvc0 size 2>/dev/null || true)
    [ "$size" = "43 132" ] && break
    sleep 0.05
done
result size $size
echo bye >&3
"""

SEVERAL = f"""
await /sys/class/virtio-ports/vport0p1
port=
for attempt in $(seq 200); do
    for one in /sys/class/virtio-ports/*; do
        [ "$(cat $one/name 2>/dev/null)" = org.example.agent ] && port=$(basename $one)
    done
    [ -n "$port" ] && break
    sleep 0.05
done
result port $port
await /dev/hvc0
exec 3<>/dev/$port 4<>/dev/hvc0
stty -F /dev/hvc0 raw -echo
result size $(stty -F /dev/hvc0 size)
echo "to the console" >&4
head -c {ECHO_SIZE} <&3 > /tmp/got
result got $(sha256sum /tmp/got | cut -d ' ' -f 1)
cat /tmp/got >&3
read line <&4
result line $line
"""


class Terminal:
    """What a person at the port would see and type."""

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.ours.settimeout(PATIENCE)
        self.seen = b""

    def port(self, *, name: str = "", console: bool = True) -> Port:
        return Port(self._theirs.fileno(), self._theirs.fileno(), name=name, console=console)

    def expect(self, text: bytes) -> bytes:
        """Reads until something that ends with `text` has come, and gives all before it."""
        while text not in self.seen:
            more = self.ours.recv(65536)
            assert more, self.seen
            self.seen += more
        before, _, self.seen = self.seen.partition(text)
        return before

    def read(self, size: int) -> bytes:
        while len(self.seen) < size:
            self.seen += self.ours.recv(65536)
        data, self.seen = self.seen[:size], self.seen[size:]
        return data

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


@contextmanager
def terminals(count: int) -> Iterator[list[Terminal]]:
    made = [Terminal() for _ in range(count)]
    try:
        yield made
    finally:
        for terminal in made:
            terminal.close()


def echo_and_resize(guest: UmlGuest | QemuGuest, path: Path) -> None:
    """What a simple console has to do; `guest` runs `SIMPLE`."""
    data = os.urandom(ECHO_SIZE)
    with terminals(1) as (terminal,), Server() as server:
        device = ConsoleDevice(terminal.port())
        served = server.add(device, VhostUserSocket(path))
        with guest.start() as running, said(running):
            terminal.expect(b"ready\n")
            terminal.ours.sendall(data)
            assert terminal.read(len(data)) == data
            device.resize(132, 43)
            terminal.expect(b"bye\n")
            outcome = running.finish()
        assert served.counters.errors == 0
    assert outcome.one("got") == hashlib.sha256(data).hexdigest()
    assert outcome.one("size") == "43 132"


@contextmanager
def said(running: Running) -> Iterator[None]:
    """What the guest said goes with an error that we notice first."""
    try:
        yield
    except Exception as error:
        error.add_note(running.console)
        raise


def test_qemu_echoes_and_is_resized(newer_qemu: Callable[..., QemuGuest], tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    device = f"vhost-user-test-device-pci,virtio-id={CONSOLE},num_vqs=2,config_size=12"
    guest = newer_qemu(script=SIMPLE, modules=["virtio_console"], devices=[(path, device)])
    echo_and_resize(guest, path)


def test_uml_echoes_and_is_resized(uml: Callable[..., UmlGuest], tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    guest = uml(script=SIMPLE, modules=["virtio_console"], devices=[(path, CONSOLE)])
    echo_and_resize(guest, path)


def test_qemu_has_a_console_and_a_channel(newer_qemu: Callable[..., QemuGuest], tmp_path: Path) -> None:
    path, data = tmp_path / "console.sock", os.urandom(ECHO_SIZE)
    device = f"vhost-user-test-device-pci,virtio-id={CONSOLE},num_vqs=6,config_size=12"
    guest = newer_qemu(script=FEATURES + SEVERAL, modules=["virtio_console"], devices=[(path, device)])
    with terminals(2) as (console, agent), Server() as server:
        ports = console.port(), agent.port(name="org.example.agent", console=False)
        served = server.add(ConsoleDevice(*ports), VhostUserSocket(path))
        with guest.start() as running, said(running):
            console.expect(b"to the console\n")
            agent.ours.sendall(data)
            assert agent.read(len(data)) == data
            console.ours.sendall(b"from the console\n")
            outcome = running.finish()
        assert served.counters.errors == 0
    assert outcome.one("got") == hashlib.sha256(data).hexdigest()
    assert outcome.one("line") == "from the console"
    assert outcome.one("size") == "25 80"  # rows, then columns, of a RESIZE message
    assert outcome.features(f"features-{CONSOLE}") & 0b11 == 0b11  # SIZE, MULTIPORT
