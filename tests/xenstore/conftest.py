from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt.xen.xenstore import XenStore

from .fake_xenstored import FakeXenstored


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeXenstored]:
    with FakeXenstored(tmp_path) as running:
        yield running


@pytest.fixture
def store(daemon: FakeXenstored) -> Iterator[XenStore]:
    with XenStore(daemon.path) as connected:
        yield connected
