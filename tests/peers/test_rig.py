"""The rig itself, with qemu-storage-daemon as the backend: what fails here is no fault of xenvirt."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirt import Daemon

from .dpdk import Testpmd
from .guests import GuestError, QemuGuest, UmlGuest, alive_in_session

MiB = 1 << 20

LOOK = """
await /dev/vda
result size $(cat /sys/block/vda/size)
for device in /sys/bus/virtio/devices/*; do result features $(cat $device/features); done
dd if=/dev/vda of=/dev/null bs=4096 count=256 iflag=direct
echo hello | dd of=/dev/vda bs=512 conv=sync,notrunc oflag=direct
"""


def test_uml_reads_and_writes_a_disk(
    uml: Callable[..., UmlGuest], storage_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(16 * MiB))
    backend = storage_daemon(image)
    outcome = uml(script=LOOK, modules=["virtio_blk"], devices=[(Path(backend.socket), 2)]).run()
    assert int(outcome.one("size")) == 16 * MiB // 512
    assert outcome.features("features") >> 32 & 1  # VERSION_1
    assert image.read_bytes()[:6] == b"hello\n"


def test_qemu_reads_and_writes_a_disk(
    qemu: Callable[..., QemuGuest], storage_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(16 * MiB))
    backend = storage_daemon(image)
    guest = qemu(
        script=LOOK,
        modules=["virtio_blk"],
        devices=[(Path(backend.socket), "vhost-user-blk-pci,num-queues=1")],
    )
    outcome = guest.run()
    assert int(outcome.one("size")) == 16 * MiB // 512
    assert outcome.features("features") >> 32 & 1
    assert image.read_bytes()[:6] == b"hello\n"


def test_a_script_that_fails_is_an_error_with_the_console(uml: Callable[..., UmlGuest]) -> None:
    with pytest.raises(GuestError, match=r"(?s)script failed.*just before"):
        uml(script="echo just before\nfalse\necho not here").run()


def test_a_guest_that_hangs_is_killed_and_leaves_nothing(uml: Callable[..., UmlGuest]) -> None:
    with uml(script="result at the brink\nwhile true; do :; done").start() as running:
        running.expect("@@ at the brink")
        with pytest.raises(GuestError, match=r"(?s)not done after 0.5 s.*at the brink"):
            running.finish(timeout=0.5)
        group = running.process_group
    assert list(alive_in_session(group)) == []


def test_testpmd_sends_packets_to_testpmd(testpmd: Callable[..., Testpmd], tmp_path: Path) -> None:
    socket = tmp_path / "net.sock"
    with testpmd(f"net_vhost0,iface={socket}", core=0) as device:
        device.command("set fwd rxonly")
        device.command("start")
        with testpmd(f"net_virtio_user0,path={socket},queue_size=256", core=1) as driver:
            sent = driver.send(100_000)
            burst = 32  # the last one may stay in the ring
            assert sent - burst <= device.settled("RX") <= sent
