"""The numbers of vhost-user: protocol feature bits, and the requests of a frontend.

For ``connect(socket, protocol_features=...)``, and for raw messages in negative tests.
"""

from __future__ import annotations

from enum import KEEP, IntEnum, IntFlag


class ProtocolFeature(IntFlag, boundary=KEEP):
    """vhost-user protocol features (section "Protocol features"). A plain ``int`` to whoever wants one; bits
    that have no name are kept.
    """

    MQ = 1 << 0
    """The backend says how many queues it has."""
    LOG_SHMFD = 1 << 1
    """The log of written pages is a shared file."""
    RARP = 1 << 2
    """SEND_RARP, after a migration."""
    REPLY_ACK = 1 << 3
    """Requests can be acknowledged: an error is then told where it happens."""
    MTU = 1 << 4
    """NET_SET_MTU."""
    BACKEND_REQ = 1 << 5
    """The backend can speak first, over a channel of its own."""
    CROSS_ENDIAN = 1 << 6
    """SET_VRING_ENDIAN, for legacy devices."""
    CRYPTO_SESSION = 1 << 7
    """Sessions of virtio-crypto."""
    PAGEFAULT = 1 << 8
    """Postcopy migration."""
    CONFIG = 1 << 9
    """The configuration space is the backend's."""
    BACKEND_SEND_FD = 1 << 10
    """Requests of the backend may carry file descriptors."""
    HOST_NOTIFIER = 1 << 11
    """The guest's notification may go to the device directly."""
    INFLIGHT_SHMFD = 1 << 12
    """What is in flight is recorded in a shared file, so that a backend that died can go on."""
    RESET_DEVICE = 1 << 13
    """RESET_DEVICE."""
    INBAND_NOTIFICATIONS = 1 << 14
    """Kicks and calls are messages."""
    CONFIGURE_MEM_SLOTS = 1 << 15
    """Memory regions come and go one by one."""
    STATUS = 1 << 16
    """The device status is passed on."""
    XEN_MMAP = 1 << 17
    """Memory regions say how Xen maps them. A daemon that is built for Xen insists on it."""
    SHARED_OBJECT = 1 << 18
    """Shared dma-bufs."""
    DEVICE_STATE = 1 << 19
    """The device's internal state can be saved and loaded."""
    GET_VRING_BASE_INFLIGHT = 1 << 20
    """A queue can be stopped without waiting for what is in flight."""
    GPA_ADDRESSES = 1 << 21
    """Ring addresses are the guest's."""
    SHMEM_MAP = 1 << 22
    """The backend may map files into the device's shared memory."""


def protocol_feature_names(features: int) -> list[str]:
    """The names of the bits that are set, lowest first; ``bit 40`` for one that has none.

    >>> protocol_feature_names(1 << 40 | ProtocolFeature.MQ)
    ['MQ', 'bit 40']
    """
    names = {feature.value: feature.name for feature in ProtocolFeature}
    numbers = (number for number in range(features.bit_length()) if features >> number & 1)
    return [names.get(1 << number) or f"bit {number}" for number in numbers]


class Request(IntEnum):
    """What a frontend can ask (section "Front-end message types"), for ``Frontend.raw``."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
