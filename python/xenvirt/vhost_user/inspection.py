"""What a vhost-user backend offers: everything that the protocol lets one ask, asked with care.

Backends are easily ended by a question that they do not like, so nothing is asked that was not offered,
memory and rings are never set up, and the configuration space is asked for no further than the features speak
of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar

from xenvirt import _native
from xenvirt.errors import DisconnectedError, LinkTimeoutError, ProtocolError, RequestRefusedError
from xenvirt.virtio.config_fields import config_length, counting_fields
from xenvirt.virtio.features import DeviceStatus
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.names import config_class, feature_names
from xenvirt.virtio.structure import Structure

from . import wire_logs
from .protocol import ProtocolFeature, Request, protocol_feature_names

T = TypeVar("T")

ASKED_WITH: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.XEN_MMAP
)
"""The protocol features that are agreed on, where they are offered: those that something can be asked with,
and XEN_MMAP, without which a daemon that is built for Xen hangs up.
"""


@dataclass(frozen=True)
class Inspection:
    """What a backend said of itself. What it did not say is None, and ``untold`` has the reason."""

    socket: str
    """The path of its socket."""
    device_id: DeviceId | None = None
    """The device type as you gave it: vhost-user does not tell it."""
    features: int | None = None
    """The virtio features that it offers, bit 30 (PROTOCOL_FEATURES) among them."""
    protocol_features: int | None = None
    """The vhost-user protocol features that it offers, unknown ones among them."""
    queues: int | None = None
    """How many queues it has at most."""
    memory_slots: int | None = None
    """How many memory regions it takes."""
    status: DeviceStatus | None = None
    """The device status."""
    config: bytes | None = None
    """The configuration space, as far as it was asked for."""
    config_space: Structure | None = None
    """The same, decoded: a :class:`~xenvirt.virtio.block.BlockConfig` or the like. Fields that lie beyond
    ``config`` are 0; ``config_fields`` are those that count.
    """
    failure: str | None = None
    """Why not everything could be asked: the backend hung up, was silent, or broke the protocol."""
    untold: Mapping[str, str] = field(default_factory=dict)
    """For what is not known, by its name in words, why it is not."""
    wire_log: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """All that was said, decoded."""

    @property
    def feature_names(self) -> list[str]:
        """The virtio features by name, the lowest bit first; ``bit 5`` for those that have no name, or whose
        meaning depends on a device type that was not given.
        """
        return feature_names(self.features or 0, self.device_id)

    @property
    def protocol_feature_names(self) -> list[str]:
        """The protocol features by name, likewise."""
        return protocol_feature_names(self.protocol_features or 0)

    @property
    def config_fields(self) -> dict[str, object]:
        """The fields of the configuration space that count with the offered features, and were told."""
        space, told = self.config_space, len(self.config or b"")
        if space is None or self.device_id is None:
            return {}
        missing = space.missing(told)
        names = counting_fields(self.device_id, self.features or 0)
        return {name: getattr(space, name) for name in names if name not in missing}


def inspect(
    path: str | os.PathLike[str],
    device_id: DeviceId | None = None,
    *,
    config_size: int | None = None,
    timeout: float | None = 5.0,
) -> Inspection:
    """Asks a vhost-user backend what it offers, and hangs up.

    The backend serves on, unless it is one that quits after any client (vhost-device-scsi does). Many serve
    one client at a time: while another one is connected this waits, until ``timeout``.

    Args:
        path: its socket.
        device_id: what kind of device it is, which vhost-user does not tell: names the features of the type,
            and decodes its configuration space.
        config_size: how many bytes of configuration space to ask for; by default what the device type has
            with the features that are offered. More than there is ends some backends.
        timeout: how long connecting, and then each answer, may take, in seconds; None waits for ever.

    Returns:
        What it said; also when it hung up in the middle, with the reason in ``failure``.

    Raises:
        DisconnectedError: nobody listens there.
        OSError: the socket cannot be used (permissions, a path that is too long).
    """
    with _native.Frontend(os.fspath(path), timeout=timeout, negotiate=False) as protocol:
        asking = _Asking(protocol)
        asking.everything(device_id, config_size)
    wire_logs.said(os.fspath(path), protocol.wire_log)
    return Inspection(
        socket=os.fspath(path),
        device_id=device_id,
        failure=asking.failure,
        untold=MappingProxyType(asking.untold),
        wire_log=tuple(protocol.wire_log),
        **asking.answers,  # type: ignore[arg-type] # each is stored under its own name
    )


class _Asking:
    """One question after the other, until the backend does not answer any more."""

    def __init__(self, protocol: _native.Frontend) -> None:
        self.protocol = protocol
        self.failure: str | None = None
        self.answers: dict[str, object] = {}
        self.untold = {
            "device type": "vhost-user does not tell it",
            "ring sizes": "vhost-user does not tell them; a backend refuses a ring that is too large",
        }

    def everything(self, device_id: DeviceId | None, config_size: int | None) -> None:
        protocol = self.protocol
        # Before all else, as QEMU does: the frontend keeps bit 30 to itself.
        self._try(self._features)
        self._try(lambda: protocol.negotiate(ASKED_WITH))
        # What came before it hung up is known all the same.
        if "features" not in self.answers:
            self._leave("features", self.failure or "")
        if self.failure is None or protocol.offered_protocol_features:
            self.answers["protocol_features"] = protocol.offered_protocol_features
        else:
            self._leave("protocol features", self.failure)
        self._ask_with(ProtocolFeature.MQ, "queues", "queues", lambda: protocol.queue_count)
        slots = ProtocolFeature.CONFIGURE_MEM_SLOTS
        self._ask_with(slots, "memory_slots", "memory slots", lambda: protocol.max_memory_slots)
        self._ask_with(
            ProtocolFeature.STATUS, "status", "status", lambda: DeviceStatus(protocol.status & 0xFF)
        )
        self._config(device_id, config_size)

    def _features(self) -> None:
        answer = self.protocol.raw(Request.GET_FEATURES)
        # What is no answer is left for the negotiation to complain of, which asks again.
        if answer is not None and answer.request == Request.GET_FEATURES and len(answer.payload) == 8:
            self.answers["features"] = int.from_bytes(answer.payload, "little")

    def _config(self, device_id: DeviceId | None, config_size: int | None) -> None:
        what = "configuration space"
        if not self._can(ProtocolFeature.CONFIG, what):
            return
        structure = None if device_id is None else config_class(device_id)
        if config_size is not None:
            size = config_size
        elif device_id is None:
            self._leave(what, "not asked for: its length depends on the device type, which was not given")
            return
        elif structure is None:
            self._leave(what, f"not asked for: {device_id.name} has none that is known here")
            return
        else:
            size = config_length(device_id, self.protocol.offered_features)
        if not size:
            self._leave(what, "not asked for: without the features that it has fields for it is empty")
            return
        data = self._ask("config", what, lambda: self.protocol.config(0, size))
        if data is not None and structure is not None:
            self.answers["config_space"] = structure.from_bytes(data)

    # ---- one question

    def _ask_with(self, needed: ProtocolFeature, name: str, what: str, ask: Callable[[], object]) -> None:
        if self._can(needed, what):
            self._ask(name, what, ask)

    def _can(self, needed: ProtocolFeature, what: str) -> bool:
        """Was the protocol feature agreed on? Says that it was not offered, else."""
        if self.failure is not None:
            self._leave(what, f"not asked for: {self.failure}")
        elif not self.protocol.protocol_features & needed:
            self._leave(what, f"the backend does not offer {needed.name}")
        else:
            return True
        return False

    def _ask(self, name: str, what: str, ask: Callable[[], T]) -> T | None:
        if self.failure is not None:
            self._leave(what, f"not asked for: {self.failure}")
            return None
        answer: list[T] = []
        try:
            self._try(lambda: answer.append(ask()))
        except RequestRefusedError as error:
            self._leave(what, str(error))
            return None
        if self.failure is not None:
            self._leave(what, self.failure)
            return None
        self.answers[name] = answer[0]
        return answer[0]

    def _try(self, ask: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            ask()
        except (DisconnectedError, LinkTimeoutError, ProtocolError) as error:
            self.failure = str(error)

    def _leave(self, what: str, why: str) -> None:
        self.untold[what] = why
