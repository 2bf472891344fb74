"""The native core. What is public is re-exported by ``xenvirt``; import it from there."""

from collections.abc import Sequence
from typing import Self, final

from typing_extensions import Buffer

# ---- endpoint: the event loop of one device, private to xenvirt

class Event:
    """What a device has to deal with; one of the classes inside. A kick is given as its VirtQueue instead."""

    @final
    class Activate(Event):
        """The driver is ready."""

        def __new__(cls) -> Self: ...

    @final
    class ConfigWritten(Event):
        """The driver wrote to the config space."""

        __match_args__ = ("offset", "data")
        def __new__(cls, offset: int, data: Sequence[int]) -> Self: ...
        @property
        def offset(self) -> int: ...
        @property
        def data(self) -> bytes: ...

    @final
    class Reset(Event):
        """The driver reset the device, or is gone."""

        def __new__(cls) -> Self: ...

    @final
    class Watch(Event):
        """A watched descriptor is ready."""

        __match_args__ = ("number",)
        def __new__(cls, number: int) -> Self: ...
        @property
        def number(self) -> int: ...

    @final
    class Disconnected(Event):
        """The connection ended; the reason is None unless it was the frontend's fault."""

        __match_args__ = ("reason",)
        def __new__(cls, reason: str | None) -> Self: ...
        @property
        def reason(self) -> str | None: ...

    @final
    class Notice(Event):
        """Something for the log."""

        __match_args__ = ("text",)
        def __new__(cls, text: str) -> Self: ...
        @property
        def text(self) -> str: ...

    @final
    class Stopped(Event):
        """The endpoint was stopped; nothing comes after it."""

        def __new__(cls) -> Self: ...

    @final
    class TimedOut(Event):
        """The time of the wait ran out."""

        def __new__(cls) -> Self: ...

@final
class Endpoint:
    """The event loop of one device behind one transport."""

    def __new__(
        cls, features: int, queue_sizes: Sequence[int], config: bytes, *, in_process: bool = False
    ) -> Self: ...
    def listen(self, fd: int) -> None:
        """Frontends come to this listening socket from now on; the descriptor is duplicated."""
    def adopt(self, fd: int) -> None:
        """Takes a connected socket; the descriptor is duplicated."""
    def wait(self, timeout: float | None = None) -> Event | VirtQueue:
        """The next event; says that the device is done with the one before. The GIL is released."""
    def poll(self) -> Event | VirtQueue | None:
        """The next event if there is one; the caller says `processed` itself."""
    def processed(self, index: int) -> bool:
        """Says that the device is done with the kick of a queue: true if it has to look again."""
    @property
    def timeout(self) -> float | None:
        """Seconds until `poll` is to be called again though nothing is ready."""
    def worker(self, index: int) -> QueueWorker:
        """Lets a thread of its own serve this queue."""
    def reset(self) -> None:
        """An in-process driver resets the device."""
    @property
    def config_changes(self) -> int:
        """How often an in-process device changed its config space."""
    @property
    def queues(self) -> tuple[VirtQueue, ...]:
        """All queues."""
    @property
    def negotiated_features(self) -> int:
        """The virtio features that the present driver agreed to; 0 without a driver."""
    @property
    def negotiated_protocol_features(self) -> int:
        """The vhost-user protocol features of the present connection; 0 without one."""
    @property
    def config(self) -> bytes:
        """The config space as it is now."""
    def update_config(self, config: bytes) -> None:
        """Replaces the config space and has the driver told."""
    def write_config(self, offset: int, data: bytes) -> bool:
        """The driver's write to the config space; false if it does not lie inside."""
    def watch(self, fd: int) -> int:
        """Watches a descriptor, of which a duplicate is taken, for input; gives the watch's number."""
    def unwatch(self, number: int) -> None:
        """Ends a watch."""
    def fail_queue(self, index: int) -> None:
        """The device could not deal with this queue: it goes into its error state, and the driver is told."""
    def stop(self) -> None:
        """Ends every wait, now and for ever."""
    def close(self) -> None:
        """Closes the transport. Nothing can be waited for any more."""
    def fileno(self) -> int:
        """A descriptor that is readable while an event is there."""

@final
class QueueWorker:
    """The kicks of one queue, for a thread of its own."""

    @property
    def index(self) -> int:
        """Which queue it is."""
    def wait(self) -> VirtQueue | None:
        """The queue, once it is kicked; None when the endpoint is stopped. The GIL is released."""

# ---- rings, device side

@final
class VirtQueue:
    """One virtqueue of a device (virtio 1.3, section 2.6). Iterating over it takes the chains that are
    there."""

    @property
    def index(self) -> int:
        """Which queue of its device it is."""
    @property
    def size(self) -> int:
        """Descriptors of its ring; of the largest that it may have, while there is none."""
    @property
    def running(self) -> bool:
        """True while chains can come out of it."""
    @property
    def kept(self) -> int:
        """Chains that were taken and not completed."""
    @property
    def counters(self) -> tuple[int, int, int, int, int, int]:
        """Kicks, chains, bytes read, bytes written, calls, errors; see :class:`xenvirt.Counters`."""
    def pop(self) -> Chain | None:
        """The next chain; None when the ring is empty or does not run.

        Raises:
            RingError: the driver broke a rule; the queue is in its error state.
        """
    def __iter__(self) -> Self: ...
    def __next__(self) -> Chain: ...

@final
class Chain:
    """One request of the driver: buffers to read, then buffers to write (virtio 1.3, section 2.6)."""

    @property
    def index(self) -> int:
        """Index of its first descriptor."""
    @property
    def readable(self) -> int:
        """Bytes of the readable part that were not read yet."""
    @property
    def writable(self) -> int:
        """Bytes of the writable part that were not written yet."""
    @property
    def completed(self) -> bool:
        """Was it completed?"""
    def read(self, size: int = -1) -> bytes:
        """Reads the next `size` bytes, or what is left; all that is left without a size."""
    def write(self, data: Buffer) -> int:
        """Writes all of `data` to the next bytes of the writable part, or nothing."""
    def complete(self, written: int | None = None) -> None:
        """Gives the chain back to the driver."""
