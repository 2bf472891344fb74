"""What this process holds of the system: to be counted before and after."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

GRANTED, FOREIGN = "/dev/xen/gntdev", "/dev/xen/privcmd"


class Held(NamedTuple):
    """Counts of one moment."""

    files: int
    """Descriptors that are open."""
    threads: int
    """Of Python and others."""
    granted: int
    """Pages that are mapped by grants."""
    granted_ranges: int
    """The mappings (VMAs) that those pages are in."""
    foreign_ranges: int
    """Mappings of privcmd."""


def held() -> Held:
    """What is held now."""
    maps = Path("/proc/self/maps").read_text()
    spans = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .* (\S+)$", maps, re.MULTILINE)
    granted = [int(end, 16) - int(start, 16) for start, end, name in spans if name.startswith(GRANTED)]
    foreign = [name for *_, name in spans if name.startswith(FOREIGN)]
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names alone
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    return Held(files, threads, sum(granted) // 4096, len(granted), len(foreign))
