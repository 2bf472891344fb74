"""For tests that run in a dom0: a guest that is made and never started; its kernel is in its memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """
name = "{name}"
type = "{type}"
kernel = "/boot/vmlinuz"
memory = 128
vcpus = 1
"""


def xl(*words: str) -> str:
    return subprocess.run(["xl", *words], check=True, capture_output=True, text=True).stdout


def make_guest(folder: Path, name: str, type: str = "pvh") -> int:  # noqa: A002 - xl's word
    """A paused domain of 128 MiB; gives its id."""
    config = folder / f"{name}.cfg"
    config.write_text(CONFIG.format(name=name, type=type))
    xl("create", "-p", str(config))
    return int(xl("domid", name))


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    domid = make_guest(tmp_path_factory.mktemp("guest"), "guest")
    yield domid
    xl("destroy", str(domid))


@pytest.fixture(scope="session")
def frame() -> int:
    """A frame of that guest's RAM, with more of it behind."""
    return 0x4_0100 if os.uname().machine == "aarch64" else 0x1000  # Arm's RAM begins at 1 GiB


@pytest.fixture(scope="session")
def kind() -> str:
    """ "pv" or "pvh": what this dom0 is."""
    return "pv" if Path("/sys/hypervisor/guest_type").read_text().strip() == "PV" else "pvh"
