"""The programs of examples/, run as they are."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from xenvirt import Daemon

from . import crates
from .crates import Crate
from .guests import UmlGuest
from .workloads import MiB, new_image

EXAMPLES = Path(__file__).parents[2] / "examples"
CONSOLE = 3


def test_ramdisk_keeps_what_libblkio_copies_to_it(blkio: Callable[[str], Path], tmp_path: Path) -> None:
    size = 64 * MiB
    original, returned = tmp_path / "original", new_image(tmp_path / "returned", size)
    original.write_bytes(os.urandom(size))
    with Daemon(sys.executable, EXAMPLES / "ramdisk.py", "{socket}") as backend:
        disk = ["virtio-blk-vhost-user", f"path={backend.socket}"]
        copy = [blkio("blkio-copy")]
        subprocess.run([*copy, f"--input-file={original}", "--output-blkio", *disk], check=True, timeout=60)
        subprocess.run([*copy, "--input-blkio", *disk, f"--output-file={returned}"], check=True, timeout=60)
    assert returned.read_bytes() == original.read_bytes()


def test_console_carries_lines_both_ways(uml: Callable[..., UmlGuest], tmp_path: Path) -> None:
    socket = tmp_path / "console.sock"
    script = """
await /dev/hvc0
stty -F /dev/hvc0 raw -echo
exec 3<>/dev/hvc0
echo "hello from the guest" >&3
read -r line <&3
result heard $line
"""
    guest = uml(script=script, modules=["virtio_console"], devices=[(socket, CONSOLE)])
    # Not quite as it is: UML's rings have 256 descriptors, and vhost-user does not tell what a device takes.
    program = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
from console import Console
from xenvirt import VhostUserSocket, serve
class LargerConsole(Console):
    queue_sizes = (256, 256)
serve(LargerConsole(), VhostUserSocket({str(socket)!r}))
"""
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as console:
        try:
            assert console.stdin is not None
            assert console.stdout is not None
            while not socket.exists():
                assert console.poll() is None
                time.sleep(0.01)
            with guest.start() as running:
                assert console.stdout.readline().strip() == b"hello from the guest"
                console.stdin.write(b"hello from the host\n")
                console.stdin.flush()
                outcome = running.finish()
        finally:
            console.terminate()
    assert outcome.one("heard") == "hello from the host"
    assert console.returncode == 0


def test_drive_daemon_draws_from_vhost_device_rng(daemon_program: Callable[[Crate], Path]) -> None:
    folder = daemon_program(crates.RNG).parent
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, str(EXAMPLES / "drive_daemon.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert len(bytes.fromhex(run.stdout.splitlines()[-1])) == 32
