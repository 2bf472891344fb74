"""A running ``xenvirt trace``, for tests here and with peers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


class Tracer:
    """A running `xenvirt trace`."""

    def __init__(self, daemon: Path, socket: Path, *options: str) -> None:
        self.socket = str(socket)
        command = [sys.executable, "-m", "xenvirt", "trace", str(daemon), "--listen", self.socket, *options]
        ready, tell = os.pipe()
        self._process = subprocess.Popen(
            [*command, f"--ready-fd={tell}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[tell],
        )
        os.close(tell)
        with open(ready, "rb") as pipe:  # noqa: PTH123 - a descriptor
            assert pipe.read(1) == b"\n", self._process.communicate()[1]

    def end(self) -> tuple[str, str]:
        """Ends it as Ctrl-C does; gives what it wrote."""
        self._process.send_signal(signal.SIGINT)
        output = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, output[1]
        return output

    def kill(self) -> None:
        """Ends it anyhow."""
        self._process.kill()
        self._process.communicate()
