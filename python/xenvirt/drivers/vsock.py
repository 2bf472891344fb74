"""The driver of the socket device (virtio 1.3, section 5.10), with streams that behave like sockets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from xenvirt.virtio.vsock import HOST_CID, VsockConfig

from .driver import Driver
from .receiver import LINKS_TIMEOUT, wait_until
from .request import Link, Pending, Request
from .vsock_core import State
from .vsock_requests import EVENT_BUFFERS, MOST_UNDER_WAY, RECEIVE_BUFFERS, VsockRequests
from .vsock_stream import REASONS, VsockListener, VsockStream


class VsockDriver(VsockRequests, Driver):
    """Connects to ports of the host, and takes connections from it.

    ::

        with connect("vsock.sock") as link, VsockDriver(link) as vsock:
            with vsock.connect(1234) as stream:
                stream.sendall(b"hello")
                print(stream.recv(100))
            with vsock.listen(5000) as listener:
                stream, (cid, port) = listener.accept()

    It is for one thread, like its link: what comes from the device is dealt with while some call here waits,
    or in :meth:`pump`.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._arrived: deque[Pending[Any]] = deque()
        self._under_way = 0
        for _ in range(RECEIVE_BUFFERS):
            self._lend(self.receive_request())
        for _ in range(EVENT_BUFFERS):
            self._lend(self.event_request())

    def connect(
        self,
        port: int,
        *,
        cid: int = HOST_CID,
        local_port: int | None = None,
        timeout: float | None = LINKS_TIMEOUT,
    ) -> VsockStream:
        """Connects to `port` of `cid`.

        Args:
            port: the port there.
            cid: the other end's address; 2 is the host.
            local_port: our port; by default one that is free.
            timeout: how long it may take, in seconds; by default the link's timeout.

        Raises:
            ConnectionRefusedError: nobody listens there.
            LinkTimeoutError: no answer came in time.
        """
        connection = self.core.connect(port, cid, local_port)
        try:
            self.wait(
                lambda: connection.state is not State.CONNECTING,
                timeout,
                f"connection to port {port} of CID {cid}",
            )
        except BaseException:
            connection.reset()
            raise
        if connection.error is not None:
            raise connection.error(f"port {port} of CID {cid}: {REASONS[connection.error]}")
        return VsockStream(self, connection)

    def listen(self, port: int, backlog: int = 8) -> VsockListener:
        """Takes connections on `port` from now on, at most `backlog` that nobody has accepted yet.

        Raises:
            OSError: (EADDRINUSE) that is done already.
        """
        return VsockListener(self, self.core.listen(port, backlog))

    def pump(self, timeout: float | None = 0) -> None:
        """Deals with what the device has said, and sends what waits for it.

        Args:
            timeout: how long to wait for the device first, in seconds; None waits for ever.
        """
        self._deal()
        if timeout != 0:
            self.link.attend(timeout)
            self._deal()

    def wait(self, done: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Pumps until ``done()``; `what` is for the error message. A negative timeout is the link's.

        Raises:
            LinkTimeoutError: it took longer than `timeout` seconds.
        """

        def dealt() -> bool:
            self._deal()
            return done()

        wait_until(self.link, dealt, timeout, what)

    def _deal(self) -> None:
        self.link.collect()
        while self._arrived:
            pending = self._arrived.popleft()
            result = pending.result()
            if isinstance(result, bytes):
                self.core.heard(result)
                self._lend(self.receive_request())
            else:
                self._moved(self.link.config(0, VsockConfig.size()))
                self._lend(self.event_request())
        if self.core.closing:
            self.core.expire(time.monotonic())
        for request in self._next_packets(MOST_UNDER_WAY - self._under_way):
            self._under_way += 1
            self._when_done(request, self._sent)

    def _lend(self, request: Request[Any]) -> None:
        self._when_done(request, self._arrived.append)

    def _when_done(self, request: Request[Any], then: Callable[[Pending[Any]], object]) -> None:
        pending = self.link.submit(request)
        if pending.done:
            then(pending)
        else:
            pending.callback = then

    def _sent(self, _: object) -> None:
        self._under_way -= 1
