"""``xenvirt probe`` says in words what works, what does not, and what one can do about it."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirt.cli import main
from xenvirt.cli.probe import as_text
from xenvirt.cli.probes import Finding, kvm, memory, net, peers, probes, xen
from xenvirt.cli.probes.finding import why_not_opened

ALL = [probe for group in probes().values() for probe in group]
XEN = [
    *(xen.privcmd, xen.privcmd_calls, xen.placeholders, xen.interrupts_by_eventfd, xen.kicks_by_eventfd),
    *(xen.hypercall_buffers, xen.gntdev, xen.gntalloc, xen.evtchn, xen.xenstore),
]
NODES: list[Callable[[], Finding]] = [kvm.kvm, net.tap, *XEN]


def raising(error: OSError) -> Callable[..., int]:
    def fail(*_args: object) -> int:
        raise error

    return fail


@pytest.mark.parametrize("probe", {*ALL, xen.domain, *XEN}, ids=lambda probe: probe.__name__)
def test_every_probe_says_something_and_leaves_nothing_open(probe: Callable[[], Finding]) -> None:
    gc.collect()  # what earlier tests left goes now, not while we count
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    finding = probe()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert finding.name
    assert finding.found
    assert finding.needed_for


@pytest.mark.parametrize("probe", NODES, ids=lambda probe: probe.__name__)
@pytest.mark.parametrize(
    ("error", "found"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "does not exist"),
        (PermissionError(errno.EACCES, "Permission denied"), "may not be opened"),
    ],
)
def test_a_node_that_cannot_be_opened_comes_with_advice(
    probe: Callable[[], Finding], error: OSError, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenvirt.cli.probes.finding.os.open", raising(error))
    finding = probe()
    assert not finding.works
    assert found in finding.found
    assert finding.advice


@pytest.mark.parametrize("probe", NODES, ids=lambda probe: probe.__name__)
def test_a_node_that_opens_and_does_nothing_does_not_count(
    probe: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    monkeypatch.setattr("xenvirt.cli.probes.finding.os.open", lambda _path, flags: real("/dev/null", flags))
    monkeypatch.setattr(xen, "XENSTORE_SECONDS", 0.0)
    finding = probe()
    assert not finding.works
    assert "open" in finding.found


def test_a_kvm_that_cannot_run_a_guest_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {kvm.KVM_GET_API_VERSION: 12}

    def ioctl(_fd: int, request: int, _argument: object = 0) -> int:
        if request in answers:
            return answers[request]
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    real = os.open
    monkeypatch.setattr("xenvirt.cli.probes.finding.os.open", lambda _path, flags: real("/dev/null", flags))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    finding = kvm.kvm()
    assert not finding.works
    assert finding.found == "/dev/kvm opens, and KVM_CREATE_VM fails: Operation not supported"


def test_a_tap_that_may_not_be_made_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr("xenvirt.cli.probes.finding.os.open", lambda _path, flags: real("/dev/null", flags))
    monkeypatch.setattr(fcntl, "ioctl", raising(PermissionError(errno.EPERM, "Operation not permitted")))
    finding = net.tap()
    assert finding.found == "/dev/net/tun opens, and an interface may not be made: Operation not permitted"
    assert "ip tuntap add" in finding.advice


def test_no_free_huge_page_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "ftruncate", raising(OSError(errno.ENOMEM, "Cannot allocate memory")))
    finding = memory.huge_pages()
    assert not finding.works
    assert "sysctl vm.nr_hugepages" in finding.advice


def test_programs_are_started_and_not_only_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "virtiofsd", tmp_path / "vhost-device-rng"
    good.write_text("#!/bin/sh\necho virtiofsd backend 1.13.2\n")
    bad.write_text("#!/no/such/interpreter\n")
    for program in (good, bad):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    finding = peers.daemons()
    assert finding.works
    assert "virtiofsd 1.13.2" in finding.found
    assert "vhost-device-rng (does not start)" in finding.found


def test_a_group_is_suggested_where_there_is_one() -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    assert "usermod -aG kvm" in why_not_opened("/dev/kvm", error, "", "kvm")[1]
    assert why_not_opened("/dev/net/tun", error, "")[1] == "run as root"


def test_text_wraps_and_shows_advice_only_for_what_does_not_work() -> None:
    findings = {
        "Host": [
            Finding("tap", True, "fine", "never shown", "never shown"),
            Finding("KVM", False, "words " * 30, "modprobe kvm", "fast guests"),
        ]
    }
    text = as_text(findings, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "  yes tap fine" in text
    assert "try: modprobe kvm" in text
    assert "for: fast guests" in text
    assert "never shown" not in text


def test_the_command_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe"]) == 0
    assert "vhost-user" in capsys.readouterr().out
    assert main(["probe", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"host", "findings"}
    one = report["findings"]["Host"][0]
    assert set(one) == {"name", "works", "found", "advice", "needed_for"}
