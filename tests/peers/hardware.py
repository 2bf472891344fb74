"""The hardware that a daemon wants and this host has not, played by the test: the other end of hardware.c."""

import errno
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

_PACKET = 1 << 17


def compile_shim(folder: Path) -> Path:
    """The library for LD_PRELOAD."""
    library = folder / "hardware.so"
    source = Path(__file__).with_name("hardware.c")
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True)
class Part:
    """A buffer of an ioctl, with the bytes that were in it when the daemon asked."""

    address: int
    """Of an I2C message; for SPI the number of the transfer."""
    flags: int
    data: bytes

    @property
    def is_read(self) -> bool:
        """Whether the answer replaces the bytes."""
        return bool(self.flags & 1)


@dataclass(frozen=True)
class Ioctl:
    """What the daemon asked of its hardware."""

    number: int
    parts: tuple[Part, ...]


Answer = Callable[[Ioctl], Sequence[bytes] | int]
"""Gives the new bytes of each part that is read (zeroes follow), or the result: a negative errno refuses."""


def refuse(_: Ioctl) -> int:
    """The answer of hardware that knows no ioctl."""
    return -errno.ENOTTY


class Stream:
    """A CAN bus or an input device: what the daemon writes is kept, and what the test sends it can read."""

    def __init__(self, path: Path) -> None:
        self.received: list[bytes] = []
        self._changed = threading.Condition()
        self._connections: list[socket.socket] = []
        self.listener = _listen(path)
        _thread(self._accept)

    def _accept(self) -> None:
        for connection in _connections(self.listener):
            with self._changed:
                self._connections.append(connection)
                self._changed.notify_all()
            _thread(partial(self._read, connection))

    def _read(self, connection: socket.socket) -> None:
        while data := _receive(connection):
            with self._changed:
                self.received.append(data)
                self._changed.notify_all()
        with self._changed:
            self._connections.remove(connection)

    def send(self, data: bytes, timeout: float = 10) -> None:
        """Sends a packet to everybody who has this open, and waits until somebody has."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._connections, timeout), "nobody has opened this"
            for connection in self._connections:
                with suppress(OSError):  # just closed; its reader sees it too
                    connection.send(data)

    def wait_for(self, count: int, timeout: float = 10) -> list[bytes]:
        """The packets that came, once there are `count`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.received) >= count, timeout)
            assert len(self.received) >= count, f"{len(self.received)} packets came, {count} were wanted"
            return list(self.received)


class Hardware:
    """A folder with what a daemon finds below /dev and /sys, and answers to its ioctls.

    Start the daemon with `environment`. `ioctls` has what it asked, in order.
    """

    def __init__(self, shim: Path, folder: Path, answer: Answer = refuse) -> None:
        self.folder = folder
        self.answer = answer
        self.ioctls: list[Ioctl] = []
        self.environment = {"LD_PRELOAD": str(shim), "HARDWARE": str(folder)}
        folder.mkdir()
        self._listeners = [_listen(folder / "ioctl")]
        _thread(self._accept)

    def file(self, path: str, content: str = "") -> None:
        """Lays a file over `path`, which is below /dev or /sys."""
        over = self.folder / path.strip("/")
        over.parent.mkdir(parents=True, exist_ok=True)
        over.write_text(content)

    def stream(self, path: str) -> Stream:
        """Lays a stream over `path`; CAN sockets all open the one called "can"."""
        over = self.folder / path.strip("/")
        over.parent.mkdir(parents=True, exist_ok=True)
        stream = Stream(over)
        self._listeners.append(stream.listener)
        return stream

    def close(self) -> None:
        """Takes no more daemons."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        for connection in _connections(self._listeners[0]):
            _thread(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        # The daemon may be ended while it waits for an answer.
        with connection, suppress(ConnectionError):
            while packet := _receive(connection):
                asked = _parse(packet)
                self.ioctls.append(asked)
                answer = self.answer(asked)
                connection.send(
                    struct.pack("=i", answer) if isinstance(answer, int) else _reply(asked, answer)
                )


def _parse(packet: bytes) -> Ioctl:
    number, count = struct.unpack_from("=II", packet)
    parts, offset = [], 8
    for _ in range(count):
        address, flags, length = struct.unpack_from("=III", packet, offset)
        offset += 12
        parts.append(Part(address, flags, packet[offset : offset + length]))
        offset += length
    return Ioctl(number, tuple(parts))


def _reply(asked: Ioctl, answer: Sequence[bytes]) -> bytes:
    read = [part for part in asked.parts if part.is_read]
    assert len(answer) == len(read), f"{len(answer)} answers to {len(read)} parts of ioctl {asked.number:#x}"
    # The kernel's evdev returns how much it copied.
    result = len(answer[0]) if asked.number >> 8 & 0xFF == ord("E") else 0
    whole = [data.ljust(len(part.data), b"\0") for data, part in zip(answer, read, strict=True)]
    return struct.pack("=i", result) + b"".join(whole)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    return listener


def _connections(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed
            return
        yield connection


def _receive(connection: socket.socket) -> bytes:
    """One packet; nothing, and the connection closed, when the other side is gone."""
    try:
        data = connection.recv(_PACKET)
    except ConnectionError:
        data = b""
    if not data:
        connection.close()
    return data


def _thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="hardware", daemon=True).start()
