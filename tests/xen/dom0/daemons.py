"""rust-vmm's daemons in the lab's Arm dom0: built for it on the host, and laid into the shared folder.

`tests/xen/conftest.py` lays them there before dom0 is booted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from xenvirt import Daemon

FOLDER = Path("target/dom0-daemons")
"""Below the folder that dom0 has as /host, which is pytest's root folder."""


def lay_out(root: Path) -> None:
    """On the host: puts what tests/peers/prepare.py has built where dom0 finds it."""
    from tests.peers.crates import ARM_CRATES

    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for crate in ARM_CRATES:
        target = folder / crate.name
        target.unlink(missing_ok=True)
        if crate.program.exists():
            shutil.copy2(crate.program, target)


def program(name: str, root: Path) -> Path:
    """In dom0: one of them. The test is skipped where it was not built."""
    found = root / FOLDER / name
    if not found.exists():
        pytest.skip(f"{name} was not built for this dom0: scripts/test does it (tests/peers/prepare.py)")
    return found


def rng(root: Path, *, entropy: Path | None = None) -> Daemon:
    """rust-vmm's vhost-device-rng 0.1.0, built with its feature "xen"."""
    source = () if entropy is None else (f"--filename={entropy}",)
    return Daemon(program("vhost-device-rng", root), "--socket-path={socket}", *source, socket_suffix="0")


def console(root: Path, *, port: int) -> Daemon:
    """rust-vmm's vhost-device-console 0.1.0, likewise; its other end is this TCP port of 127.0.0.1."""
    options = ("--socket-path={socket}", "--backend=network", f"--tcp-port={port}")
    return Daemon(program("vhost-device-console", root), *options, socket_suffix="0")
