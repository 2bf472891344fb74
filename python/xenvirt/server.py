"""Serving devices: ``serve`` for one, ``Server`` for several, ``serve_async`` for asyncio."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import NamedTuple, Self, overload

from xenvirt._native import Endpoint, Event, QueueWorker, Relay
from xenvirt._service import AsyncService, Service
from xenvirt.device import AnyDevice, AsyncDevice, Device, config_bytes
from xenvirt.remote import Relayed, RelayService, RemoteDevice
from xenvirt.transport import DaemonTransport, Transport
from xenvirt.vhost_user.socket import VhostUserSocket
from xenvirt.virtio.features import offered_features

RECONNECT_SECONDS = 0.1
"""How often a transport that connects looks whether the frontend listens (again)."""

POLL_SECONDS = 50e-6
"""For how long a device's thread looks on before it sleeps, unless told otherwise: about what it costs to
fall asleep and be woken. QEMU's I/O threads do the same, for up to 32 us."""


class Counters(NamedTuple):
    """What a queue, or a device, has done since it was added: totals over all sessions."""

    kicks: int = 0
    """Notifications from the driver that were dealt with."""
    chains: int = 0
    """Descriptor chains taken from the ring."""
    bytes_read: int = 0
    """Bytes read from the driver's buffers."""
    bytes_written: int = 0
    """Bytes written to the driver's buffers."""
    calls: int = 0
    """Notifications sent to the driver."""
    errors: int = 0
    """Times that the queue went into its error state."""


class Served:
    """A device that a :class:`Server` serves, and what can be seen of it from outside.

    Attributes:
        device: the device.
        transport: where it is served.
    """

    def __init__(self, device: AnyDevice, transport: Transport, endpoint: Endpoint) -> None:
        self.device = device
        self.transport = transport
        self._endpoint = endpoint

    @property
    def features(self) -> int:
        """The feature bits that the driver of the present session agreed to; 0 while there is none."""
        return self._endpoint.negotiated_features

    @property
    def protocol_features(self) -> int:
        """The vhost-user protocol feature bits of the present connection; 0 while there is none."""
        return self._endpoint.negotiated_protocol_features

    @property
    def queue_counters(self) -> tuple[Counters, ...]:
        """The counters of each queue."""
        return tuple(Counters(*queue.counters) for queue in self._endpoint.queues)

    @property
    def counters(self) -> Counters:
        """The counters of all queues together."""
        return Counters(*map(sum, zip(*self.queue_counters, strict=True)))


