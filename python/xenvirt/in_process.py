"""A link to a device of this process: no socket, no thread. The device runs while the driver waits."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from operator import gt

from xenvirt._native import Event
from xenvirt._service import AsyncService, PolledService
from xenvirt.device import AnyDevice
from xenvirt.errors import DeviceFailedError, NegotiationError
from xenvirt.link import Link, LinkMemory
from xenvirt.server import make_endpoint


class InProcessLink(Link):
    """The driver's end of a device of this process, for tests of a device.

    Everything is as behind a socket, features, rings and notifications included; but the device's methods
    are called while the driver waits, on its thread, and an exception in the device comes out of the
    driver's call.
    """

    def __init__(self, device: AnyDevice, timeout: float | None, *, on_asyncio: bool = False) -> None:
        super().__init__(timeout)
        self._endpoint = make_endpoint(device, in_process=True)
        self._failure: DeviceFailedError | None = None
        self.on_failure: Callable[[Exception], None] | None = None
        label = f"{type(device).__name__} in process"
        serve = AsyncService if on_asyncio else PolledService
        self._service = serve(device, self._endpoint, label, self._failed)
        if not on_asyncio:
            self._epoll.register(self._endpoint.fileno(), select.EPOLLIN)

    @property
    def offered_features(self) -> int:
        return self._endpoint.offered_features

    @property
    def negotiated_features(self) -> int:
        return self._endpoint.negotiated_features

    @property
    def protocol_features(self) -> int:
        """Always 0: there is no protocol between the two."""
        return 0

    @property
    def queue_count(self) -> int:
        return len(self._endpoint.queues)

    def config(self, offset: int, size: int) -> bytes:
        return self._endpoint.config[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Writes to the config space; the device's ``config_written`` runs before this returns.

        Raises:
            ValueError: the bytes do not lie inside the config space.
        """
        if not self._endpoint.write_config(offset, data):
            size = len(self._endpoint.config)
            raise ValueError(f"{len(data)} bytes at offset {offset}: the config space has {size} bytes")
        self._service.handle(Event.ConfigWritten(offset, data))
        self._raise_failure()

    @property
    def config_changes(self) -> int:
        self._run_device()
        return self._endpoint.config_changes

    def _start(self, features: int, memory: LinkMemory) -> None:
        have = [queue.size for queue in self._endpoint.queues]
        wanted = [queue.size for queue in memory.queues]
        if len(wanted) > len(have) or any(map(gt, wanted, have)):
            raise NegotiationError(f"the driver wants rings of {wanted} descriptors, the device has {have}")
        self._endpoint.start(features, memory.guest, memory.queues)
        self._run_device()

    def _attend(self, _ready: Sequence[tuple[int, int]]) -> None:
        self._run_device()

    def _stop(self) -> None:
        self._endpoint.reset()
        self._service.pump()
        self._service.close()

    def _run_device(self) -> None:
        """Lets the device deal with all that is there. What its watches and its own threads do later comes
        with the next wait."""
        self._service.pump()
        self._raise_failure()

    def _failed(self, queue: int | None, error: BaseException) -> None:
        where = "the device" if queue is None else f"queue {queue} of the device"
        failure = DeviceFailedError(f"{where} failed: {type(error).__name__}: {error}", queue)
        failure.__cause__ = error
        if self.on_failure is not None:
            self.on_failure(failure)
        else:
            self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
