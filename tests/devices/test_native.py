"""The disks in Rust, as far as they are not as the ones in Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xenvirt import Server, VhostUserSocket, connect
from xenvirt.devices import NativeBlockDevice, NullBlockDevice
from xenvirt.drivers import BlockDriver
from xenvirt.errors import RequestFailedError
from xenvirt.virtio.block import BlockFeature

QUEUES = 4
SIZE = 1 << 20
PLACES = [(block, block % QUEUES) for block in range(SIZE // 4096)]
"""Blocks of 4 KiB, and by which queue they are read and written."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(bytes(SIZE))
    return made


def test_the_disk_says_who_moves_the_bytes_and_how_often(image: Path) -> None:
    with NativeBlockDevice(image, io_uring=False) as device, connect(device) as link:
        disk = BlockDriver(link)
        disk.write(0, b"x" * 4096)
        disk.flush()
        disk.read(0, 4096)
        disk.write_zeroes(0, 4096)
        assert device.storage == "system calls"
        assert device.storage_counters == (1, 1, 1, 1)


FORBID_IO_URING = """
import ctypes, struct, sys
from xenvirt.devices import NativeBlockDevice
libc = ctypes.CDLL(None, use_errno=True)
# Load the number of the system call; 425 is io_uring_setup: EPERM; every other may pass.
code = b"".join(struct.pack("HBBI", *one) for one in
    [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50000 | 1), (0x06, 0, 0, 0x7FFF0000)])
filters = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(filters))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
from xenvirt import connect
from xenvirt.drivers import BlockDriver
with NativeBlockDevice(sys.argv[1]) as device, connect(device) as link:
    BlockDriver(link).write(0, b"kept" * 128)
    print(device.storage)
"""


def test_a_disk_where_io_uring_is_forbidden_uses_system_calls_and_says_so(image: Path) -> None:
    command = [sys.executable, "-c", FORBID_IO_URING, str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("system calls, as io_uring is refused: Operation not permitted"), done
    assert image.read_bytes()[:512] == b"kept" * 128


def fill(block: int, tint: int) -> bytes:
    return bytes([block % 256, block % QUEUES, tint, 0]) * 1024


@pytest.mark.parametrize("io_uring", [True, False])
@pytest.mark.parametrize("threads", [False, True])
def test_queues_that_are_used_at_once_get_their_own_data(
    image: Path, tmp_path: Path, threads: bool, io_uring: bool
) -> None:
    socket = tmp_path / "disk.sock"
    device = NativeBlockDevice(image, queues=QUEUES, thread_per_queue=threads, io_uring=io_uring)
    with device, Server() as server:
        server.add(device, VhostUserSocket(socket))
        with connect(socket) as link, BlockDriver(link) as disk:
            for tint in range(4):
                writes = [
                    disk.write_request(8 * block, fill(block, tint), queue=queue) for block, queue in PLACES
                ]
                for write in link.submit_all(writes):
                    write.result()
                reads = link.submit_all(
                    [disk.read_request(8 * block, 8, queue=queue) for block, queue in PLACES]
                )
                for (block, _), read in zip(PLACES, reads, strict=True):
                    assert read.result() == fill(block, tint)
        assert device.storage_counters.reads == device.storage_counters.writes == 4 * len(PLACES)


def test_frontends_that_leave_in_the_middle_of_requests_do_no_harm(image: Path, tmp_path: Path) -> None:
    socket = tmp_path / "disk.sock"
    with NativeBlockDevice(image) as device, Server() as server:
        served = server.add(device, VhostUserSocket(socket))
        for _ in range(10):
            link = connect(socket)
            disk = BlockDriver(link)
            for sector in range(64):
                link.submit(disk.write_request(sector, bytes(512)))
            link.close()
        with connect(socket) as link:
            assert BlockDriver(link).read(0, 512) == bytes(512)
        assert served.counters.errors == 0


def test_a_server_with_a_thread_a_queue_stops_while_requests_come(image: Path, tmp_path: Path) -> None:
    for _ in range(30):
        socket = tmp_path / "disk.sock"
        with NativeBlockDevice(image, thread_per_queue=True, queues=2) as device, Server() as server:
            server.add(device, VhostUserSocket(socket))
            link = connect(socket)
            disk = BlockDriver(link)
            closing = threading.Thread(target=server.stop)
            for sector in range(64):
                link.submit(disk.read_request(sector, 8, queue=sector % 2))
                if sector == 32:
                    closing.start()
            closing.join()
        link.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_that_closes_the_disk_does_its_parent_no_harm(image: Path) -> None:
    with NativeBlockDevice(image) as device, connect(device) as link:
        disk = BlockDriver(link)
        disk.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                device.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        disk.write(0, b"parent" * 100)
        disk.flush()
        assert disk.read(0, 600) == b"parent" * 100
        assert device.storage_counters.syncs == 2


def test_a_null_disk_reads_as_zeroes_whatever_was_written() -> None:
    with connect(NullBlockDevice(2048, queues=2, queue_size=128)) as link:
        disk = BlockDriver(link)
        assert (disk.capacity, disk.queues, disk.config.seg_max) == (2048, 2, 126)
        assert disk.features & BlockFeature.FLUSH
        disk.write(0, b"x" * 8192)
        disk.flush()
        assert disk.read(0, 8192, queue=1) == bytes(8192)
        assert disk.get_id() == ""
        with pytest.raises(RequestFailedError, match="IOERR"):
            link.run(disk.read_request(2048, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sectors": 0}, "sectors is 0; a disk has 1 to"),
        ({"sectors": 2**55}, "sectors is 36028797018963968"),
        ({"sectors": 1, "queues": 257}, "queues is 257"),
    ],
)
def test_a_null_disk_that_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NullBlockDevice(**options)  # type: ignore[arg-type]
