"""A device that is somebody else's vhost-user daemon."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xenvirt._native import Event, Relay, RelayMessage, VirtQueue
from xenvirt.vhost_user.socket import VhostUserSocket
from xenvirt.virtio.ids import DeviceId

log = logging.getLogger("xenvirt")

CONNECT_SECONDS = 5.0
"""How long a daemon's socket may be missing when a frontend comes, unless told otherwise."""


class RemoteDevice:
    """A vhost-user daemon as a device.

    ``serve(RemoteDevice("daemon.sock"), VhostUserSocket("new.sock"))`` is a proxy that stands between any
    frontend and any daemon. Messages are passed on as they are, with their files: memory, rings, kicks and
    calls are the frontend's and the daemon's own, and a request costs nothing more than without a proxy. What
    cannot be passed on (protocol features that nobody here knows, and postcopy) is masked, and a warning in
    the log names it.

    When the daemon dies, the frontend's connection ends, as it would without a proxy: one that reconnects
    finds the daemon again as soon as that listens, for ``timeout`` seconds.

    Args:
        socket: the path on which the daemon listens.
        device_id: what kind of device it is. vhost-user does not tell, and no frontend that speaks vhost-user
            needs it.
        queue_sizes: the largest size of each ring; likewise.
        timeout: for how many seconds the daemon's socket is tried when a frontend comes and nobody listens
            there.
        on_message: called with each message that was passed on, on the thread that serves the device. The
            reverse channel is stood in as well then.
        count: count kicks, calls and chains. The relay then stands in the descriptors of the kicks and calls:
            each costs two more system calls and a change of threads.
        signals: keep the time of each kick and call, too, for :meth:`Relayed.take_signals`.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str],
        device_id: DeviceId | int | None = None,
        queue_sizes: Sequence[int] | None = None,
        *,
        timeout: float = CONNECT_SECONDS,
        on_message: Callable[[RelayMessage], object] | None = None,
        count: bool = False,
        signals: bool = False,
    ) -> None:
        self.socket = os.fspath(socket)
        self.device_id = device_id
        self.queue_sizes = None if queue_sizes is None else tuple(queue_sizes)
        self.timeout = timeout
        self.on_message = on_message
        self.count = count or signals
        self.signals = signals

    def __repr__(self) -> str:
        return f"RemoteDevice({self.socket!r})"


class RelayCounters(NamedTuple):
    """What passed between a frontend and a daemon, of one queue or of all: totals over all connections. Only
    where ``count`` was asked for."""

    kicks: int = 0
    """Notifications of the driver."""
    chains: int = 0
    """Descriptor chains that the daemon gave back. Packed rings, and memory that cannot be mapped here, leave
    it at 0."""
    calls: int = 0
    """Notifications of the daemon."""
    errors: int = 0
    """Times that the daemon called a ring broken."""


class Signal(NamedTuple):
    """Kicks, or calls, that were passed on at once."""

    time: float
    """Seconds; the clock of :attr:`RelayMessage.time`."""
    queue: int
    kind: str
    """``kick``, ``call`` or ``error``."""
    times: int
    """How often it was signalled since the last time."""
    chains: int
    """How many chains the daemon had given back by then."""


class Relayed:
    """A daemon that a :class:`~xenvirt.Server` serves, and what can be seen of it from outside.

    Attributes:
        device: the daemon.
        transport: where it is served.
    """

    def __init__(self, device: RemoteDevice, transport: VhostUserSocket, relay: Relay) -> None:
        self.device = device
        self.transport = transport
        self._relay = relay

    @property
    def features(self) -> int:
        """The feature bits that the present frontend chose; 0 while there is none."""
        return self._relay.negotiated_features

    @property
    def protocol_features(self) -> int:
        """The vhost-user protocol feature bits of the present connection; 0 while there is none."""
        return self._relay.negotiated_protocol_features

    @property
    def queue_counters(self) -> tuple[RelayCounters, ...]:
        """The counters of each queue, up to the last of which anything was counted."""
        return tuple(RelayCounters(*counters) for counters in self._relay.counters)

    @property
    def counters(self) -> RelayCounters:
        """The counters of all queues together."""
        return RelayCounters(*map(sum, zip(*self.queue_counters, strict=True)))

    @property
    def time(self) -> float:
        """Seconds since it is served; the clock of messages and signals."""
        return self._relay.time

    def take_signals(self) -> list[Signal]:
        """The kicks and calls since the last time that this was asked, oldest first; a million are kept."""
        return [Signal(*signal) for signal in self._relay.take_signals()]


class RelayService:
    """Tells what happens at a relay."""

    def __init__(self, device: RemoteDevice, label: str) -> None:
        self.endpoint = Relay(
            device.socket,
            timeout=device.timeout,
            trace=device.on_message is not None,
            count=device.count,
            signals=device.signals,
        )
        self.label = label
        self._on_message = device.on_message

    def wait(self, timeout: float | None = None) -> Event:
        """Tells messages, until something else happens."""
        while isinstance(event := self.endpoint.wait(timeout), RelayMessage):
            self._tell(event)
        return event

    def handle(self, event: Event | VirtQueue) -> None:
        """Deals with one event."""
        match event:
            case Event.Connected():
                log.info("%s: a frontend is connected", self.label)
            case Event.Disconnected(reason=None):
                log.info("%s: the frontend is gone", self.label)
            case Event.Disconnected(reason=reason):
                log.warning("%s: connection closed: %s", self.label, reason)
            case Event.Notice(text=text):
                log.warning("%s: %s", self.label, text)

    def _tell(self, message: RelayMessage) -> None:
        try:
            if self._on_message is not None:
                self._on_message(message)
        except Exception:
            log.exception("%s: on_message failed", self.label)

    def close(self) -> None:
        """Ends both connections."""
        self.endpoint.close()
