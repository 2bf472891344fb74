"""Our devices behind other people's frontends that are no guests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from xenvirt import Server, VhostUserSocket
from xenvirt.devices import BlockDevice

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