class Server:
    """Serves any number of devices, each behind its own transport and on a thread of its own.

    ::

        with Server() as server:
            disk = server.add(RamDisk(131072), VhostUserSocket("disk.sock"))
            server.wait()

    Leaving the block stops everything: sessions end (each device gets its ``reset``), sockets are removed.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._endpoints: list[Endpoint | Relay] = []
        self._error: BaseException | None = None
        # stop() and signals write to it, wait() polls it: no wake-up can be lost between the two.
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._stopping = threading.Event()
        self._count = threading.Lock()
        self._serving = 0
        self._stop_with_last = False

    @overload
    def add(self, device: Device, transport: Transport, *, poll: float = POLL_SECONDS) -> Served: ...
    @overload
    def add(
        self, device: RemoteDevice, transport: VhostUserSocket, *, poll: float = POLL_SECONDS
    ) -> Relayed: ...
    @overload
    def add(
        self, device: Device | RemoteDevice, transport: Transport, *, poll: float = POLL_SECONDS
    ) -> Served | Relayed: ...
    def add(
        self, device: Device | RemoteDevice, transport: Transport, *, poll: float = POLL_SECONDS
    ) -> Served | Relayed:
        """Opens the transport and serves ``device`` there from now on.

        Args:
            device: the device, or a daemon that is one.
            transport: where it is served.
            poll: how many seconds after its last request the device's thread looks at the queues again and
                again before it sleeps; 0 sleeps at once. It takes a whole core for that time, and saves the
                driver's kicks and our waking up.

        Raises:
            OSError: the transport cannot be opened.
            TypeError: ``device`` is an :class:`AsyncDevice`: those are served by :func:`serve_async`; or a
                daemon, which this transport does not take.
            ValueError: the device is served already, its queues are impossible, or the server is stopped.
            NegotiationError, DisconnectedError: the device is a daemon, and cannot be used there, or is not
                there at all.
        """
        if isinstance(device, AsyncDevice):
            raise TypeError(f"{type(device).__name__} is an AsyncDevice: serve it with serve_async")
        if self._stopping.is_set():
            raise ValueError("this server was stopped; make a new one")
        if isinstance(device, RemoteDevice):
            if isinstance(transport, VhostUserSocket):
                return self._add_remote(device, transport)
            if not isinstance(transport, DaemonTransport):
                raise TypeError(
                    f"{device!r} cannot be served at {transport!r}, but at a VhostUserSocket or a XenGuest"
                )
            device = transport.remote_backend(device)
        endpoint = make_endpoint(device, poll=poll)
        service = Service(device, endpoint, f"{type(device).__name__} at {transport!r}")
        attach = partial(transport.attach, endpoint, device.device_id)
        try:
            attach()
        except BaseException:
            service.close()
            raise
        workers = (
            [endpoint.worker(queue.index) for queue in endpoint.queues] if device.thread_per_queue else []
        )
        self._endpoints.append(endpoint)
        for worker in workers:
            self._start(f"{service.label} queue {worker.index}", partial(_serve_queue, service, worker))
        queue_threads = self._threads[len(self._threads) - len(workers) :]
        self._start(service.label, partial(_serve, service, transport, attach, queue_threads))
        return Served(device, transport, endpoint)

    def _add_remote(self, device: RemoteDevice, transport: VhostUserSocket) -> Relayed:
        service = RelayService(device, f"{device!r} at {transport!r}")
        attach = partial(transport.attach, service.endpoint)
        try:
            attach()
        except BaseException:
            service.close()
            raise
        self._endpoints.append(service.endpoint)
        self._start(service.label, partial(_serve, service, transport, attach, []))
        return Relayed(device, transport, service.endpoint)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the server is stopped, at most ``timeout`` seconds. True if it was.

        Raises:
            Exception: what ended a serving thread, if it was not :meth:`stop`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        while not self._stopping.is_set():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if poller.poll(None if left is None else left * 1000):
                self._wake_read.recv(4096)
        if self._error is not None:
            raise self._error
        return True

    def stop(self) -> None:
        """Stops serving; may be called from any thread and from a signal handler. Returns at once."""
        self._stopping.set()
        for endpoint in self._endpoints:
            endpoint.stop()
        self._wake()

    def stop_with_last(self) -> None:
        """Stops the server when nothing is left to be served: each guest is gone, and each connection that
        somebody gave us is over."""
        with self._count:
            self._stop_with_last = True
            if self._serving == 0:
                self.stop()

    def close(self) -> None:
        """Stops serving, and waits until every device has had its ``reset`` and each thread has ended."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._wake_read.close()
        self._wake_write.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except OSError as error:
            # Full is as good as written; closed means that nobody waits any more.
            if error.errno not in (errno.EAGAIN, errno.EBADF):
                raise

    def _start(self, name: str, serve: Callable[[], None]) -> None:
        def run() -> None:
            try:
                serve()
            except BaseException as error:
                self._error = error
                self.stop()
            with self._count:
                self._serving -= 1
                if self._serving == 0 and self._stop_with_last:
                    self.stop()

        with self._count:
            self._serving += 1

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the server inside this block, if it is entered on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        wakeup = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)
            signal.set_wakeup_fd(wakeup)


