"""A daemon behind a transport that speaks no vhost-user: what its driver does becomes messages to the daemon.

Rings and buffers are the daemon's own to reach; what it gets of the driver is where they are. Kicks go to it
without passing here, and its calls become the driver's interrupts.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import ClassVar

from xenvirt import _native
from xenvirt.device import Device, Session, Watch, config_bytes
from xenvirt.errors import DisconnectedError, NegotiationError, XenvirtError
from xenvirt.remote import RemoteDevice
from xenvirt.remote_search import Search, connected
from xenvirt.remote_shape import shape_of
from xenvirt.vhost_user.protocol import ProtocolFeature
from xenvirt.virtio.features import Feature
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.names import feature_names

log = logging.getLogger("xenvirt")

NOT_HERE = int(
    Feature.RING_PACKED
    | Feature.ACCESS_PLATFORM
    | Feature.SR_IOV
    | Feature.NOTIFICATION_DATA
    | Feature.NOTIF_CONFIG_DATA
    | Feature.RING_RESET
    | Feature.ADMIN_VQ
    | Feature.LOG_ALL
)
"""Features between driver and transport, which a daemon cannot have where the transport has not."""

Regions = Callable[[Session, Mapping[int, _native.HandedOver]], Sequence[_native.SharedRegion]]
"""What a daemon is told of the driver's memory, for these queues."""


