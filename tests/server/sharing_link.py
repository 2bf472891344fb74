"""A driver of this process whose device is a daemon behind a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xenvirt import DeviceId, RemoteDevice, Session, _native
from xenvirt.in_process import InProcessLink
from xenvirt.link import LinkMemory
from xenvirt.remote_backend import RemoteBackend


class SharingLink(InProcessLink):
    """A driver of this process that shares its memory with a daemon, too."""

    shared: Sequence[_native.SharedRegion] = ()

    def _start(self, features: int, memory: LinkMemory) -> None:
        region = memory.region
        self.shared = [
            _native.SharedRegion(
                memory.fd, region.guest_address, region.size, user_address=region.user_address
            )
        ]
        super()._start(features, memory)


def linked(daemon: str, device_id: DeviceId = DeviceId.VSOCK, **options: Any) -> SharingLink:
    """A link to a daemon, through a device that hands everything over to it."""
    links: list[SharingLink] = []

    def regions(_session: Session, _queues: object) -> Sequence[_native.SharedRegion]:
        return links[0].shared

    remote = RemoteDevice(daemon, timeout=options.pop("timeout", 10.0))
    links.append(SharingLink(RemoteBackend(remote, device_id, regions, **options), 10.0))
    return links[0]
