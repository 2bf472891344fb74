"""Which frames a network device hands to its driver, as that wants it (virtio 1.3, section 5.1.6.5.1)."""

from __future__ import annotations

from typing import Final

from xenvirt.virtio.net import ReceiveCommand

BROADCAST: Final = b"\xff" * 6
MAC_SIZE: Final = 6
MAX_ADDRESSES: Final = 1024
"""The most addresses in a table that we take; beyond that all of its kind pass."""


class ReceiveFilter:
    """Everything passes until the driver says otherwise."""

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        # As in QEMU: promiscuous until the driver switches it off.
        self._modes = dict.fromkeys(ReceiveCommand, False) | {ReceiveCommand.PROMISC: True}
        self._unicast: frozenset[bytes] = frozenset()
        self._multicast: frozenset[bytes] = frozenset()

    def set_mode(self, command: int, on: bool) -> bool:
        """A command of class RX. False if it is none that we know."""
        if command not in self._modes:
            return False
        self._modes[ReceiveCommand(command)] = on
        return True

    def set_table(self, data: bytes) -> bool:
        """The addresses of a command TABLE_SET: the unicast ones, then the multicast ones, each with their
        number in front. False if they are cut short, or too many."""
        tables = []
        for _ in range(2):
            count, data = int.from_bytes(data[:4], "little"), data[4:]
            size = count * MAC_SIZE
            if count > MAX_ADDRESSES or size > len(data):
                return False
            tables.append(frozenset(data[at : at + MAC_SIZE] for at in range(0, size, MAC_SIZE)))
            data = data[size:]
        self._unicast, self._multicast = tables
        return True

    def passes(self, destination: bytes) -> bool:
        """Is a frame to this address for the driver?"""
        modes = self._modes
        if modes[ReceiveCommand.PROMISC]:
            return True
        if destination == BROADCAST:
            return not modes[ReceiveCommand.NOBCAST]
        if destination[:1] and destination[0] & 1:
            if modes[ReceiveCommand.NOMULTI]:
                return False
            return modes[ReceiveCommand.ALLMULTI] or destination in self._multicast
        if modes[ReceiveCommand.NOUNI]:
            return False
        return modes[ReceiveCommand.ALLUNI] or destination == self.mac or destination in self._unicast
