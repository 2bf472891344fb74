"""For tests that run in a dom0: a guest that is made and never started; its kernel is in its memory."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """
name = "{name}"
type = "pvh"
kernel = "/boot/vmlinuz"
memory = 128
vcpus = 1
"""


def xl(*words: str) -> str:
    return subprocess.run(["xl", *words], check=True, capture_output=True, text=True).stdout


def make_guest(folder: Path, name: str) -> int:
    """A paused PVH domain of 128 MiB; gives its id."""
    config = folder / f"{name}.cfg"
    config.write_text(CONFIG.format(name=name))
    xl("create", "-p", str(config))
    return int(xl("domid", name))


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    domid = make_guest(tmp_path_factory.mktemp("guest"), "guest")
    yield domid
    xl("destroy", str(domid))


@pytest.fixture(scope="session")
def kind() -> str:
    """ "pv" or "pvh": what this dom0 is."""
    return "pv" if Path("/sys/hypervisor/guest_type").read_text().strip() == "PV" else "pvh"
