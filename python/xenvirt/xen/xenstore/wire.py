"""The wire format of the xenstore: messages to and from bytes, and no more.

A message is a header of four 32-bit numbers in the machine's byte order (struct xsd_sockmsg) and at most 4096
bytes of payload: Xen's xen/include/public/io/xs_wire.h, and docs/misc/xenstore.txt, "Communication with
xenstore".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("=4I")
"""type, req_id, tx_id, len (xs_wire.h, struct xsd_sockmsg)."""

PAYLOAD_MAX = 4096
"""Bytes of payload, in both directions (XENSTORE_PAYLOAD_MAX). The daemon hangs up on who sends more."""


class Operation(IntEnum):
    """What a message is (xs_wire.h, enum xsd_sockmsg_type)."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Message(NamedTuple):
    """A whole message. `operation` is a plain number where it is none that we know."""

    operation: int
    request: int
    """req_id: the daemon's answer has the one of the request; 0 in a watch event."""
    transaction: int
    """tx_id; 0 outside of transactions."""
    payload: bytes


def encode(message: Message) -> bytes:
    """The bytes of a message.

    Raises:
        ValueError: its payload has more than 4096 bytes.
    """
    if len(message.payload) > PAYLOAD_MAX:
        raise ValueError(
            f"a message to the xenstore has at most {PAYLOAD_MAX} bytes of payload, not "
            f"{len(message.payload)}"
        )
    header = HEADER.pack(message.operation, message.request, message.transaction, len(message.payload))
    return header + message.payload


class Decoder:
    """Puts messages together from bytes that come in pieces of any length."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Takes the next piece; gives the messages that are whole now.

        Raises:
            ValueError: a header says more than 4096 bytes of payload: what comes is no xenstore, and nothing
                that follows can be made sense of.
        """
        self._bytes += data
        while len(self._bytes) >= HEADER.size:
            operation, request, transaction, length = HEADER.unpack_from(self._bytes)
            if length > PAYLOAD_MAX:
                raise ValueError(f"a message with {length} bytes of payload, of at most {PAYLOAD_MAX}")
            end = HEADER.size + length
            if len(self._bytes) < end:
                return
            payload = bytes(self._bytes[HEADER.size : end])
            del self._bytes[:end]
            yield Message(operation, request, transaction, payload)

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not whole."""
        return bool(self._bytes)
