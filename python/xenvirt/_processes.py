"""What can be seen of other processes, and of their sockets, without disturbing them."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

TICK_SECONDS = 0.002
"""How often is looked for what nobody tells."""


def is_socket(path: Path) -> bool:
    """Is a socket there, whether it listens or not?"""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def unix_sockets() -> Iterator[tuple[int, str]]:
    """Flags and name of each named unix socket that we can see."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        # Num RefCount Protocol Flags Type St Inode Path
        columns = line.split(maxsplit=7)
        if len(columns) == 8:
            yield int(columns[3], 16), columns[7]


def wait_without_collecting(pid: int, seconds: float) -> None:
    """Waits until a child has ended, and leaves it to be collected, so that its id stays its own."""
    deadline = time.monotonic() + seconds
    while (
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and time.monotonic() < deadline
    ):
        time.sleep(TICK_SECONDS)


def wait_for_group(group: int, seconds: float) -> None:
    """Waits until no process of a killed group runs any more. Dead ones may be left for init to collect."""
    deadline = time.monotonic() + seconds
    while _group_runs(group) and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)


def _group_runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may contain anything: state, parent, group.
            state, _, its_group = status.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def ending(status: int | None) -> str:
    """How a process ended, in words; its status as in :mod:`subprocess`."""
    if status is None:
        return "ended"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
