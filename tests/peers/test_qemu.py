"""Devices of ours in a guest of QEMU: Linux's drivers are the judge."""

from collections.abc import Callable
from pathlib import Path

from entropy import Entropy

from xenvirt import Feature, Server, Session, VhostUserSocket

from .guests import QemuGuest
from .workloads import FEATURES

EVERY_RING_FEATURE = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC


class SeenEntropy(Entropy):
    """The example's device, which remembers what was negotiated."""

    seen = 0

    def activate(self, session: Session) -> None:
        self.seen = session.features


def test_the_guest_draws_entropy(qemu: Callable[..., QemuGuest], tmp_path: Path) -> None:
    device, socket = SeenEntropy(), tmp_path / "rng.sock"
    script = f"""{FEATURES}
result source $(cat /sys/class/misc/hw_random/rng_current)
result drawn $(dd if=/dev/hwrng bs=512 count=128 2>/dev/null | wc -c)
"""
    with Server() as server:
        served = server.add(device, VhostUserSocket(socket))
        outcome = qemu(script=script, modules=["virtio-rng"], devices=[(socket, "vhost-user-rng-pci")]).run()
        counters = served.counters
    assert outcome.one("source").startswith("virtio_rng")
    assert int(outcome.one("drawn")) == 512 * 128
    assert outcome.features("features-4") & EVERY_RING_FEATURE == EVERY_RING_FEATURE
    assert device.seen & EVERY_RING_FEATURE == EVERY_RING_FEATURE
    assert counters.bytes_written >= 512 * 128
    assert counters.chains > 0
    assert counters.errors == 0
