"""One device behind one transport: the events of the native endpoint become calls of the device's methods."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from xenvirt._native import Endpoint, Event, VirtQueue
from xenvirt.device import AnyDevice, AsyncDevice, Device, Session
from xenvirt.errors import RingError, StaleChainError

log = logging.getLogger("xenvirt")

Failed = Callable[[int | None, BaseException], None]


class Service:
    """Serves a device from the events of its endpoint, one at a time.

    Args:
        device: the device.
        endpoint: its native endpoint; nobody else waits on it.
        label: who it is, for the log.
        failed: called with the queue (None: the whole device) and the exception when the device raised one.
    """

    def __init__(
        self, device: AnyDevice, endpoint: Endpoint, label: str, failed: Failed | None = None
    ) -> None:
        if device._endpoint is not None:
            raise ValueError(
                f"{label}: this {type(device).__name__} is being served already; serve another one"
            )
        device._endpoint = endpoint
        self.device = device
        self.endpoint = endpoint
        self.label = label
        self.session: Session | None = None
        self._failed = failed

    def close(self) -> None:
        """Ends the session, if there is one, and lets the device go."""
        self._end_session()
        self.endpoint.close()
        self.device._endpoint = None
        self.device._served_no_more()

    def handle(self, event: Event | VirtQueue) -> None:
        """Lets the device deal with one event."""
        if isinstance(event, VirtQueue):
            self.process(event)
            return
        match event:
            case Event.Activate():
                self._activate()
            case Event.Reset():
                self._end_session()
            case Event.ConfigWritten(offset=offset, data=data):
                self._guard("config_written", lambda: self.device.config_written(offset, data))
            case Event.QueueStopped(index=index):
                self._guard("stopping a queue", lambda: self.device._queue_stopped(index))
            case Event.Watch(number=number):
                self._watched(number)
            case Event.Disconnected(reason=None):
                log.info("%s: the frontend is gone", self.label)
            case Event.Disconnected(reason=reason):
                log.warning("%s: connection closed: %s", self.label, reason)
            case Event.Notice(text=text):
                log.warning("%s: %s", self.label, text)

    def process(self, queue: VirtQueue) -> None:
        """Lets the device look at one queue."""
        assert isinstance(self.device, Device)
        try:
            self.device.process(queue)
        except Exception as error:
            self._queue_failed(queue, error)

    def _queue_failed(self, queue: VirtQueue, error: Exception) -> None:
        if isinstance(error, StaleChainError):
            log.debug("%s: queue %d was reset while the device worked on it", self.label, queue.index)
            return
        if isinstance(error, RingError):
            log.error("%s: the driver broke a rule, queue %d stops: %s", self.label, queue.index, error)
        else:
            log.exception("%s: process failed, queue %d stops", self.label, queue.index, exc_info=error)
        self.endpoint.fail_queue(queue.index)
        if self._failed is not None:
            self._failed(queue.index, error)

    def _activate(self) -> None:
        endpoint = self.endpoint
        self.session = Session(endpoint.negotiated_features, endpoint.queues, endpoint)
        log.info("%s: the driver is ready, features %#x", self.label, endpoint.negotiated_features)
        session = self.session
        self._guard("activate", lambda: self.device.activate(session))

    def _end_session(self) -> None:
        if self.session is not None:
            self.session = None
            self._guard("reset", self.device.reset)

    def _guard(self, method: str, call: Callable[[], None]) -> None:
        """A method of the device that is not about one queue: when it raises, no queue can go on."""
        try:
            call()
        except Exception as error:
            log.exception("%s: %s failed, the device stops", self.label, method)
            for queue in self.endpoint.queues:
                self.endpoint.fail_queue(queue.index)
            if self._failed is not None:
                self._failed(None, error)

    def _watched(self, number: int) -> None:
        session = self.session
        callback = session._callbacks.get(number) if session is not None else None
        if session is None or callback is None:
            return
        try:
            callback()
        except StaleChainError:
            log.debug("%s: the device was reset while a watch callback worked", self.label)
        except Exception as error:
            log.exception("%s: a watch callback failed, its watch ends", self.label)
            session._unwatch(number)
            if self._failed is not None:
                self._failed(None, error)


class PolledService(Service):
    """Serves a device when somebody asks it to: nobody waits on the endpoint."""

    def pump(self) -> None:
        """Deals with all events that are there."""
        while (event := self.endpoint.poll()) is not None:
            self.handle(event)

    def process(self, queue: VirtQueue) -> None:
        super().process(queue)
        while self.endpoint.processed(queue.index):
            super().process(queue)


class AsyncService(PolledService):
    """Serves a device on asyncio's loop; a ``process`` that is a coroutine runs as a task of its queue."""

    def __init__(
        self, device: AnyDevice, endpoint: Endpoint, label: str, failed: Failed | None = None
    ) -> None:
        super().__init__(device, endpoint, label, failed)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._again: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._disconnected = asyncio.Event()
        self._loop.add_reader(endpoint.fileno(), self.pump)

    def pump(self) -> None:
        super().pump()
        if self._timer is not None:
            self._timer.cancel()
        timeout = self.endpoint.timeout
        self._timer = None if timeout is None else self._loop.call_later(timeout, self.pump)

    async def disconnected(self) -> None:
        """Waits until the present connection, or the next one, has ended."""
        await self._disconnected.wait()
        self._disconnected.clear()

    def handle(self, event: Event | VirtQueue) -> None:
        super().handle(event)
        if isinstance(event, Event.Disconnected):
            self._disconnected.set()

    def close(self) -> None:
        self._loop.remove_reader(self.endpoint.fileno())
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def process(self, queue: VirtQueue) -> None:
        if not isinstance(self.device, AsyncDevice):
            super().process(queue)
            return
        self._again.add(queue.index)
        if queue.index not in self._tasks:
            task = self._loop.create_task(self._process(self.device, queue))
            self._tasks[queue.index] = task

    async def _process(self, device: AsyncDevice, queue: VirtQueue) -> None:
        try:
            while queue.index in self._again:
                self._again.discard(queue.index)
                await device.process(queue)
                if self.endpoint.processed(queue.index):
                    self._again.add(queue.index)
        except Exception as error:
            self._again.discard(queue.index)
            self._queue_failed(queue, error)
        finally:
            # After a reset the queue may have a new task already.
            if self._tasks.get(queue.index) is asyncio.current_task():
                del self._tasks[queue.index]

    def _end_session(self) -> None:
        tasks, self._tasks = self._tasks, {}
        self._again.clear()
        for task in tasks.values():
            task.cancel()
        super()._end_session()
