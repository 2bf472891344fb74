"""The lab, end to end: Xen is booted, and dom0 does what it is told."""

import io
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import xenvirt
from xenvirt.lab import Lab

pytestmark = pytest.mark.timeout(900)


def outcome(lab: Lab, *argv: str) -> tuple[int, str, str]:
    """Status and both streams of a command in dom0."""
    stdout, stderr = io.BytesIO(), io.BytesIO()
    status = lab.run(*argv, stdout=stdout, stderr=stderr, timeout=300)
    return status, stdout.getvalue().decode(), stderr.getvalue().decode()


def test_a_command_gives_its_status_and_both_streams(lab: Lab) -> None:
    assert outcome(lab, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")


def test_a_command_that_a_signal_ends_has_the_status_of_a_shell(lab: Lab) -> None:
    assert outcome(lab, "sh", "-c", "kill -9 $$") == (137, "", "")


def test_a_command_that_is_not_there_is_status_127(lab: Lab) -> None:
    assert outcome(lab, "nonesuch") == (127, "", "nonesuch: No such file or directory\n")


def test_much_output_arrives_whole(lab: Lab) -> None:
    expected = "".join(f"{number}\n" for number in range(1, 100_001))
    assert outcome(lab, "seq", "100000") == (0, expected, "")


def test_dom0_controls_a_real_xen(lab: Lab) -> None:
    status, text, _ = outcome(lab, "sh", "-c", "cat /proc/xen/capabilities; xl list")
    assert status == 0
    assert text.startswith("control_d")
    assert "Domain-0" in text


def test_dom0_imports_the_xenvirt_that_runs_here(lab: Lab) -> None:
    program = "import xenvirt, xenvirt._native; print(open(xenvirt.__file__).read(), end='')"
    assert outcome(lab, "python3", "-c", program) == (0, Path(xenvirt.__file__).read_text(), "")


def test_the_shared_folder_is_the_same_on_both_sides(lab: Lab, share: Path) -> None:
    (share / "word").write_text("hello\n")
    assert outcome(lab, "sh", "-c", "cat word; mv word moved") == (0, "hello\n", "")
    assert (share / "moved").read_text() == "hello\n"


def test_pytest_runs_in_dom0(lab: Lab, share: Path) -> None:
    (share / "test_it.py").write_text("def test_it():\n    assert 1 + 1 == 3\n")
    status, text, _ = outcome(lab, "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    assert status == 1
    assert "assert (1 + 1) == 3" in text


def probe(share: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """`xenvirt probe` in a dom0 of its own; and what is left where the running labs are."""
    with TemporaryDirectory(prefix="labs-") as folder:  # a short name, because sockets are in it
        done = subprocess.run(
            [sys.executable, "-m", "xenvirt", "lab", "run", *options, "--", "xenvirt", "probe"],
            cwd=share,
            env={**os.environ, "XDG_RUNTIME_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        left = [path.name for path in (Path(folder) / "xenvirt").iterdir() if path.name != ".lock"]
    return done, left


def test_probe_in_a_pvh_dom0_finds_xen_and_nothing_is_left(x86_64: str, share: Path) -> None:
    done, left = probe(share, "--arch", x86_64, "--dom0", "pvh")
    assert (done.returncode, "dom0 is up" in done.stderr) == (0, True), done.stderr
    assert "the hypervisor answers (Xen 4." in done.stdout
    assert left == []


def test_probe_in_an_arm_dom0_finds_xen_and_nothing_is_left(aarch64: str, share: Path) -> None:
    done, left = probe(share, "--arch", aarch64)
    assert (done.returncode, "dom0 is up" in done.stderr) == (0, True), done.stderr
    assert "aarch64" in done.stdout
    assert "the hypervisor answers (Xen 4." in done.stdout
    assert left == []
