"""What a backend author writes: a device, and what it is given while a driver uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from xenvirt.virtio.features import RING_FEATURES

if TYPE_CHECKING:
    from xenvirt._native import Endpoint, GuestMemory, VirtQueue
    from xenvirt.virtio.ids import DeviceId
    from xenvirt.virtio.structure import Structure


class Watch:
    """A watched file descriptor of a session; it ends with the session, or when it is closed."""

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number

    def close(self) -> None:
        """Ends the watch. Closing twice, or after the session ended, does nothing."""
        self._session._unwatch(self._number)


class Session:
    """One life of a device: from the driver's being ready until it resets the device or goes away.

    Everything that belongs to one driver hangs here; a device keeps what it needs of it in ``activate`` and
    drops it in ``reset``.

    Attributes:
        features: the feature bits that driver and device agreed on, those of the transport and ring included
            (virtio 1.3, section 2.2). An ``int``; compare with the ``IntFlag`` classes of ``xenvirt.virtio``.
        queues: all queues of the device, in order. A driver need not use each: ``queue.running`` tells.
        memory: the memory of the driver, by guest physical address; see :mod:`xenvirt.memory`. It follows the
            driver, which may add and remove regions at any time. Chains need none of it.
    """

    def __init__(self, features: int, queues: tuple[VirtQueue, ...], endpoint: Endpoint) -> None:
        self.features = features
        self.queues = queues
        self.memory: GuestMemory = endpoint.memory
        self._endpoint = endpoint
        self._callbacks: dict[int, Callable[[], object]] = {}

    def watch(self, fd: int, callback: Callable[[], object]) -> Watch:
        """Calls ``callback()`` whenever ``fd`` is readable or at its end, on the thread that serves the
        device.

        It is called again while the descriptor stays readable, so the callback has to read. The descriptor
        stays yours; the watch holds a duplicate of it. An exception in the callback is logged and ends the
        watch.

        Raises:
            OSError: ``fd`` is not open, or is a regular file, which is always ready and cannot be watched
                (EPERM).
        """
        number = self._endpoint.watch(fd)
        self._callbacks[number] = callback
        return Watch(self, number)

    def _unwatch(self, number: int) -> None:
        if self._callbacks.pop(number, None) is not None:
            self._endpoint.unwatch(number)


class _AnyDevice:
    """What :class:`Device` and :class:`AsyncDevice` have in common."""

    device_id: ClassVar[DeviceId | int]
    """The kind of device (virtio 1.3, section 5)."""

    queue_sizes: tuple[int, ...]
    """The largest size of each queue in descriptors: powers of two, 1 to 32768."""

    features: int = 0
    """The feature bits of this device type that it offers. Those of the ring and of the transport, and MQ
    where it follows from the queues, need not be said."""

    config: Structure | bytes | None = None
    """The config space, as a structure of ``xenvirt.virtio`` or as bytes. Change it by
    :meth:`update_config`."""

    in_order: bool = False
    """Offer VIRTIO_F_IN_ORDER: chains are given back in the order in which they came. Completions that come
    early are held back."""

    thread_per_queue: bool = False
    """Serve each queue on a thread of its own. ``process`` then runs for several queues at once; the other
    methods never run beside it."""

    _ring_features: int = RING_FEATURES
    """What is offered without being asked for."""

    _endpoint: Endpoint | None = None

    def activate(self, session: Session) -> None:
        """The driver is ready: features are agreed on, and the first queue runs. Called before any
        ``process``."""

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver wrote ``data`` at ``offset`` (bytes) of the config space. It lies inside the space.

        The written bytes are what the driver reads back from now on; ``self.config`` is not changed.
        """

    def reset(self) -> None:
        """The driver reset the device, or is gone. Kept chains are stale, watches have ended.

        Called once for each ``activate``, also when the session ends with an error.
        """

    def _queue_stopped(self, index: int) -> None:
        """The driver stopped a queue that was handed over; it waits for this to return."""

    def _served_no_more(self) -> None:
        """The transport is closed, the last session over: for a device that is made to be served once."""

    def update_config(self, config: Structure | bytes) -> None:
        """Replaces the config space, and tells the driver (a configuration change, virtio 1.3, section 2.5).

        May be called from any thread. A device that is not served just takes it.

        Raises:
            ValueError: the space has another length than before; a driver has sized it already.
        """
        space = config_bytes(config)
        before = config_bytes(self.config)
        if len(space) != len(before):
            raise ValueError(
                f"the config space of {type(self).__name__} has {len(before)} bytes, the new one "
                f"{len(space)}: its length cannot change while the device lives"
            )
        self.config = config
        if self._endpoint is not None:
            self._endpoint.update_config(space)


class Device(_AnyDevice):
    """A virtio device. Subclass it, say what it is, and answer :meth:`process`.

    A subclass need not call ``super().__init__()``. All methods are called on one thread, never two at a
    time, unless the device asks for ``thread_per_queue``.
    """

    def process(self, queue: VirtQueue) -> None:
        """The driver kicked ``queue``: take its chains, one at a time (``for chain in queue``) or by the
        batch (``queue.pop_batch()``).

        A chain that is not completed stays the device's and may be completed later, from any thread. What is
        left in the ring is looked at with the next kick.

        An exception is logged with its traceback; the queue stops, and the driver is told by VRING_ERR and,
        over a transport that has it, by a status that says NEEDS_RESET. Other queues, and the server, run on.
        """
        raise NotImplementedError(f"{type(self).__name__} has no process(queue)")


class AsyncDevice(_AnyDevice):
    """A virtio device whose :meth:`process` is a coroutine: for :func:`xenvirt.serve_async`.

    Each kick runs ``process`` as a task of its queue; a queue has one task at a time, several queues run
    beside each other. The other methods are plain ones, called on the event loop's thread. A task that still
    runs at a reset is cancelled.
    """

    async def process(self, queue: VirtQueue) -> None:
        """As :meth:`Device.process`."""
        raise NotImplementedError(f"{type(self).__name__} has no process(queue)")


AnyDevice = Device | AsyncDevice


def config_bytes(config: Structure | bytes | None) -> bytes:
    """The config space of a device as the driver reads it."""
    if config is None:
        return b""
    return config if isinstance(config, bytes) else config.to_bytes()
