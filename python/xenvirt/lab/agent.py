"""What runs in dom0 and does what the host asks, over a virtio console port.

This file is put into dom0 as it is and started there by its path: it imports nothing of xenvirt. `Lines`, the
messages' form, serves the host's side too.

A message is a JSON object on a line. From the host: `hello`; `run` (id, argv, cwd, env, package: the name
of a tar below the lab's folder to put in PYTHONPATH); `signal` (id, signal); `halt`. From here: `hello`;
`output` (id, stream 1 or 2, data in base64); `ended` (id, status as a shell gives it). One command at a time;
it is ended when the host goes away.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

PORT_NAME = "xenvirt"
LAB = Path("/lab")
"""The lab's own folder, shared with the host."""
HOST = Path("/host")
"""The user's folder."""

_PACKAGES = Path("/run/xenvirt")
_LOST = 60.0
"""Seconds after which a dom0 that was booted for one command gives up waiting for it."""
_PATIENCE = 5.0
"""Seconds from SIGTERM to SIGKILL for the command of a host that went away."""
_PIECE = 32768


class Lines:
    """Puts lines together out of bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole now. What is no JSON object (the end of a line whose beginning went to
        another client) is left out.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.append(message)
        return messages

    @staticmethod
    def message(kind: str, **fields: object) -> bytes:
        """One message."""
        return json.dumps({"kind": kind, **fields}).encode() + b"\n"


class Command:
    """A command that runs: its two streams, and how to wait for its end."""

    def __init__(self, number: int, request: dict[str, Any]) -> None:
        self.number = number
        self._process = subprocess.Popen(
            request["argv"],
            cwd=request["cwd"],
            env={**os.environ, **request["env"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.streams = {self._process.stdout.fileno(): 1, self._process.stderr.fileno(): 2}
        for fd in self.streams:
            os.set_blocking(fd, False)
        self.end = os.pidfd_open(self._process.pid)
        self.kill_at = float("inf")

    def signal(self, number: int) -> None:
        """Sends a signal to the command and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def terminate(self) -> None:
        """Nobody wants to know its outcome any more: SIGTERM now, SIGKILL when it takes too long."""
        if self.kill_at == float("inf"):
            self.signal(signal.SIGTERM)
            self.kill_at = time.monotonic() + _PATIENCE

    def kill_if_due(self) -> None:
        """Kills it if it was to end and had time enough."""
        if time.monotonic() >= self.kill_at:
            self.signal(signal.SIGKILL)

    def finish(self) -> int:
        """Its status, once it has ended: 128 and the signal's number if a signal did it."""
        status = self._process.wait()
        os.close(self.end)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return status if status >= 0 else 128 - status


class Agent:
    """Waits for the host and for the command at the same time."""

    def __init__(self, port: int, *, once: bool) -> None:
        self._port = port
        self._once = once
        self._lines = Lines()
        self._unsent = bytearray()
        self._command: Command | None = None
        self._connected = False
        self._give_up_at = time.monotonic() + _LOST

    def serve(self) -> None:
        """Until the host says halt; booted for one command, until the host goes away."""
        while self._turn():
            pass

    def _turn(self) -> bool:
        poll = select.poll()
        poll.register(self._port, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        command = self._command
        if command is not None:
            poll.register(command.end, select.POLLIN)
            if len(self._unsent) < _PIECE:
                for fd in command.streams:
                    poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(None if self._connected and command is None else 1000))
        if ready.get(self._port, 0) & select.POLLHUP:
            return self._host_is_away()
        self._connected = True
        if command is not None:
            command.kill_if_due()
            for fd in list(command.streams):
                if fd in ready:
                    self._pass_on(command, fd)
            if command.end in ready:
                self._ended(command)
        if ready.get(self._port, 0) & select.POLLOUT:
            self._send()
        if ready.get(self._port, 0) & select.POLLIN:
            with contextlib.suppress(BlockingIOError):
                for message in self._lines.feed(os.read(self._port, _PIECE)):
                    if not self._do(message):
                        return False
        return True

    def _host_is_away(self) -> bool:
        command = self._command
        if self._connected:
            self._connected = False
            self._lines, self._unsent = Lines(), bytearray()
            self._give_up_at = time.monotonic()
            if command is not None:
                command.terminate()
        if command is not None:
            command.kill_if_due()
            for fd in list(command.streams):
                self._pass_on(command, fd)
            if select.select([command.end], [], [], 0)[0]:
                self._ended(command)
            self._unsent.clear()
        elif self._once and time.monotonic() >= self._give_up_at:
            return False
        time.sleep(0.1)  # the kernel tells nobody who polls that the host is back
        return True

    def _do(self, message: dict[str, Any]) -> bool:
        kind = message.get("kind")
        if kind == "hello":
            # Another client already: the first one went away too shortly to be seen.
            if self._command is not None:
                self._command.terminate()
            with contextlib.suppress(OSError):
                uptime = Path("/proc/uptime").read_text().split()[0]
            # The newline ends what a client before this one may have left unread.
            self._unsent += b"\n" + Lines.message("hello", busy=self._command is not None, uptime=uptime)
        elif kind == "run":
            self._run(message)
        elif kind == "signal" and self._command is not None:
            self._command.signal(message["signal"])
        return kind != "halt"

    def _run(self, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            message["env"]["PYTHONPATH"] = str(unpack(message["package"]))
            self._command = Command(number, message)
        except OSError as error:
            text = f"{message['argv'][0]}: {error.strerror or error}\n".encode()
            self._output(number, 2, text)
            status = 127 if isinstance(error, FileNotFoundError) else 126
            self._unsent += Lines.message("ended", id=number, status=status)

    def _pass_on(self, command: Command, fd: int) -> None:
        try:
            data = os.read(fd, _PIECE)
        except BlockingIOError:
            return
        if data:
            self._output(command.number, command.streams[fd], data)
        else:
            del command.streams[fd]

    def _output(self, number: int, stream: int, data: bytes) -> None:
        self._unsent += Lines.message(
            "output", id=number, stream=stream, data=base64.b64encode(data).decode()
        )

    def _ended(self, command: Command) -> None:
        # Something that it left behind may hold the streams open: what is there now is all.
        for fd in list(command.streams):
            before = -1
            while fd in command.streams and len(self._unsent) != before:
                before = len(self._unsent)
                self._pass_on(command, fd)
        self._unsent += Lines.message("ended", id=command.number, status=command.finish())
        self._command = None

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: os.write(self._port, self._unsent[:_PIECE])]


def unpack(name: str) -> Path:
    """The folder that the tar of this name is unpacked to; the name changes with the content."""
    folder = _PACKAGES / name
    if not folder.exists():
        half_made = folder.with_name(f".{name}")
        with tarfile.open(LAB / name) as tar:
            tar.extractall(half_made)  # noqa: S202 - the host's own, made for this
        half_made.rename(folder)
    return folder


def find_port() -> Path:
    """The device file of our console port."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                return Path("/dev") / name.parent.name
        time.sleep(0.05)  # the host tells its name a moment after the driver was loaded


def main() -> None:
    """Serves the host."""
    _PACKAGES.mkdir(parents=True, exist_ok=True)
    port = os.open(find_port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    Agent(port, once="once" in sys.argv).serve()


if __name__ == "__main__":
    main()
