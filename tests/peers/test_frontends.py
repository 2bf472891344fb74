"""Our devices behind other people's frontends that are no guests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from xenvirt import Feature, Server, VhostUserSocket
from xenvirt.devices import BlockDevice, NetDevice, Sink

from .dpdk import Testpmd
from .workloads import MiB, new_image


def test_libblkio_copies_a_file_in_and_out_again(blkio: Callable[[str], Path], tmp_path: Path) -> None:
    copy, socket = blkio("blkio-copy"), tmp_path / "blk.sock"
    disk = ["virtio-blk-vhost-user", f"path={socket}"]
    original, returned = tmp_path / "original", new_image(tmp_path / "returned", 32 * MiB)
    original.write_bytes(os.urandom(32 * MiB))
    image = new_image(tmp_path / "disk", 32 * MiB)
    with BlockDevice(image) as device, Server() as server:
        server.add(device, VhostUserSocket(socket))
        subprocess.run([copy, f"--input-file={original}", "--output-blkio", *disk], check=True, timeout=60)
        subprocess.run([copy, "--input-blkio", *disk, f"--output-file={returned}"], check=True, timeout=60)
    assert image.read_bytes() == original.read_bytes()
    assert returned.read_bytes() == original.read_bytes()


def test_dpdk_sends_a_million_packets_that_we_count(testpmd: Callable[..., Testpmd], tmp_path: Path) -> None:
    socket, sink = tmp_path / "net.sock", Sink()
    with Server() as server:
        served = server.add(NetDevice(sink), VhostUserSocket(socket))
        with testpmd(f"net_virtio_user0,path={socket},queue_size=256,packed_vq=0", core=1) as driver:
            driver.send(1_000_000)
            sent = driver.settled("TX")
            features = served.features
        counters = served.queue_counters[1]
    # Testpmd is gone and the server has stopped: nothing is under way any more.
    assert sent >= 1_000_000
    assert (sink.frames, sink.octets) == (sent, 64 * sent)
    assert (counters.chains, counters.errors) == (sent, 0)
    assert features & Feature.VERSION_1
    assert not features & Feature.RING_PACKED
