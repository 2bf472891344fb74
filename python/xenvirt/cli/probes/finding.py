"""What a probe found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that this host offers or does not."""

    name: str
    """What was tried, in two or three words."""
    works: bool
    """Did it work?"""
    found: str
    """What was seen, in words."""
    advice: str = ""
    """What one can do to have it; empty when it works or nothing helps."""
    needed_for: str = ""
    """What one would want it for."""


@contextmanager
def opened(path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    """A descriptor of a device node, closed at the end."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def why_not_opened(path: str, error: OSError, missing: str, group: str = "") -> tuple[str, str]:
    """What was found and what helps, when a device node cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist", missing
    if isinstance(error, PermissionError):
        member = f", or join its group (usermod -aG {group} $USER, then log in again)" if group else ""
        return f"{path} is there, and may not be opened: {error.strerror}", f"run as root{member}"
    return f"{path} cannot be opened: {error.strerror}", missing
