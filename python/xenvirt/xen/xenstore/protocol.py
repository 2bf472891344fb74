"""One connection's side of the protocol, without the connection: requests out, replies and events in.

Requests are numbered; a reply is matched by its number, so several may be on their way. Watch events come
between them at any time (docs/misc/xenstore.txt, "A caller who sends several requests", WATCH_EVENT).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from xenvirt.errors import XenStoreError

from .operations import Request
from .wire import PAYLOAD_MAX, Decoder, Message, Operation, encode

_HINTS = {
    errno.ENOENT: "no such node",
    errno.EACCES: "its permissions do not allow it to this domain (permissions() shows them)",
    errno.EINVAL: "the xenstore finds the request malformed",
    errno.EEXIST: "it exists already",
    errno.ENOSPC: "this domain's quota of nodes, or of bytes in one, is used up",
    errno.EAGAIN: "others changed what the transaction had read or written",
    errno.E2BIG: "it is more than the xenstore gives or takes at once",
    errno.EPERM: "domain 0 alone may do that",
    errno.ENOSYS: "this xenstore does not know the operation",
    errno.EROFS: "this connection may only read",
    errno.EISCONN: "the domain is connected already",
}


@dataclass(frozen=True)
class Reply:
    """What came for a request: a payload, or an error."""

    request: int
    payload: bytes
    error: XenStoreError | None


@dataclass(frozen=True)
class Fired:
    """What came for a watch."""

    path: str
    token: str


class Protocol:
    """Gives the bytes of requests; makes replies and watch events of the bytes that come.

    When what comes makes no sense it raises XenStoreError with EPROTO, and the connection is to be closed.
    """

    def __init__(self, payload_max: int = PAYLOAD_MAX) -> None:
        self._decoder = Decoder()
        self._asked: dict[int, Request] = {}
        self._last = 0
        self._payload_max = payload_max

    def ask(self, request: Request) -> tuple[int, bytes]:
        """The number of a request, and the bytes to send.

        Raises:
            ValueError: it is longer than what passes here.
        """
        if (excess := len(request.payload) - self._payload_max) > 0:
            name = request.subject if len(request.subject) <= 60 else f"{request.subject[:57]}..."
            raise ValueError(
                f"{request.operation.name} of {name} is too long by {excess} bytes: the path, a zero and "
                f"what follows have at most {self._payload_max} together, on this way to the xenstore"
            )
        number = self._last = self._last % 0xFFFF_FFFF + 1
        data = encode(Message(request.operation, number, request.transaction, request.payload))
        self._asked[number] = request
        return number, data

    def awaits(self, number: int) -> bool:
        """Whether the reply has not come."""
        return number in self._asked

    def forget(self, number: int) -> None:
        """The request was not sent after all."""
        self._asked.pop(number, None)

    def receive(self, data: bytes) -> Iterator[Reply | Fired]:
        """What is whole after the next bytes."""
        try:
            for message in self._decoder.feed(data):
                if message.operation == Operation.WATCH_EVENT:
                    yield self._fired(message)
                else:
                    yield self._reply(message)
        except ValueError as error:
            raise XenStoreError(f"the xenstore sent what is no message: {error}", errno.EPROTO) from error

    def _reply(self, message: Message) -> Reply:
        request = self._asked.pop(message.request, None)
        if request is None:
            raise ValueError(f"a reply to request {message.request}, which was not sent")
        if message.operation not in (request.operation, Operation.ERROR):
            raise ValueError(f"a reply of type {message.operation} to {request.operation.name}")
        if message.operation == Operation.ERROR:
            return Reply(message.request, b"", refusal(request, message.payload))
        return Reply(message.request, message.payload, None)

    @staticmethod
    def _fired(message: Message) -> Fired:
        parts = message.payload.split(b"\0")
        if len(parts) < 3:
            raise ValueError(f"a watch event without path and token: {message.payload[:64]!r}")
        path, token = (part.decode("ascii", "surrogateescape") for part in parts[:2])
        return Fired(path, token)


def refusal(request: Request, payload: bytes) -> XenStoreError:
    """The error that an ERROR reply to a request stands for: its payload is the name of an errno.

    xs_wire.h lists those that a daemon may send (xsd_errors); every one that Linux has is understood.
    """
    name = payload.rstrip(b"\0").decode("ascii", "replace")
    number = getattr(errno, name, None) if name.startswith("E") else None
    if not isinstance(number, int):
        return XenStoreError(
            f"{request.operation.name} of {request.subject}: the xenstore answers with an error that nobody "
            f"knows: {name!r}",
            errno.EPROTO,
            request.subject,
        )
    return failure(request, number)


def failure(request: Request, number: int) -> XenStoreError:
    """The error for a request that failed with an errno."""
    name = errno.errorcode.get(number, str(number))
    why = _HINTS.get(number) or os.strerror(number)
    return XenStoreError(
        f"{request.operation.name} of {request.subject}: {why} ({name})", number, request.subject
    )