class RemoteBackend(Device):
    """A :class:`~xenvirt.RemoteDevice`, as the transport sees it.

    The daemon is connected to when it is made, since a driver must be told its features, queues and config
    space before it does anything.

    When the daemon dies under a running driver, or is away when one becomes ready, it is looked for during
    the remote device's ``timeout``; nothing waits for it but the driver's requests. It is told what the
    driver wrote to the config space meanwhile, and goes on where the used rings stand: requests that it had
    begun it begins anew. It cannot go on where it had answered requests out of their order, or comes back
    with fewer features: then, and when nobody came, the queues go into their error state, and the driver is
    told that the device needs a reset.

    Each driver gets a connection of its own: when the device is reset the daemon is hung up on, and connected
    to again when the next driver is ready. For as long as a connection stays, daemons of rust-vmm with
    vhost-user-backend 0.10 go on counting used buffers where the driver before left off.

    Args:
        remote: the daemon.
        device_id: what kind of device it is.
        regions: describes the driver's memory to the daemon.
        check: is given the negotiated connection, each time; raises if the daemon cannot be used.
        closed: called whenever it is hung up on, or has hung up: what it was given is for no other daemon.
        no_regions: describes what is left of it after a reset, so that the daemon lets go of everything
            before the driver is told that the device is reset; empty where that does not matter.

    Raises:
        DisconnectedError: nobody listens there.
        NegotiationError: there is no telling how many queues it has; or what ``check`` raises.
    """

    device_id: ClassVar[DeviceId | int] = 0
    _ring_features = 0  # the daemon's features are all that there are

    def __init__(
        self,
        remote: RemoteDevice,
        device_id: DeviceId | int,
        regions: Regions,
        check: Callable[[_native.Frontend], None] = lambda _daemon: None,
        closed: Callable[[], None] = lambda: None,
        no_regions: Callable[[], Sequence[_native.SharedRegion]] = tuple,
    ) -> None:
        self.remote = remote
        self._regions = regions
        self._check = check
        self._closed = closed
        self._no_regions = no_regions
        self._session: Session | None = None
        self._queues: dict[int, _native.HandedOver] = {}
        self._errors: dict[int, tuple[int, Watch]] = {}
        self._watches: list[Watch] = []
        self._bases: dict[int, int] = {}
        self._search: Search | None = None
        # By offset and length, so that a driver that goes on writing while nobody listens fills no memory.
        self._unsaid: dict[tuple[int, int], bytes] = {}
        self._daemon = self._checked(_native.Frontend(remote.socket, timeout=remote.timeout))
        shape = shape_of(self._daemon, device_id, remote.queue_sizes)
        self.device_id = shape.device_id  # type: ignore[misc] # of this one object
        self.queue_sizes, self.config = shape.queue_sizes, shape.config
        self.features = shape.features & ~NOT_HERE
        if shape.features & NOT_HERE:
            names = ", ".join(feature_names(shape.features & NOT_HERE))
            log.info("%r: features of the daemon that are not offered: %s", self, names)

    def __repr__(self) -> str:
        return repr(self.remote)

    def activate(self, session: Session) -> None:
        """Hands the rings over to the daemon."""
        self._session = session
        for queue in session.queues:
            handed = session._endpoint.hand_over(queue.index)
            if handed is not None:
                self._queues[queue.index] = handed
        self._bases = {index: queue.base for index, queue in self._queues.items()}
        if not self._begin():
            self._look_again()

    def process(self, queue: _native.VirtQueue) -> None:
        """A queue that came to run after the others is handed over, too."""
        session = self._session
        handed = session._endpoint.hand_over(queue.index) if session is not None else None
        if session is None or handed is None:
            return
        self._queues[queue.index] = handed
        self._bases[queue.index] = handed.base
        if self._search is not None:
            return  # it is told of all queues when it is there
        if hung_up(self._daemon):
            self._lost()
            return
        # Rings in grants are part of the table.
        self._daemon.set_memory(list(self._regions(session, self._queues)))
        self._start_queue(queue.index, handed.base)
        self._daemon.enable_queue(queue.index)
        os.eventfd_write(handed.kick_fd, 1)

    def config_written(self, offset: int, data: bytes) -> None:
        """Passes the driver's write on: at once, or when the daemon is there."""
        self._unsaid.pop((offset, len(data)), None)
        self._unsaid[offset, len(data)] = data
        if self._session is not None and hung_up(self._daemon):
            return  # it is looked for, or soon will be
        try:
            self._be_connected()
        except DisconnectedError as error:
            log.warning("%r: what the driver wrote to the config space has to wait: %s", self, error)

    def reset(self) -> None:
        """Stops the rings, and hangs up; when this returns the daemon touches none of them."""
        self._session = None
        self._stop_looking()
        self._unsaid.clear()
        queues, self._queues = self._queues, {}
        try:
            if not hung_up(self._daemon):
                self._stop_queues(queues)
        except XenvirtError as error:
            log.warning("%r: it did not stop its queues: %s", self, error)
        self._hang_up()

    def _stop_queues(self, queues: Iterable[int]) -> None:
        for index in queues:
            self._daemon.stop_queue(index)
        left = self._no_regions()
        if left:
            self._daemon.set_memory(list(left))
            self._daemon.barrier()

    def _queue_stopped(self, index: int) -> None:
        """When this returns the daemon does not touch the ring any more."""
        if self._queues.pop(index, None) is None:
            return
        self._close_error(index)
        if hung_up(self._daemon):
            return
        try:
            self._daemon.stop_queue(index)
            if self._session is not None:
                # Its ring may have been in grants, which the driver takes back.
                left = self._regions(self._session, self._queues) if self._queues else self._no_regions()
                if left:
                    self._daemon.set_memory(list(left))
        except XenvirtError as error:
            log.warning("%r: it did not stop queue %d, and is hung up on: %s", self, index, error)
            self._daemon.close()

    def close(self) -> None:
        """Hangs up, for good. What serves it does that at its end."""
        self._hang_up()

    def _served_no_more(self) -> None:
        self.close()

    # ---- the connection

    def _checked(self, daemon: _native.Frontend) -> _native.Frontend:
        try:
            self._check(daemon)
        except BaseException:
            daemon.close()
            raise
        return daemon

    def _be_connected(self) -> bool:
        """Connects, unless a connection lives, and says what is unsaid. False: nobody is there."""
        anew = hung_up(self._daemon)
        if anew:
            self._hang_up()
            socket = connected(self.remote.socket)
            if socket is None:
                return False
            with socket:
                daemon = _native.Frontend.from_fd(socket.fileno(), timeout=self.remote.timeout)
            self._daemon = self._checked(daemon)
        for place, data in list(self._unsaid.items()):
            self._daemon.set_config(place[0], data)
            del self._unsaid[place]
        size = len(config_bytes(self.config))
        if anew and size and self._daemon.protocol_features & ProtocolFeature.CONFIG:
            config = self._daemon.config(0, size)
            if config != config_bytes(self.config):
                self.update_config(config)
        return True

    def _hang_up(self) -> None:
        for watch in self._watches:
            watch.close()
        self._watches.clear()
        for index in list(self._errors):
            self._close_error(index)
        self._daemon.close()
        self._closed()

    def _begin(self) -> bool:
        """Has the daemon begin where the rings stand. False: nobody is there, or not for long."""
        try:
            if not self._be_connected():
                return False
            self._set_up()
        except DisconnectedError as error:
            log.warning("%r: the daemon hung up before it served: %s", self, error)
            self._hang_up()
            self._bases = self._where_rings_stand()  # it may have begun
            return False
        return True

    def _set_up(self) -> None:
        """Tells the daemon everything, and has it begin."""
        session, daemon = self._session, self._daemon
        assert session is not None
        lacking = session.features & self.features & ~daemon.offered_features
        if lacking:
            names = ", ".join(feature_names(lacking, int(self.device_id)))
            raise NegotiationError(f"the daemon has lost features that the driver uses: {names}")
        daemon.set_features(session.features & daemon.offered_features)
        daemon.set_memory(list(self._regions(session, self._queues)))
        for index in self._queues:
            self._start_queue(index, self._bases[index])
        for index in self._queues:
            daemon.enable_queue(index)
        daemon.barrier()
        self._watches = [session.watch(daemon.fileno(), lambda: self._spoken(daemon))]
        changes = daemon.config_change_fd
        if changes is not None:
            self._watches.append(session.watch(changes, self._config_changed))

    def _start_queue(self, index: int, base: int) -> None:
        queue, session = self._queues[index], self._session
        assert session is not None
        descriptors, available, used = queue.addresses
        error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._errors[index] = error, session.watch(error, partial(self._failed, index, error))
        self._daemon.set_queue(
            index,
            queue.size,
            descriptors=descriptors,
            available=available,
            used=used,
            base=base,
            kick=queue.kick_fd,
            call=queue.call_fd,
            err=error,
        )

    def _spoken(self, daemon: _native.Frontend) -> None:
        """The daemon's socket is readable, while nothing was asked: it hung up."""
        if daemon is not self._daemon or not hung_up(daemon):
            return
        self._lost()

    def _lost(self) -> None:
        """The daemon hung up under a running driver; nobody writes the rings now."""
        log.warning("%r: the daemon hung up", self)
        self._hang_up()
        try:
            self._bases = self._where_rings_stand()
        except (XenvirtError, OSError) as error:
            self._fail(error)
        else:
            self._try()

    def _try(self) -> None:
        """Goes on if the daemon is there."""
        try:
            if not self._begin():
                self._look_again()
                return
        except (XenvirtError, OSError) as error:
            self._fail(error)
            return
        self._stop_looking()
        log.warning("%r: the daemon is there again, and goes on", self)
        for queue in self._queues.values():
            os.eventfd_write(queue.kick_fd, 1)  # for what nobody kicks for any more
            os.eventfd_write(queue.call_fd, 1)  # it may have died between the used index and the call

    def _look_again(self) -> None:
        """Has the daemon tried later, if that is not too late."""
        assert self._session is not None
        if self._search is None:
            self._search = Search(self._session, self.remote.timeout, self._try)
        elif self._search.over:
            raise DisconnectedError(
                f"cannot connect to {self.remote.socket} within {self.remote.timeout:g} s"
            )

    def _stop_looking(self) -> None:
        if self._search is not None:
            self._search.close()
            self._search = None

    def _fail(self, error: Exception) -> None:
        """The driver has to reset the device: waiting mends nothing."""
        log.error("%r: the device stops: %s", self, error)
        assert self._session is not None
        self._stop_looking()
        self._hang_up()
        queues, self._queues = self._queues, {}
        for index in queues:
            self._session._endpoint.fail_queue(index)

    def _where_rings_stand(self) -> dict[int, int]:
        assert self._session is not None
        memory = self._session.memory
        return {index: queue.resume_index(memory) for index, queue in self._queues.items()}

    def _failed(self, index: int, error: int) -> None:
        known, _ = self._errors.get(index, (None, None))
        if error == known and self._session is not None:
            os.eventfd_read(error)
            log.error("%r: the daemon calls queue %d broken", self, index)
            self._session._endpoint.fail_queue(index)

    def _config_changed(self) -> None:
        if self._daemon.config_changes():
            size = len(config_bytes(self.config))
            try:
                config = self._daemon.config(0, size) if size else b""
            except DisconnectedError:
                return  # `_spoken` hears of it as well
            self.update_config(config)

    def _close_error(self, index: int) -> None:
        if index in self._errors:
            error, watch = self._errors.pop(index)
            watch.close()
            os.close(error)


def hung_up(daemon: _native.Frontend) -> bool:
    """Is the connection over? The daemon need not be asked for that."""
    if daemon.closed:
        return True
    poller = select.poll()
    poller.register(daemon.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))
