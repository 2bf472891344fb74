"""DPDK's testpmd as a vhost-user frontend or backend for net, without a guest and without huge pages."""

import os
import re
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_PROMPT = "testpmd> "


class Testpmd:
    """A testpmd with one port, driven by its command line; leaving the `with` block ends it.

    It polls: each one wants a core of its own while it forwards, and is slow on a shared one.

    Args:
        port: the `--vdev`: `net_virtio_user0,path=SOCKET` is a driver, `net_vhost0,iface=SOCKET` a device.
        folder: an empty one for what it leaves behind.
        core: the core it runs on.
    """

    __test__ = False  # the name is DPDK's; pytest need not look

    def __init__(self, port: str, folder: Path, *, core: int = 0) -> None:
        self._folder = folder
        self._command = [
            *(
                "stdbuf",
                "-oL",
                "dpdk-testpmd",
                "--lcores",
                f"0@{core},1@{core}",
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
            ),
            *("--no-telemetry", "--vdev", port),
            *("--", "-i", "--nb-cores=1", "--total-num-mbufs=8192", "--no-mlockall"),
        ]

    def __enter__(self) -> Self:
        self._output, self._ended = "", False
        self._grew = threading.Condition()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RUNTIME_DIRECTORY": str(self._folder)},
        )
        self._reader = threading.Thread(target=self._read, name="testpmd", daemon=True)
        self._reader.start()
        self._until_prompt(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()  # the end of its commands
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while data := os.read(output.fileno(), 65536):
                with self._grew:
                    self._output += data.decode(errors="replace")
                    self._grew.notify_all()
        with self._grew:
            self._ended = True
            self._grew.notify_all()

    def _until_prompt(self, start: int) -> str:
        with self._grew:
            done = self._grew.wait_for(lambda: _PROMPT in self._output[start:] or self._ended, timeout=60)
            said = self._output[start:]
        assert done, f"testpmd has no prompt after 60 s:\n{said}"
        assert _PROMPT in said, f"testpmd ended:\n{self._output}"
        return said

    def command(self, line: str) -> str:
        """Has testpmd carry out one line, and returns what it says."""
        assert self._process.stdin is not None
        with self._grew:
            start = len(self._output)
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self._until_prompt(start)

    def packets(self, direction: str) -> int:
        """How many packets went through its port so far: "TX" or "RX"."""
        found = re.search(rf"{direction}-packets: (\d+)", self.command("show port stats 0"))
        assert found, self._output
        return int(found[1])

    def settled(self, direction: str) -> int:
        """The count of `packets` once it grows no more."""
        before, now = -1, self.packets(direction)
        while now != before:
            time.sleep(0.1)
            before, now = now, self.packets(direction)
        return now

    def send(self, count: int, timeout: float = 120) -> int:
        """Sends packets of 64 bytes until at least `count` are gone, and says how many that were."""
        deadline = time.monotonic() + timeout
        self.command("set fwd txonly")
        self.command("start")
        while self.packets("TX") < count:
            assert time.monotonic() < deadline, (
                f"{self.packets('TX')} packets in {timeout:g} s\n{self._output}"
            )
            time.sleep(0.1)  # it says nothing by itself
        self.command("stop")
        return self.packets("TX")
