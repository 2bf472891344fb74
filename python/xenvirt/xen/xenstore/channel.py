"""The way to the xenstore, blocking: one request at a time, and events whenever they come."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from typing import TypeVar

from xenvirt.errors import ForkError, XenStoreError

from .arrivals import Arrivals
from .connection import Connection
from .operations import Call, Request
from .protocol import Fired, Protocol, Reply, failure

T = TypeVar("T")


class Channel:
    """A connection, what was asked on it, and who is told of events.

    Attributes:
        path: what it is connected to.
        timeout: seconds that an answer may take.
        watches: who is told of events, by token.
        lock: held for a request and its answer, and whenever `watches` changes.
        broken: why the connection is of no use any more.
    """

    def __init__(self, path: str | os.PathLike[str] | None, timeout: float) -> None:
        self.timeout = timeout
        self.watches: dict[str, Arrivals] = {}
        self.lock = threading.RLock()
        self.broken: XenStoreError | None = None
        self._connection = Connection(path, timeout)
        self._protocol = Protocol(self._connection.payload_max)
        self._replies: dict[int, Reply | None] = {}
        self._pid = os.getpid()

    @property
    def path(self) -> str:
        """What it is connected to."""
        return self._connection.path

    def fileno(self) -> int:
        """The connection's descriptor: readable when `pump` has something to do; -1 when it is closed."""
        return self._connection.fileno()

    def close(self) -> None:
        """Closes the connection; watches end with it."""
        with self.lock:
            for arrivals in self.watches.values():
                arrivals.end()
            self.watches.clear()
            self._connection.close()

    def run(self, call: Call[T]) -> T:
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
        with self.lock:
            self.check(request)
            number, data = self._protocol.ask(request)
            self._replies[number] = None
            try:
                self._send(request, number, memoryview(data), deadline)
                while (reply := self._replies[number]) is None:
                    self._await(select.POLLIN, deadline, request)
                    self.pump()
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
                    self.pump()
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

    def pump(self) -> None:
        """Takes what has come, without waiting, and puts it where it belongs.

        Raises:
            XenStoreError: ECONNRESET, the connection is lost.
        """
        with self.lock:
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
                        if (arrivals := self.watches.get(came.token)) is not None:
                            arrivals.put(came.path)
                    elif came.request in self._replies:
                        self._replies[came.request] = came
            except XenStoreError as error:
                self._break(str(error))
                raise

    def _break(self, why: str) -> XenStoreError:
        """The connection is of no use any more."""
        self.broken = XenStoreError(
            f"the connection to the xenstore at {self.path} is lost: {why}", errno.ECONNRESET, self.path
        )
        self._connection.close()
        for arrivals in self.watches.values():
            arrivals.wake()
        return self.broken

    def check(self, request: Request | None = None) -> None:
        """Raises what keeps the connection from being used, if anything does."""
        if os.getpid() != self._pid:
            raise ForkError("this XenStore belongs to the parent process: make a new one after fork")
        if self.broken is not None:
            raise XenStoreError(str(self.broken), errno.ECONNRESET, request.subject if request else None)
        if self._connection.fileno() < 0:
            raise ValueError("this XenStore is closed")
