"""What can be asked of the xenstore, without saying how the bytes travel.

Each operation is a generator: it yields requests, is sent the payload of each reply, and returns the result.
An error reply is thrown into it. The blocking store and the one on asyncio run the same generators.
(docs/misc/xenstore.txt has the payload of each request and reply.)
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable
from typing import NamedTuple, TypeAlias, TypeVar

from xenvirt.errors import XenStoreError

from .paths import checked
from .permissions import Permission, checked_domid, checked_permissions
from .wire import Operation

T = TypeVar("T")


class Request(NamedTuple):
    """One message to the daemon; `subject` says in errors what it was about."""

    operation: Operation
    payload: bytes
    subject: str
    transaction: int = 0


Call: TypeAlias = Generator[Request, bytes, T]

LIST_TRIES = 100
"""How often the parts of a long list are read anew because the list has changed meanwhile."""


def read(path: str, transaction: int = 0) -> Call[bytes]:
    """READ: the value of a node."""
    return (yield _request(Operation.READ, path, transaction))


def write(path: str, value: bytes, transaction: int = 0) -> Call[None]:
    """WRITE: sets the value of a node; makes it, and the nodes above it, where they are missing."""
    _acknowledged((yield _request(Operation.WRITE, path, transaction, value)), path)


def make_directory(path: str, transaction: int = 0) -> Call[None]:
    """MKDIR: makes sure that a node exists; its value, if it does, stays."""
    _acknowledged((yield _request(Operation.MKDIR, path, transaction)), path)


def remove(path: str, transaction: int = 0) -> Call[None]:
    """RM: makes sure that a node and all below it do not exist."""
    _acknowledged((yield _request(Operation.RM, path, transaction)), path)


def children(path: str, transaction: int = 0) -> Call[tuple[str, ...]]:
    """DIRECTORY, and DIRECTORY_PART where the list is longer than a message: the names below a node."""
    try:
        payload = yield _request(Operation.DIRECTORY, path, transaction)
    except XenStoreError as error:
        if error.errno != errno.E2BIG:
            raise
    else:
        return _strings(payload, path)
    for _ in range(LIST_TRIES):
        names = yield from _children_in_parts(path, transaction)
        if names is not None:
            return names
    raise XenStoreError(
        f"{path}: its list of names changed each time that it was read, {LIST_TRIES} times",
        errno.EAGAIN,
        path,
    )


def _children_in_parts(path: str, transaction: int) -> Call[tuple[str, ...] | None]:
    """The long list, or None if the node changed between two parts of it."""
    generation: bytes | None = None
    listed = b""
    while True:
        payload = yield _request(Operation.DIRECTORY_PART, path, transaction, b"%d\0" % len(listed))
        now, separator, part = payload.partition(b"\0")
        if not separator or not part:
            raise _nonsense(path, payload)
        if generation is None:
            generation = now
        elif generation != now:
            return None
        # The end is an empty name: a 0 byte after the one that ends the last name.
        if part == b"\0" or part.endswith(b"\0\0"):
            return _strings(listed + part[:-1], path)
        listed += part


def permissions(path: str, transaction: int = 0) -> Call[tuple[Permission, ...]]:
    """GET_PERMS."""
    payload = yield _request(Operation.GET_PERMS, path, transaction)
    try:
        return tuple(map(Permission.parse, _strings(payload, path)))
    except ValueError as error:
        raise _nonsense(path, payload) from error


def set_permissions(path: str, wanted: Iterable[Permission | str], transaction: int = 0) -> Call[None]:
    """SET_PERMS: replaces the whole list."""
    entries = b"".join(b"%s\0" % str(one).encode() for one in checked_permissions(wanted))
    _acknowledged((yield _request(Operation.SET_PERMS, path, transaction, entries)), path)


def watch(path: str, token: str) -> Call[None]:
    """WATCH."""
    _acknowledged((yield _request(Operation.WATCH, path, 0, token.encode() + b"\0")), path)


def unwatch(path: str, token: str) -> Call[None]:
    """UNWATCH."""
    _acknowledged((yield _request(Operation.UNWATCH, path, 0, token.encode() + b"\0")), path)


def start_transaction() -> Call[int]:
    """TRANSACTION_START: the number of the new transaction, never 0."""
    subject = "a new transaction"
    payload = yield Request(Operation.TRANSACTION_START, b"\0", subject)
    number = _number(payload, subject)
    if not 0 < number < 1 << 32:
        raise _nonsense(subject, payload)
    return number


def end_transaction(number: int, *, commit: bool) -> Call[None]:
    """TRANSACTION_END: EAGAIN if others changed what the transaction has touched."""
    subject = f"transaction {number}"
    payload = b"T\0" if commit else b"F\0"
    _acknowledged((yield Request(Operation.TRANSACTION_END, payload, subject, number)), subject)


def domain_path(domid: int) -> Call[str]:
    """GET_DOMAIN_PATH."""
    subject = f"domain {checked_domid(domid)}"
    payload = yield Request(Operation.GET_DOMAIN_PATH, b"%d\0" % domid, subject)
    return _string(payload, subject)


def is_domain_introduced(domid: int) -> Call[bool]:
    """IS_DOMAIN_INTRODUCED."""
    subject = f"domain {checked_domid(domid)}"
    payload = yield Request(Operation.IS_DOMAIN_INTRODUCED, b"%d\0" % domid, subject)
    answer = _string(payload, subject)
    if answer not in ("T", "F"):
        raise _nonsense(subject, payload)
    return answer == "T"


def checked_token(token: str) -> str:
    """The token of a watch itself.

    Raises:
        ValueError: it is empty, long, or not printable ASCII.
    """
    if not (0 < len(token) <= 512 and token.isascii() and token.isprintable()):
        raise ValueError(f"a watch's token is 1 to 512 printable ASCII characters, not {token!r}")
    return token


def _request(operation: Operation, path: str, transaction: int, rest: bytes = b"") -> Request:
    return Request(operation, checked(path).encode() + b"\0" + rest, path, transaction)


def _strings(payload: bytes, subject: str) -> tuple[str, ...]:
    if not payload:
        return ()
    if not payload.endswith(b"\0"):
        raise _nonsense(subject, payload)
    return tuple(name.decode("ascii", "surrogateescape") for name in payload[:-1].split(b"\0"))


def _string(payload: bytes, subject: str) -> str:
    strings = _strings(payload, subject)
    if len(strings) != 1:
        raise _nonsense(subject, payload)
    return strings[0]


def _number(payload: bytes, subject: str) -> int:
    text = _string(payload, subject)
    if not (text.isascii() and text.isdigit()):
        raise _nonsense(subject, payload)
    return int(text)


def _acknowledged(payload: bytes, subject: str) -> None:
    if payload != b"OK\0":
        raise _nonsense(subject, payload)


def _nonsense(subject: str, payload: bytes) -> XenStoreError:
    return XenStoreError(
        f"{subject}: the xenstore's answer makes no sense: {payload[:64]!r}", errno.EPROTO, subject
    )


def _short(path: str) -> str:
    return path if len(path) <= 60 else f"{path[:57]}..."


def value_bytes(path: str, value: str | bytes | int) -> bytes:
    """The bytes of a value that is to be written.

    Raises:
        TypeError: it is none of str, bytes, int.
        ValueError: it is text that is not ASCII.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"the value of {_short(path)} is a str, bytes or int, not {type(value).__name__}")
    try:
        return str(value).encode("ascii", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"the value of {_short(path)} is not ASCII: give bytes for {value!r}") from error
