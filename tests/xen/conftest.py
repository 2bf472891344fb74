"""The lab as fixtures. Where it cannot be had, tests are skipped; in CI that fails, see tests/conftest.py."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt.errors import LabError
from xenvirt.lab import Lab
from xenvirt.lab.progress import on_stderr
from xenvirt.lab.system import system
from xenvirt.lab.wheel import files_for
from xenvirt.testing.dom0 import in_dom0

from .dom0 import daemons


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Dom0 finds rust-vmm's daemons in the shared folder."""
    if not in_dom0() and any(
        "dom0" in item.fixturenames for item in items if isinstance(item, pytest.Function)
    ):
        daemons.lay_out(config.rootpath)


def can_be_had(architecture: str) -> str:
    """The architecture, if its lab is built or can be and can be booted; else the test is skipped."""
    if shutil.which(f"qemu-system-{architecture}") is None:
        pytest.skip(f"no qemu-system-{architecture} here (scripts/test installs it)")
    try:
        system(architecture, on_stderr)
        files_for(architecture, None, on_stderr)
    except LabError as error:
        pytest.skip(f"the lab cannot be built here: {error}")
    return architecture


@pytest.fixture(scope="session")
def x86_64() -> str:
    """An architecture whose lab can be booted."""
    return can_be_had("x86_64")


@pytest.fixture(scope="session")
def aarch64() -> str:
    """Another one, whose Xen and xenvirt are cross-built."""
    return can_be_had("aarch64")


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that dom0 has as /host."""
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="session")
def lab(x86_64: str, share: Path) -> Iterator[Lab]:
    """A PV dom0 for the whole session."""
    with Lab.boot(x86_64, "pv", share=share, say=on_stderr) as booted:
        yield booted