def serve(
    device: Device | RemoteDevice,
    transport: Transport,
    *,
    poll: float = POLL_SECONDS,
    ready_fd: int | None = None,
) -> None:
    """Serves ``device`` over ``transport`` until Ctrl-C, SIGTERM or an error, or until the guest is gone.

    On the main thread it takes SIGINT and SIGTERM, and gives their handlers back at the end. Once the
    transport is open it tells systemd (``sd_notify``, when ``NOTIFY_SOCKET`` is set), and writes a newline
    to ``ready_fd``.

    Args:
        device: the device, or a :class:`~xenvirt.RemoteDevice`: somebody else's daemon.
        transport: where it is served.
        poll: see :meth:`Server.add`.
        ready_fd: a descriptor of the caller's.

    Raises:
        OSError: the transport cannot be opened.
        Exception: what ended the serving thread.
    """
    serve_all([(device, transport)], poll=poll, ready_fd=ready_fd)


def serve_all(
    pairs: Sequence[tuple[Device | RemoteDevice, Transport]],
    *,
    poll: float = POLL_SECONDS,
    ready_fd: int | None = None,
) -> None:
    """As :func:`serve`, for several devices, each over its own transport. It is ready once all are open."""
    with Server() as server, server._stop_on_signals():
        for device, transport in pairs:
            server.add(device, transport, poll=poll)
        tell_ready(ready_fd)
        server.wait()


async def serve_async(device: AnyDevice, transport: Transport, *, ready_fd: int | None = None) -> None:
    """As :func:`serve`, as a coroutine on the running event loop, until it is cancelled. Signals stay the
    caller's.

    Everything of the device runs on the event loop's thread. It serves an :class:`AsyncDevice`, and a plain
    one, whose ``process`` then must not block.
    """
    endpoint = make_endpoint(device)
    service = AsyncService(device, endpoint, f"{type(device).__name__} at {transport!r}")
    try:
        connected = transport.attach(endpoint, device.device_id)
        tell_ready(ready_fd)
        while transport.connect:
            if connected:
                await service.disconnected()
            await asyncio.sleep(RECONNECT_SECONDS)
            connected = transport.attach(endpoint, device.device_id)
        # One that listens goes on for ever; a connection that somebody gave us ends with its frontend.
        await service.disconnected()
        while transport.listens:
            await service.disconnected()
    finally:
        service.close()
        transport.remove()


def make_endpoint(device: AnyDevice, *, poll: float = 0.0, in_process: bool = False) -> Endpoint:
    """The native endpoint of a device.

    Raises:
        ValueError: the device has no queue, or one of an impossible size.
    """
    sizes = tuple(device.queue_sizes)
    for size in sizes:
        if not (1 <= size <= 32768 and size & (size - 1) == 0):
            raise ValueError(
                f"{type(device).__name__}.queue_sizes is {sizes}: each must be a power of two "
                "between 1 and 32768 (virtio 1.3, section 2.7)"
            )
    if not 1 <= len(sizes) <= 256:
        raise ValueError(
            f"{type(device).__name__}.queue_sizes names {len(sizes)} queues: between 1 and 256 can be"
        )
    return Endpoint(
        offered_features(device), sizes, config_bytes(device.config), patience=poll, in_process=in_process
    )


def _serve(
    service: Service | RelayService,
    transport: Transport | VhostUserSocket,
    attach: Callable[[], bool],
    queue_threads: list[threading.Thread],
) -> None:
    """What the thread of a served device does."""
    wait = service.wait if isinstance(service, RelayService) else service.endpoint.wait
    handle = service.handle
    timeout = RECONNECT_SECONDS if transport.connect else None
    try:
        while not isinstance(event := wait(timeout), Event.Stopped):
            handle(event)
            if isinstance(event, Event.Disconnected | Event.TimedOut) and not transport.listens:
                if not transport.connect:
                    break  # a connection that somebody gave us; there is no other
                timeout = None if attach() else RECONNECT_SECONDS
    finally:
        service.endpoint.stop()
        for thread in queue_threads:
            thread.join()
        service.close()
        transport.remove()


def _serve_queue(service: Service, worker: QueueWorker) -> None:
    """What the thread of one queue does."""
    while (queue := worker.wait()) is not None:
        service.process(queue)


def tell_ready(ready_fd: int | None) -> None:
    """Says that a frontend can connect: to systemd, and to who gave us a descriptor."""
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")
