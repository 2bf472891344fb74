"""A link to somebody's vhost-user backend."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from xenvirt import _native
from xenvirt.errors import DeviceFailedError, DisconnectedError, NegotiationError
from xenvirt.link import Link, LinkMemory

from . import wire_logs


class Frontend(Link):
    """The driver's end of a backend behind a vhost-user socket.

    Attributes:
        path: the backend's socket.
        protocol: the protocol's own requests, in the order that you choose: features, memory, rings, status,
            and raw messages for negative tests. A typed driver uses it underneath; whoever uses both has to
            know what they do.
    """

    def __init__(self, protocol: _native.Frontend, timeout: float | None, path: str = "") -> None:
        super().__init__(timeout)
        self.protocol = protocol
        self.path = path
        self._errors: dict[int, int] = {}
        self._changes = 0
        self._epoll.register(protocol.fileno(), select.EPOLLRDHUP)
        self._changes_fd = protocol.config_change_fd
        if self._changes_fd is not None:
            self._epoll.register(self._changes_fd, select.EPOLLIN)
        wire_logs.opened(self)

    @property
    def offered_features(self) -> int:
        return self.protocol.offered_features

    @property
    def negotiated_features(self) -> int:
        return self.protocol.features

    @property
    def protocol_features(self) -> int:
        """The vhost-user protocol feature bits that were agreed on."""
        return self.protocol.protocol_features

    @property
    def queue_count(self) -> int:
        """How many queues the backend has; 1 where it does not say (no MQ)."""
        count = self.protocol.queue_count
        return 1 if count is None else count

    @property
    def wire_log(self) -> list[str]:
        """The last messages of the connection, decoded, the oldest first."""
        return self.protocol.wire_log

    def config(self, offset: int, size: int) -> bytes:
        return self.protocol.config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        self.protocol.set_config(offset, data)

    @property
    def config_changes(self) -> int:
        """How often the backend said that its config space changed; stays 0 without the reverse channel
        (BACKEND_REQ)."""
        self._changes += self.protocol.config_changes()
        return self._changes

    def _start(self, features: int, memory: LinkMemory) -> None:
        wanted, have = len(memory.queues), self.protocol.queue_count
        if have is not None and wanted > have:
            raise NegotiationError(f"the driver wants {wanted} queues, the backend has {have}")
        protocol = self.protocol
        protocol.set_features(features)
        region = memory.region
        shared = _native.SharedRegion(
            memory.fd, region.guest_address, region.size, user_address=region.user_address
        )
        protocol.set_memory([shared])
        for queue in memory.queues:
            error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._errors[error] = queue.index
            descriptors, available, used = queue.addresses
            protocol.set_queue(
                queue.index,
                queue.size,
                descriptors=descriptors,
                available=available,
                used=used,
                kick=queue.kick_fd,
                call=queue.fileno(),
                err=error,
            )
            self._epoll.register(error, select.EPOLLIN)
        for queue in memory.queues:
            protocol.enable_queue(queue.index)
        protocol.barrier()

    def _attend(self, ready: Sequence[tuple[int, int]]) -> None:
        for fd, _events in ready:
            if fd == self._changes_fd:
                self._changes += self.protocol.config_changes()
            if fd in self._errors:
                queue = self._errors[fd]
                self._epoll.unregister(fd)
                raise DeviceFailedError(f"the backend stopped queue {queue} (VRING_ERR)", queue)
            if fd == self.protocol.fileno():
                self.collect()
                self._epoll.unregister(fd)
                raise DisconnectedError("the backend closed the connection while requests were under way")

    def _stop(self) -> None:
        self.protocol.close()
        wire_logs.closed(self)
        for fd in self._errors:
            os.close(fd)
