"""Our drivers against other people's backends."""

import os
from collections.abc import Callable
from pathlib import Path

from xenvirt import Daemon, connect
from xenvirt.drivers import BlockDriver

from .workloads import MiB, new_image

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_block_driver_reads_and_writes_through_qemu_storage_daemon(
    storage_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    image = new_image(tmp_path / "disk", 16 * MiB)
    content = os.urandom(3 * MiB)
    backend = storage_daemon(image, queues=2)
    with connect(backend.socket) as link, BlockDriver(link, queues=2) as disk:
        assert disk.config.capacity == 16 * MiB // 512
        disk.write(MiB, content)
        disk.flush()
        assert disk.read(MiB, len(content), queue=1) == content
        assert disk.read(MiB - 100, 200) == bytes(100) + content[:100]  # not at the edge of a sector
        disk.write_zeroes(2 * MiB, MiB)
        assert disk.read(2 * MiB, MiB) == bytes(MiB)
    assert image.read_bytes()[MiB : 2 * MiB] == content[:MiB]


def test_a_second_client_finds_qemu_storage_daemon_as_the_first_left_it(
    storage_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    backend = storage_daemon(new_image(tmp_path / "disk", MiB))
    with connect(backend.socket) as link, BlockDriver(link) as disk:
        disk.write(4096, b"first was here")
    with connect(backend.socket) as link, BlockDriver(link) as disk:
        assert disk.read(4096, 14) == b"first was here"
