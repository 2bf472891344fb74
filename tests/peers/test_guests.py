"""Our devices in real guests: Linux's drivers are the judge."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from entropy import Entropy

from xenvirt import Daemon, Feature, Server, Session, VhostUserSocket
from xenvirt.devices import BlockDevice, NativeBlockDevice

from .conftest import need
from .guests import QemuGuest, UmlGuest
from .workloads import FEATURES, FILESYSTEM, FILESYSTEM_MODULES, MiB, check_filesystem, new_image

WANTED = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC
BLOCK, ENTROPY = 2, 4

ONE_LOAD_PER_CPU = """
result queues $(ls /sys/block/vda/mq | wc -l)
taskset 1 dd if=/dev/vda of=/dev/null bs=4k count=500 iflag=direct &
taskset 2 dd if=/dev/vda of=/dev/null bs=4k count=500 iflag=direct &
wait
"""


class Disk(BlockDevice):
    """A disk that remembers what was negotiated."""

    seen = 0

    def activate(self, session: Session) -> None:
        super().activate(session)
        self.seen = session.features


class NativeDisk(NativeBlockDevice):
    """The same in Rust."""

    seen = 0

    def activate(self, session: Session) -> None:
        super().activate(session)
        self.seen = session.features


DISKS = pytest.mark.parametrize("disk_class", [Disk, NativeDisk])


class Rng(Entropy):
    """The example's device, which remembers what was negotiated."""

    seen = 0

    def activate(self, session: Session) -> None:
        self.seen = session.features


@DISKS
def test_uml_keeps_a_file_system_on_our_disk(
    uml: Callable[..., UmlGuest], tmp_path: Path, disk_class: type[Disk | NativeDisk]
) -> None:
    image, socket = new_image(tmp_path / "disk", 128 * MiB), tmp_path / "blk.sock"
    guest = uml(
        script=FEATURES + FILESYSTEM,
        modules=FILESYSTEM_MODULES,
        programs=["mke2fs"],
        devices=[(socket, BLOCK)],
    )
    with disk_class(image) as disk, Server() as server:
        served = server.add(disk, VhostUserSocket(socket))
        outcome = guest.run()
        assert served.counters.errors == 0
    assert outcome.features(f"features-{BLOCK}") & WANTED == WANTED
    assert disk.seen & WANTED == WANTED
    check_filesystem(outcome, image)


@DISKS
def test_qemu_keeps_a_file_system_on_our_disk_over_two_queues(
    qemu: Callable[..., QemuGuest], tmp_path: Path, disk_class: type[Disk | NativeDisk]
) -> None:
    image, socket = new_image(tmp_path / "disk", 128 * MiB), tmp_path / "blk.sock"
    guest = qemu(
        script=FEATURES + FILESYSTEM + ONE_LOAD_PER_CPU,
        modules=FILESYSTEM_MODULES,
        programs=["mke2fs"],
        devices=[(socket, "vhost-user-blk-pci,num-queues=2")],
        vcpus=2,
    )
    with disk_class(image, queues=2) as disk, Server() as server:
        served = server.add(disk, VhostUserSocket(socket))
        outcome = guest.run()
        queues = served.queue_counters
    assert int(outcome.one("queues")) == 2
    assert all(queue.chains >= 500 and queue.kicks > 0 and queue.errors == 0 for queue in queues), queues
    assert outcome.features(f"features-{BLOCK}") & WANTED == WANTED
    assert disk.seen & WANTED == WANTED
    check_filesystem(outcome, image)


def test_qemu_draws_entropy(qemu: Callable[..., QemuGuest], tmp_path: Path) -> None:
    script = f"""{FEATURES}
result source $(cat /sys/class/misc/hw_random/rng_current)
result drawn $(dd if=/dev/hwrng bs=512 count=128 2>/dev/null | wc -c)
"""
    socket, device = tmp_path / "rng.sock", Rng()
    guest = qemu(script=script, modules=["virtio-rng"], devices=[(socket, "vhost-user-rng-pci")])
    with Server() as server:
        served = server.add(device, VhostUserSocket(socket))
        outcome = guest.run()
        counters = served.counters
    assert outcome.one("source").startswith("virtio_rng")
    assert int(outcome.one("drawn")) == 512 * 128
    assert outcome.features(f"features-{ENTROPY}") & WANTED == WANTED
    assert device.seen & WANTED == WANTED
    assert counters.bytes_written >= 512 * 128
    assert counters.chains > 0
    assert counters.errors == 0


@pytest.fixture
def hugepages() -> Iterator[None]:
    """Reserves 256 MiB of the host's memory as pages of 2 MiB, for as long as the test runs."""
    knob = Path("/proc/sys/vm/nr_hugepages")
    before = int(knob.read_text())
    wanted = before + 128
    try:
        knob.write_text(str(wanted))
    except OSError as error:
        need(False, f"way to reserve huge pages ({error})")
    try:
        need(int(knob.read_text()) >= wanted, "256 MiB of memory for huge pages")
        yield
    finally:
        knob.write_text(
            str(max(int(knob.read_text()) - 128, 0))
        )  # somebody else may have reserved some meanwhile


@pytest.mark.usefixtures("hugepages")
def test_a_guest_in_huge_pages_reads_what_the_command_serves(
    qemu: Callable[..., QemuGuest], tmp_path: Path
) -> None:
    image = new_image(tmp_path / "disk", 16 * MiB)
    image.write_bytes(bytes(range(256)) * (image.stat().st_size // 256))
    script = "await /dev/vda\nresult sum $(sha256sum /dev/vda | cut -d ' ' -f 1)\n"
    command = Path(sys.executable).with_name("xenvirt")
    with Daemon(command, "serve", "blk", image, "--socket", "{socket}", "--read-only") as backend:
        guest = qemu(
            script=script,
            modules=["virtio_blk"],
            devices=[(Path(backend.socket), "vhost-user-blk-pci,num-queues=1")],
            hugepages=True,
        )
        outcome = guest.run()
    assert outcome.one("sum") == hashlib.sha256(image.read_bytes()).hexdigest()
