"""Our network device in real guests: Linux's drivers ping, and transfer what is then checked."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenvirt import Daemon, Server, VhostUserSocket
from xenvirt.devices import NetDevice, cable
from xenvirt.virtio import Feature
from xenvirt.virtio.net import NetFeature

from .guests import PATIENCE, Guest, Outcome, QemuGuest, UmlGuest
from .network import Namespace
from .workloads import FEATURES, MiB

NET = 1
SIZE = 16 * MiB
HOST, GUEST = "192.0.2.1", "192.0.2.2"
RING = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | NetFeature.MRG_RXBUF
OFFLOADS = NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4

UP = """
await /sys/class/net/eth0
ip link set lo up
ip link set eth0 up
result mac $(cat /sys/class/net/eth0/address)
"""
WITH_HOST = f"""
{FEATURES}{UP}
ip addr add {GUEST}/24 dev eth0
ping -c 3 -W 20 {HOST} > /tmp/ping
result ping $(grep -o '3 packets received' /tmp/ping)
wget -q -O /tmp/data http://{HOST}/data
result down $(sha256sum /tmp/data | cut -d ' ' -f 1)
nc {HOST} 9000 < /tmp/data
"""
SERVER = f"""
{FEATURES}{UP}
ip addr add {HOST}/24 dev eth0
mkdir /tmp/www
dd if=/dev/urandom of=/tmp/www/data bs=1M count={SIZE // MiB} 2>/dev/null
result sum $(sha256sum /tmp/www/data | cut -d ' ' -f 1)
httpd -h /tmp/www
result serving
nc -l -p 9000 -e sh -c 'cat > /tmp/back'
result sum $(sha256sum /tmp/back | cut -d ' ' -f 1)
"""


@contextmanager
def served_on_tap(folder: Path, queues: int) -> Iterator[tuple[str, Callable[[Outcome], None]]]:
    """Serves a card on a tap in a namespace, with a web server that has 16 MiB of random bytes, and somebody
    who takes them back; gives the device's socket, and what checks the guest's part."""
    data = os.urandom(SIZE)
    pages, back = folder / "pages", folder / "back"
    pages.mkdir()
    (pages / "data").write_bytes(data)
    command = [sys.executable, "-m", "xenvirt", "serve", "net", "--tap=tap0", f"--queues={queues}"]

    def check(outcome: Outcome) -> None:
        taker.wait(PATIENCE)
        assert outcome.one("ping") == "3 packets received"
        assert outcome.one("down") == hashlib.sha256(data).hexdigest()
        assert back.read_bytes() == data
        assert outcome.features(f"features-{NET}") & (RING | OFFLOADS) == RING | OFFLOADS

    with Namespace() as namespace, Daemon(*namespace.inside(*command, "--socket={socket}")) as daemon:
        namespace.run("ip", "link", "set", "tap0", "up")
        namespace.run("ip", "address", "add", f"{HOST}/24", "dev", "tap0")
        web = namespace.inside("busybox", "httpd", "-f", "-p", f"{HOST}:80", "-h", str(pages))
        # It closes the connection when it has everything, and the guest's nc waits for that.
        take = namespace.inside("busybox", "nc", "-l", "-p", "9000", "-e", "sh", "-c", f"cat > {back}")
        with subprocess.Popen(web) as server, subprocess.Popen(take) as taker:
            try:
                yield daemon.socket, check
            finally:
                server.kill()
                taker.kill()


def with_card(guest: Callable[..., QemuGuest], socket: Path | str, script: str, queues: int = 1) -> QemuGuest:
    """A guest of QEMU with one network card, which is ours."""
    return guest(
        script=script,
        modules=["virtio_net"],
        vcpus=queues,
        arguments=[
            *("-chardev", f"socket,id=card,path={socket}"),
            *("-netdev", f"vhost-user,id=net,chardev=card,queues={queues}"),
            # Without MSI-X: with it, and without KVM, QEMU 7.2 dies when a vhost-user card starts.
            *("-device", f"virtio-net-pci,netdev=net,mq={'on' if queues > 1 else 'off'},romfile=,vectors=0"),
        ],
    )


@pytest.mark.usefixtures("privileged")
def test_qemu_and_the_host_talk_over_a_tap_with_two_queue_pairs(
    qemu: Callable[..., QemuGuest], tmp_path: Path
) -> None:
    script = WITH_HOST + "result queues $(ls /sys/class/net/eth0/queues | wc -l)\n"
    with served_on_tap(tmp_path, queues=2) as (socket, check):
        outcome = with_card(qemu, socket, script, queues=2).run()
        check(outcome)
    assert int(outcome.one("queues")) == 4
    assert outcome.features(f"features-{NET}") & NetFeature.MQ


@pytest.mark.usefixtures("privileged")
def test_uml_and_the_host_talk_over_a_tap(uml: Callable[..., UmlGuest], tmp_path: Path) -> None:
    with served_on_tap(tmp_path, queues=1) as (socket, check):
        outcome = uml(script=WITH_HOST, modules=["virtio_net"], devices=[(Path(socket), NET)]).run()
        check(outcome)
    # UML's driver has the control queue to itself; QEMU keeps that of its guests.
    wanted = NetFeature.MAC | NetFeature.STATUS | NetFeature.CTRL_VQ | NetFeature.CTRL_RX
    assert outcome.features(f"features-{NET}") & wanted == wanted


def test_a_qemu_guest_and_a_uml_guest_talk_over_a_cable(
    qemu: Callable[..., QemuGuest], uml: Callable[..., UmlGuest], tmp_path: Path
) -> None:
    paths = tmp_path / "uml.sock", tmp_path / "qemu.sock"
    serving = uml(script=SERVER, modules=["virtio_net"], devices=[(paths[0], NET)])
    asking: Guest = with_card(qemu, paths[1], WITH_HOST)
    with Server() as server:
        devices = [NetDevice(end) for end in cable()]
        cards = [
            server.add(device, VhostUserSocket(path)) for device, path in zip(devices, paths, strict=True)
        ]
        with serving.start() as other:
            other.expect("@@ serving")
            outcome = asking.run()
            served = other.finish()
        errors = [card.counters.errors for card in cards]
    assert outcome.one("ping") == "3 packets received"
    assert {outcome.one("down")} == set(served.all("sum"))
    assert served.one("mac") == devices[0].mac.hex(":")
    assert errors == [0, 0]
    # Neither side may leave a checksum to somebody: there is only the other guest.
    for guest in (outcome, served):
        assert guest.features(f"features-{NET}") & (RING | OFFLOADS) == RING
