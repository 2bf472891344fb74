"""A backend written from the specification with nothing but `struct` and `socket`: the frontend's oracle.

It answers one frontend, in a thread, and keeps every message as it came. What it offers and how it misbehaves
is settled beforehand.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

HEADER = struct.Struct("=III")
REGION = struct.Struct("=QQQQ")
XEN_REGION = struct.Struct("=QQQQII")

GET_FEATURES = 1
SET_FEATURES = 2
SET_OWNER = 3
SET_MEM_TABLE = 5
SET_VRING_NUM = 8
SET_VRING_ADDR = 9
SET_VRING_BASE = 10
GET_VRING_BASE = 11
SET_VRING_KICK = 12
SET_VRING_CALL = 13
SET_VRING_ERR = 14
GET_PROTOCOL_FEATURES = 15
SET_PROTOCOL_FEATURES = 16
GET_QUEUE_NUM = 17
SET_VRING_ENABLE = 18
SET_BACKEND_REQ_FD = 21
GET_CONFIG = 24
SET_CONFIG = 25
GET_MAX_MEM_SLOTS = 36
SET_STATUS = 39
GET_STATUS = 40

MQ = 1 << 0
REPLY_ACK = 1 << 3
BACKEND_REQ = 1 << 5
CONFIG = 1 << 9
STATUS = 1 << 16
XEN_MMAP = 1 << 17

PROTOCOL_FEATURES = 1 << 30
VERSION_1 = 1 << 32


@dataclass
class Received:
    """A message as it came; its files are closed with the backend."""

    request: int
    flags: int
    payload: bytes
    fds: list[int]

    @property
    def number(self) -> int:
        """The payload as one number."""
        return int.from_bytes(self.payload, "little")


Reaction = Callable[[Received], bytes | None]
"""What is sent in answer to a message, header and all; None for what a well-behaved backend answers."""


@dataclass
class FakeBackend:
    """Listens at `path` for one frontend, until that has closed its end."""

    path: Path
    features: int = PROTOCOL_FEATURES | VERSION_1
    protocol_features: int = MQ | REPLY_ACK | CONFIG
    config: bytes = b"0123456789"
    reactions: Mapping[int, Reaction] = field(default_factory=dict)
    hang_up_on: int | None = None
    hang_up_after: int | None = None
    received: list[Received] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._acked = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept up
        self._thread.join()
        self._listener.close()
        for message in self.received:
            for fd in message.fds:
                os.close(fd)

    def of(self, request: int) -> list[Received]:
        """The messages of that number, in the order in which they came."""
        return [message for message in self.received if message.request == request]

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # closed before anybody came
        with connection, suppress(ConnectionError):  # the frontend need not hear us out
            while (message := self._receive(connection)) is not None:
                self.received.append(message)
                if message.request == self.hang_up_on:
                    break
                reaction = self.reactions.get(message.request)
                answer = reaction(message) if reaction else None
                answer = self._answer(message) if answer is None else answer
                if answer:
                    connection.sendall(answer)
                if message.request == self.hang_up_after:
                    break

    def _receive(self, connection: socket.socket) -> Received | None:
        data, fds = b"", list[int]()
        size = HEADER.size
        while len(data) < size:
            piece, came, _, _ = socket.recv_fds(connection, size - len(data), 40)
            if not piece:
                return None
            data += piece
            fds += came
            if len(data) == HEADER.size:
                size += HEADER.unpack(data)[2]
        request, flags, _ = HEADER.unpack_from(data)
        return Received(request, flags, data[HEADER.size :], fds)

    def _answer(self, message: Received) -> bytes:
        match message.request:
            case 1:
                return number_reply(message, self.features)
            case 15:
                return number_reply(message, self.protocol_features)
            case 16:
                self._acked = message.number
            case 17:
                return number_reply(message, 2)
            case 11:
                index, _ = struct.unpack("=II", message.payload)
                return reply(message, struct.pack("=II", index, 42))
            case 24:
                offset, size, flags = struct.unpack_from("=III", message.payload)
                data = self.config[offset : offset + size]
                return reply(message, struct.pack("=III", offset, len(data), flags) + data)
            case 40:
                return number_reply(message, 15)
        if message.flags & 8 and self._acked & REPLY_ACK:
            return number_reply(message, 0)
        return b""


def reply(message: Received, payload: bytes) -> bytes:
    """A reply as it stands on the wire."""
    return HEADER.pack(message.request, 5, len(payload)) + payload


def number_reply(message: Received, number: int) -> bytes:
    """A reply that is one number."""
    return reply(message, struct.pack("=Q", number))
