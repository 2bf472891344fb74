"""XenbusState: how far a backend and a frontend are with each other (xen/include/public/io/xenbus.h)."""

from __future__ import annotations

from enum import IntEnum

from xenvirt.xen.xenstore import Transaction, XenStore


class XenbusState(IntEnum):
    """The value of a node's ``state``; each side writes its own.

    A virtio driver in a guest knows nothing of the xenstore, so the frontend's stays at INITIALISING. The
    toolstack waits for the backend: for INIT_WAIT when it makes a device, and for CLOSED when it has written
    CLOSING to take it away; ten seconds each (libxl's libxl__wait_device_connection and
    libxl__initiate_device_generic_remove).
    """

    UNKNOWN = 0
    INITIALISING = 1
    """The toolstack has made the node."""
    INIT_WAIT = 2
    """The backend knows of it."""
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    """It is to go away."""
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8

    @classmethod
    def parse(cls, text: str | None) -> XenbusState:
        """From the text of a node; UNKNOWN where there is none, or nonsense."""
        if text is None or not (text.isascii() and text.isdigit()):
            return cls.UNKNOWN
        return cls(int(text)) if int(text) in cls._value2member_map_ else cls.UNKNOWN


_BEFORE = {
    XenbusState.INIT_WAIT: {XenbusState.INITIALISING, XenbusState.CLOSED},
    XenbusState.INITIALISED: {XenbusState.INIT_WAIT},
    XenbusState.CONNECTED: {XenbusState.INIT_WAIT, XenbusState.INITIALISED},
    XenbusState.CLOSED: set(XenbusState) - {XenbusState.UNKNOWN, XenbusState.CLOSED},
}
"""From where a backend may go to a state."""


def advance(store: XenStore, path: str, state: XenbusState) -> bool:
    """Writes the state of a backend's node, if it may follow on the present one.

    A node that the toolstack has removed meanwhile is not made again, and one that is to be closed is not
    opened. Does nothing if the state is that already.

    Args:
        store: the xenstore.
        path: the backend's node.
        state: INIT_WAIT, INITIALISED, CONNECTED or CLOSED.

    Returns:
        Whether it is in that state now.
    """

    def step(transaction: Transaction) -> bool:
        present = XenbusState.parse(transaction.get(f"{path}/state"))
        if present not in _BEFORE[state]:
            return present == state
        transaction.write(f"{path}/state", int(state))
        return True

    return store.transact(step)
