"""The host's end of the port to dom0: commands go in, output and a status come out."""

from __future__ import annotations

import base64
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from xenvirt.errors import LabError

from .agent import Lines

_TICK = 0.25
"""Seconds after which is looked whether the machine still runs."""


class Channel:
    """A connection to the agent in dom0; one client at a time is connected."""

    def __init__(self, path: Path, check: Callable[[], None], timeout: float) -> None:
        """Connects, and waits up to `timeout` seconds until dom0 is up.

        `check` is called again and again while something is awaited, and raises if the machine is gone.
        """
        self._check = check
        self._lines = Lines()
        self._received: list[dict[str, Any]] = []
        self._deadline = time.monotonic() + timeout
        self._number = 0
        self._socket = self._connect(path)
        while (hello := self._hello())["busy"]:
            time.sleep(_TICK)  # dom0 is ending the command of a client that went away
        self.uptime = float(hello["uptime"])
        """Seconds since dom0's kernel began."""
        self._deadline = float("inf")

    def close(self) -> None:
        """Ends the connection; a command that still runs is ended with it."""
        self._socket.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        package: str,
        cwd: str,
        env: Mapping[str, str],
        stdout: BinaryIO,
        stderr: BinaryIO,
        timeout: float | None = None,
    ) -> int:
        """Runs a command in dom0; gives its status, as a shell would."""
        self._number = int.from_bytes(os.urandom(4), "little")
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
        request = {"id": self._number, "argv": list(argv), "cwd": cwd, "env": dict(env), "package": package}
        self._send(Lines.message("run", **request))
        interrupted = False
        while True:
            try:
                message = self._next()
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                self._send(Lines.message("signal", id=self._number, signal=int(signal.SIGINT)))
                continue
            if message.get("id") != self._number:
                continue
            if message["kind"] == "output":
                stream = stdout if message["stream"] == 1 else stderr
                stream.write(base64.b64decode(message["data"]))
                stream.flush()
            elif message["kind"] == "ended":
                self._deadline = float("inf")
                return int(message["status"])

    def halt(self) -> None:
        """Tells dom0 to power off."""
        self._send(Lines.message("halt"))

    def _connect(self, path: Path) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                self._check()
                self._in_time()
                time.sleep(0.02)  # QEMU makes its socket a moment after it was started
            else:
                connection.settimeout(_TICK)
                return connection

    def _hello(self) -> dict[str, Any]:
        self._send(Lines.message("hello"))
        while (hello := self._next())["kind"] != "hello":
            pass
        return hello

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except TimeoutError:
                self._check()
                self._in_time()
            except OSError as error:
                self._check()
                raise LabError(f"the machine does not listen any more: {error}") from error

    def _next(self) -> dict[str, Any]:
        while not self._received:
            self._in_time()
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                self._check()
                continue
            except OSError:
                data = b""
            if not data:
                time.sleep(_TICK)  # the machine is ending: let it, so that we can say so
                self._check()
                raise LabError("the machine closed its port")
            self._received += self._lines.feed(data)
        return self._received.pop(0)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise LabError("dom0 took too long")
