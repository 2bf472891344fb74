"""dom0's end of a network with a domU."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from xenvirt.devices import Tap

HOST, GUEST, MASK = "192.0.2.1", "192.0.2.2", "255.255.255.0"
"""Addresses of TEST-NET-1 (RFC 5737)."""
UP = f"ifconfig eth0 {GUEST} netmask {MASK} up"
"""The guest's command for its own end."""


@contextlib.contextmanager
def tap_of_dom0() -> Iterator[Tap]:
    """A tap that has dom0's address, and is up."""
    with contextlib.closing(Tap()) as tap:
        subprocess.run(["busybox", "ifconfig", tap.name, HOST, "netmask", MASK, "up"], check=True)
        yield tap
