"""A daemon that tries to reach other domains with the descriptor that it gets for its own guest.

    python3 -m tests.xen.dom0.trying_daemon SOCKET OTHER_DOMID

It speaks enough vhost-user to be given the memory of a guest. Of each attempt it prints a line: what it
tried, and the errno.
"""

from __future__ import annotations

import fcntl
import struct
import sys
import threading
from pathlib import Path

from tests.vhost_user.fake_backend import (
    CONFIG,
    MQ,
    SET_MEM_TABLE,
    XEN_MMAP,
    XEN_REGION,
    FakeBackend,
    Received,
    number_reply,
)

from .privcmd_calls import FRAME, attempted, map_batch, mapped, name_of, restrict

GET_QUEUE_NUM = 17
HYPERCALL, DM_OP = 0x0030_5000, 0x0010_5005


def attempts(message: Received, other: int) -> None:
    """Tries everything that could lead to another domain."""
    gpa, *_, domid = XEN_REGION.unpack_from(message.payload, 8)
    fd = message.fds[0]
    frame = gpa // FRAME

    def tried(what: str, error: int) -> None:
        print(what, name_of(error), flush=True)

    for name, domain in ("its own guest", domid), ("another guest", other), ("dom0", 0):
        with mapped(fd) as address:
            error, errors = map_batch(fd, domain, address, [frame])
            tried(f"map {name}", error or errors[0])
    tried("restrict to another guest", attempted(lambda: restrict(fd, other)))
    tried("hypercall", attempted(lambda: fcntl.ioctl(fd, HYPERCALL, struct.pack("=6Q", 17, 0, 0, 0, 0, 0))))
    tried("device model", attempted(lambda: fcntl.ioctl(fd, DM_OP, struct.pack("=HHxxxxQ", other, 0, 0))))
    print("end of attempts", flush=True)


def main(path: str, other: int) -> None:
    """Serves one connection."""

    def given(message: Received) -> None:
        attempts(message, other)

    reactions = {SET_MEM_TABLE: given, GET_QUEUE_NUM: lambda message: number_reply(message, 1)}
    with FakeBackend(Path(path), protocol_features=MQ | CONFIG | XEN_MMAP, reactions=reactions):
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
