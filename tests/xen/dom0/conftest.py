"""For tests that run in a dom0, real or simulated: a guest that is made and never started; its kernel is in
its memory."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirt.testing import SimulatedXen

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


class Guest:
    """A guest that can be destroyed."""

    def __init__(self, domid: int, destroy: Callable[[], object]) -> None:
        self.domid = domid
        self.exists = True
        self._destroy = destroy

    def destroy(self) -> None:
        """Once is enough."""
        if self.exists:
            self.exists = False
            self._destroy()


def new_guest(hypervisor: SimulatedXen | None, folder: Path, name: str) -> Guest:
    """A guest of this hypervisor, with something in the memory where a kernel would be."""
    if hypervisor is None:
        domid = make_guest(folder, name)
        return Guest(domid, lambda: xl("destroy", str(domid)))
    simulated = hypervisor.create_domain(128 << 20)
    kernel = bytes(range(1, 252)) * 0x4000
    simulated.write(simulated.ram[0].start + (1 << 20), kernel)
    simulated.write(simulated.ram[0].start + (16 << 20), kernel)
    return Guest(simulated.domid, simulated.destroy)


@pytest.fixture(scope="session")
def guest(hypervisor: SimulatedXen | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    made = new_guest(hypervisor, tmp_path_factory.mktemp("guest"), "guest")
    yield made.domid
    made.destroy()


@pytest.fixture
def doomed(hypervisor: SimulatedXen | None, tmp_path: Path) -> Iterator[Guest]:
    """Another one, for a test that destroys it."""
    made = new_guest(hypervisor, tmp_path, "doomed")
    yield made
    made.destroy()


@pytest.fixture(scope="session")
def frame(dom0: str) -> int:
    """A frame of that guest's RAM, with more of it behind."""
    return 0x4_0100 if dom0 == "aarch64" else 0x1000  # Arm's RAM begins at 1 GiB


@pytest.fixture(scope="session")
def kind() -> str:
    """ "pv" or "pvh": what this dom0 is."""
    return "pv" if Path("/sys/hypervisor/guest_type").read_text().strip() == "PV" else "pvh"
