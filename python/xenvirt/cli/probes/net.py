"""Probe: tap interfaces."""

from __future__ import annotations

import fcntl
import struct

from .finding import Finding, opened, why_not_opened

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

NEEDED_FOR = "network devices that reach the host's network"


def tap() -> Finding:
    """Makes a tap interface, which goes away with the descriptor."""
    try:
        with opened("/dev/net/tun") as device:
            try:
                request = struct.pack("16sH22x", b"xenvirt%d", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
                name = fcntl.ioctl(device, TUNSETIFF, request)[:16].rstrip(b"\0").decode()
            except PermissionError as error:
                advice = "run as root, or have one made for you: ip tuntap add dev tap0 mode tap user $USER"
                found = f"/dev/net/tun opens, and an interface may not be made: {error.strerror}"
                return Finding("tap", False, found, advice, NEEDED_FOR)
            except OSError as error:
                found = f"/dev/net/tun opens, and no interface can be made: {error.strerror}"
                return Finding("tap", False, found, "", NEEDED_FOR)
            return Finding("tap", True, f"an interface could be made ({name}, gone again)", "", NEEDED_FOR)
    except OSError as error:
        missing = "modprobe tun; in a container the node has to be passed in (--device /dev/net/tun)"
        found, advice = why_not_opened("/dev/net/tun", error, missing)
        return Finding("tap", False, found, advice, NEEDED_FOR)
