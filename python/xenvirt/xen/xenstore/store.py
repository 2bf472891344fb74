"""The xenstore, blocking: what a program in dom0 or a driver domain asks and is told."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from xenvirt.errors import ForkError, XenStoreError

from . import operations, replay
from .connection import Connection
from .nodes import Nodes
from .operations import Call, Request
from .protocol import Fired, Protocol, Reply, failure
from .transaction import Transaction
from .watch import Watch

T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds that an answer may take, unless told otherwise."""


class XenStore(Nodes):
    """A connection to the xenstore.

    ::

        with XenStore() as store:
            name = store.read(f"/local/domain/{domid}/name")
            with store.watch(f"/local/domain/{domid}/device") as watch:
                for event in watch:
                    print(event.path)

    A path without "/" at its beginning lies below ``/local/domain/N``, N being this domain. The object may be
    used from several threads, but not in a child after fork (ForkError). When the daemon is gone
    (ECONNRESET) it cannot be used any more. After a timeout it can over the socket, and cannot over the
    device: Linux keeps a request there in one place, and the next one would overwrite what was not sent yet.

    Args:
        path: the daemon's socket, or the kernel's device ``/dev/xen/xenbus``; by default what XENSTORED_PATH
            names, else the first of these that exists.
        timeout: seconds that an answer may take. The kernel's device keeps it for everything but setting and
            taking back a watch, in which the kernel itself waits.

    Raises:
        XenStoreError: it cannot be reached.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._connection = Connection(path, timeout)
        self._protocol = Protocol(self._connection.payload_max)
        self._replies: dict[int, Reply | None] = {}
        self._watches: dict[str, Watch] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._tokens = 0
        self._broken: XenStoreError | None = None

    @property
    def path(self) -> str:
        """What it is connected to."""
        return self._connection.path

    # ---- domains

    def domain_path(self, domid: int) -> str:
        """Where a domain's own nodes are, ``/local/domain/N``, whether it exists or not."""
        return self._run(operations.domain_path(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the xenstore talks to this domain: it was made, and is not destroyed."""
        return self._run(operations.is_domain_introduced(domid))

    # ---- watches

    def watch(self, *paths: str, token: str | None = None) -> Watch:
        """Watches paths and all below them; also ``"@introduceDomain"`` and ``"@releaseDomain"``.

        Each is reported once at the beginning, so what is there already need not be asked for separately.

        Args:
            paths: what to watch; more can be added to the watch later.
            token: what each event carries; by default a new one.

        Raises:
            ValueError: another watch of this connection has the token.
            XenStoreError: the xenstore refused one of the paths (E2BIG: too many watches).
        """
        with self._lock:
            if token is None:
                self._tokens += 1
                token = f"xenvirt-{self._tokens}"
            if operations.checked_token(token) in self._watches:
                raise ValueError(f"token {token!r} is the one of another watch of this connection")
            watch = self._watches[token] = Watch(self, token)
        try:
            for path in paths:
                watch.add(path)
        except BaseException:
            watch.close()
            raise
        return watch

    # ---- transactions

    def transaction(self) -> Transaction:
        """Operations that happen all at once, or not at all.

        ::

            with store.transaction() as transaction:
                state = transaction.read(f"{path}/state")
                transaction.write(f"{path}/state", int(state) + 1)

        The block ends with a commit; an exception in it discards all. Where others have changed what was
        touched, the operations are done again, up to 16 times, as long as they give the same answers as
        before; when one differs, leaving the block raises XenStoreError with EAGAIN, and nothing has changed.
        """
        return Transaction(self)

    def transact(self, function: Callable[[Transaction], T]) -> T:
        """Calls a function with a transaction, again and again until nobody has changed what it read.

        ::

            store.transact(lambda t: t.write("counter", int(t.read("counter")) + 1))

        Raises:
            XenStoreError: EAGAIN, 16 times in a row.
        """
        for left in reversed(range(replay.COMMIT_TRIES)):
            try:
                with self.transaction() as transaction:
                    return function(transaction)
            except XenStoreError as error:
                if error.errno != errno.EAGAIN or not transaction.conflicted or not left:
                    raise
        raise AssertionError("unreachable")

    # ---- life

    def close(self) -> None:
        """Closes the connection; its watches end, its transactions are discarded."""
        with self._lock:
            for watch in tuple(self._watches.values()):
                watch._end()
            self._watches.clear()
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"XenStore({self.path!r})"

    # ---- parts

    def _do(self, _subject: str, make: Callable[[int], Call[T]]) -> T:
        return self._run(make(0))

    def _run(self, call: Call[T]) -> T:
        """Runs an operation."""
        try:
            request = next(call)
            while True:
                try:
                    payload = self._exchange(request)
                except XenStoreError as error:
                    request = call.throw(error)
                else:
                    request = call.send(payload)
        except StopIteration as done:
            result: T = done.value
            return result

    def _exchange(self, request: Request) -> bytes:
        """Sends one request and waits for its reply."""
        deadline = time.monotonic() + self.timeout
        with self._lock:
            self._check(request)
            number, data = self._protocol.ask(request)
            self._replies[number] = None
            try:
                self._send(request, number, memoryview(data), deadline)
                while (reply := self._replies[number]) is None:
                    self._await(select.POLLIN, deadline, request)
                    self._pump()
            except BaseException:
                if not self._connection.is_socket and self._protocol.awaits(number):
                    self._break("a request was given up, and the kernel may still have it")
                raise
            finally:
                del self._replies[number]
        if reply.error is not None:
            raise reply.error
        return reply.payload

    def _send(self, request: Request, number: int, data: memoryview, deadline: float) -> None:
        """Sends all of a request. Once half of it is sent there is no way back but to lose the connection."""
        sent = 0
        try:
            while sent < len(data):
                try:
                    sent += self._connection.send(data[sent:])
                except BlockingIOError:
                    self._await(select.POLLIN | select.POLLOUT, deadline, request)
                    self._pump()
        except XenStoreError:
            if sent:
                self._break("the connection was given up in the middle of a request")
            self._protocol.forget(number)
            raise
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise self._break("the daemon hung up") from error
            # The kernel's device refuses some requests itself, by an errno of write().
            self._protocol.forget(number)
            raise failure(request, error.errno or errno.EIO) from error

    def _await(self, events: int, deadline: float, request: Request) -> None:
        poller = select.poll()
        poller.register(self._connection.fileno(), events)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise XenStoreError(
                f"{request.operation.name} of {request.subject}: no answer from {self.path} in "
                f"{self.timeout} s",
                errno.ETIMEDOUT,
                request.subject,
            )

    def _pump(self) -> None:
        """Takes what has come, without waiting, and puts it where it belongs."""
        with self._lock:
            try:
                data = self._connection.receive()
            except BlockingIOError:
                return
            except OSError as error:
                raise self._break(f"the connection failed: {error.strerror}") from error
            if not data:
                raise self._break("the daemon hung up")
            try:
                for came in self._protocol.receive(data):
                    if isinstance(came, Fired):
                        if (watch := self._watches.get(came.token)) is not None:
                            watch._put(came.path)
                    elif came.request in self._replies:
                        self._replies[came.request] = came
            except XenStoreError as error:
                self._break(str(error))
                raise

    def _break(self, why: str) -> XenStoreError:
        """The connection is of no use any more."""
        self._broken = XenStoreError(
            f"the connection to the xenstore at {self.path} is lost: {why}", errno.ECONNRESET, self.path
        )
        self._connection.close()
        for watch in self._watches.values():
            watch._wake()
        return self._broken

    def _check(self, request: Request | None = None) -> None:
        if os.getpid() != self._pid:
            raise ForkError("this XenStore belongs to the parent process: make a new one after fork")
        if self._broken is not None:
            raise XenStoreError(str(self._broken), errno.ECONNRESET, request.subject if request else None)
        if self._connection.fileno() < 0:
            raise ValueError("this XenStore is closed")
