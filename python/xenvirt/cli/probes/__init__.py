"""What a host offers, found by trying. Each probe is a function that takes nothing and gives a Finding."""

from __future__ import annotations

from collections.abc import Callable

from . import kvm, memory, net, peers, xen
from .finding import Finding


def probes() -> dict[str, tuple[Callable[[], Finding], ...]]:
    """The probes by heading."""
    return {
        "xenvirt": (peers.xenvirt, memory.vhost_user, peers.numpy),
        "Guests and peers": (kvm.kvm, peers.guests, peers.daemons),
        "Host": (net.tap, memory.huge_pages, memory.userfault, memory.io_uring, memory.open_files),
        "Xen": xen.probes(),
    }


def probe_host() -> dict[str, list[Finding]]:
    """Tries everything. Takes some seconds at most; changes nothing on the host."""
    return {heading: [probe() for probe in group] for heading, group in probes().items()}


__all__ = ["Finding", "probe_host", "probes"]
