"""``xenvirt attach`` as far as it goes without a hypervisor: what it would do, and how it complains."""

from __future__ import annotations

import configparser
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xenstore.fake_xenstored import FakeXenstored
from tests.xenstore.toolstack import Toolstack
from xenvirt.cli import main
from xenvirt.xen.xenstore import XenStore


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toolstack]:
    with FakeXenstored(tmp_path) as daemon:
        monkeypatch.setenv("XENSTORED_PATH", daemon.path)
        daemon.write("/local/domain/0/domid", "0")
        with XenStore() as store:
            toolstack = Toolstack(store)
            for domid in (3, 4):
                toolstack.make_domain(domid)
                store.write(f"/local/domain/{domid}/name", f"guest-{domid}")
            yield toolstack


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "attach.toml"
    path.write_text(
        """
        [[device]]
        type = "entropy"
        class = "xenvirt.devices:EntropyDevice"

        [[device]]
        type = "block"
        class = "xenvirt.devices:BlockDevice"
        arguments = { image = "{target}", read_only = "{read_only}" }

        [[device]]
        type = "i2c"
        socket = "/nothing/i2c-{domid}.sock"

        [[device]]
        type = "net"
        ignore = true
        """
    )
    return path


def attach(*words: str) -> int:
    return main(["attach", *words])


def test_a_dry_run_says_what_would_serve_each_device(
    tools: Toolstack, rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.add(3, 0, grant_usage="1")
    tools.add_disk(3, mode="r", base="0x2000200", irq="34")
    tools.add(4, 1, type="virtio,device1", state="4")
    tools.add(4, 2, type="virtio,device1a")
    assert attach("--watch", "--map", str(rules), "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "domain 3, virtio device 0 (entropy at 0x2000000, interrupt 33), guest 'guest-3', "
        "waiting for a backend",
        "    xenvirt.devices:EntropyDevice(); its memory by grants",
        "domain 4, virtio device 1 (net at 0x2000000, interrupt 33), guest 'guest-4', "
        "with a backend, or left by one",
        "    somebody else: it is left alone",
        "domain 4, virtio device 2 (fs at 0x2000000, interrupt 33), guest 'guest-4', waiting for a backend",
        "    nothing: an empty slot, device id 0",
        "domain 3, virtio disk 51712 (block at 0x2000200, interrupt 34), guest 'guest-3', "
        "waiting for a backend",
        "    xenvirt.devices:BlockDevice(image='/disk.img', read_only=True); its memory by foreign mappings",
    ]
    assert tools.state("/local/domain/0/backend/virtio/3/0") == 1


def test_a_dry_run_fails_where_a_device_would_not_be_served(
    tools: Toolstack, rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.add(3, 0, type="virtio,device22")
    tools.add(3, 1, base="here")
    assert attach("--domid", "3", "--map", str(rules), "--dry-run") == 1
    out = capsys.readouterr().out
    assert "an empty slot, because there is no socket at /nothing/i2c-3.sock: does the daemon run?" in out
    assert "left alone: /local/domain/0/backend/virtio/3/1/base is 'here'" in out


def test_one_rule_may_stand_on_the_command_line(tools: Toolstack, capsys: pytest.CaptureFixture[str]) -> None:
    tools.add_disk(3)
    command = (
        "--domid",
        "3",
        "--class",
        "xenvirt.devices:BlockDevice",
        "--set",
        "image={target}",
        "--dry-run",
    )
    assert attach(*command) == 0
    assert "BlockDevice(image='/disk.img')" in capsys.readouterr().out
    assert attach("--domid", "3", "--daemon", f"{sys.executable} --socket={{socket}}", "--dry-run") == 0
    assert f"a daemon: {sys.executable} --socket={{socket}}" in capsys.readouterr().out


@pytest.mark.usefixtures("tools")
def test_a_slot_of_which_the_xenstore_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--domid", "3", "--base", "0x2000200", "--irq", "34", "--type", "entropy", "--grants")
    assert attach(*command, "--class", "xenvirt.devices:EntropyDevice", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "domain 3, virtio device 0 (entropy at 0x2000200, interrupt 34), guest 'guest-3', "
        "of which the xenstore says nothing",
        "    xenvirt.devices:EntropyDevice(); its memory by grants",
    ]


@pytest.mark.usefixtures("tools")
def test_where_nothing_is_announced_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert attach("--watch", "--dry-run") == 0
    assert attach("--domid", "3", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "no guest has announced any virtio device to this domain",
        "domain 3 has not announced any virtio device to this domain",
    ]


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["--domid", "3", "--base", "1"], "--base, --irq and --domid go together"),
        (["--watch", "--base", "1", "--irq", "1"], "--base, --irq and --domid go together"),
        (["--domid", "3", "--type", "net"], "--type and --grants go with --base and --irq"),
        (["--domid", "3", "--set", "a=1"], "--set goes with --class"),
        (["--domid", "3", "--class", "m:C", "--set", "a"], "--set wants NAME=VALUE, not 'a'"),
        (["--domid", "3", "--class", "C"], "the command line, rule 1: class is 'module:Class'"),
        (["--domid", "3", "--socket", "/s", "--socket-suffix", "0"], "socket_suffix goes with command"),
        (["--domid", "3", "--map", "/no/such/file"], "No such file"),
        (
            ["--domid", "3", "--xenstore", "/no/such/socket"],
            "the xenstore at /no/such/socket cannot be reached",
        ),
    ],
)
def test_what_does_not_go_together_is_said(
    command: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attach(*command, "--dry-run") == 1
    assert why in capsys.readouterr().err


def test_the_unit_starts_this_xenvirt(capsys: pytest.CaptureFixture[str]) -> None:
    assert attach("--print-unit") == 0
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(capsys.readouterr().out)
    assert unit["Service"]["ExecStart"].startswith(f"{sys.executable} -m xenvirt attach --watch --map")
    assert unit["Service"]["Type"] == "notify"
