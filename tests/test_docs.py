"""What the README and the docs show is run."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

import xenvirt
from xenvirt.devices import BlockDevice

from .xenstore.fake_xenstored import FakeXenstored

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs all blocks of a page in one namespace, but for what would serve until Ctrl-C or needs a peer."""
    served: list[xenvirt.Device] = []
    monkeypatch.setattr(xenvirt, "serve", lambda device, _transport: served.append(device))
    monkeypatch.setattr("sys.argv", ["device.py", "device.sock"])
    names: dict[str, Any] = {"served": served}
    for block in blocks(name):
        if "with Daemon(" in block and "def " not in block:
            compile(block, name, "exec")
        else:
            exec(compile(block, name, "exec"), names)  # noqa: S102 - it is our own page
    return names


def test_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("README.md", monkeypatch)
    assert [type(device).__name__ for device in names["served"]] == ["Entropy"]


def test_the_page_on_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/devices.md", monkeypatch)
    names["serve_two"](str(tmp_path / "first"), str(tmp_path / "second"))


def test_the_page_on_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/drivers.md", monkeypatch)
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    socket = str(tmp_path / "socket")
    assert names["copy_through"](image, socket)[:5] == b"hello"
    with BlockDevice(image) as disk, xenvirt.Server() as server:
        server.add(disk, xenvirt.VhostUserSocket(socket))
        log = names["refuses_a_short_message"](socket)
    assert any("SET_VRING_NUM" in line for line in log)


def test_the_page_on_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/proxy.md", monkeypatch)
    assert names["proxy"](str(tmp_path / "daemon"), str(tmp_path / "socket")) == []


def test_the_page_on_testing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/testing.md", monkeypatch)
    tests = [names[name] for name in names if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_page_on_xen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(run("docs/xen.md", monkeypatch)["show"])


def test_the_page_on_the_xenstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("docs/xenstore.md", monkeypatch)
    with FakeXenstored(tmp_path) as daemon:
        monkeypatch.setenv("XENSTORED_PATH", daemon.path)
        daemon.write("/local/domain/3/name", "three")
        for _ in range(3):
            names["count"]("/tool/count")
        assert daemon.tree["/tool/count"].value == b"3"
        assert asyncio.run(names["name_of"](3)) == "three"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
