"""What takes long to make is kept outside the tree, under a name that changes with what it is made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache() -> Path:
    """The folder of everything kept: $XENVIRT_CACHE, or xenvirt below $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("XENVIRT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xenvirt"


def kept(name: str, *inputs: object) -> Path:
    """Where the thing of this name, made from these inputs, stands once it is made."""
    digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]
    return cache() / f"{name}-{digest}"


def make(target: Path, build: Callable[[Path], None]) -> Path:
    """Unless `target` is there: `build` fills a temporary folder, which becomes `target` once it is whole.

    Two processes may do so at the same time: the first one's work is kept.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    half_made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        build(half_made)
        half_made.chmod(0o755)
        try:
            half_made.rename(target)
        except OSError:  # not empty: another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return target


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Holds off every other process that builds in the same cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
