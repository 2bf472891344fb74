"""``xenvirt map`` in a dom0: what a guest has, and what it has not."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")

MIB = 1 << 20
START = 0x4000_0000 if os.uname().machine == "aarch64" else 0


def xenvirt_map(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["xenvirt", "map", *words], capture_output=True, text=True, check=False)


def test_all_of_a_guest_is_shown_in_text_and_as_a_picture(guest: int, tmp_path: Path) -> None:
    drawn = tmp_path / "guest.svg"
    shown = xenvirt_map(str(guest), "--svg", str(drawn))
    assert (shown.returncode, shown.stderr) == (0, "")
    first, *lines, _sums = shown.stdout.splitlines()
    assert first.startswith(f"domain {guest}, guest, ")
    assert first.endswith(", 128 MiB")
    assert any(line.endswith("  data") for line in lines), "its kernel"
    assert any(line.endswith("  zeroes") for line in lines), "it has not run yet"
    assert lines[0].split()[0] == f"{START:#014x}"
    assert lines[-1].split()[2] == f"{START + 128 * MIB - 1:#014x}"
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")  # noqa: S314 - ours


def test_what_is_beyond_its_memory_is_a_hole(guest: int) -> None:
    end = START + 128 * MIB
    shown = xenvirt_map(str(guest), "--json", "--range", f"{end - MIB:#x}-{end + MIB:#x}")
    assert shown.returncode == 0
    stretches = json.loads(shown.stdout)["stretches"]
    assert stretches[-1] == {
        "start": end,
        "end": end + MIB,
        "content": "hole",
        "errno": 22,
        "reason": "there is no such frame in the domain",
    }
    assert {one["content"] for one in stretches[:-1]} <= {"data", "zeroes"}


def test_a_domain_that_is_not_there_is_said_so() -> None:
    unknown = xenvirt_map("28672")
    assert unknown.returncode == 1
    assert "there is no domain 28672" in unknown.stderr
    forced = xenvirt_map("28672", "--range", "0-0x2000")
    assert forced.returncode == 1
    assert "failed: there is no such domain" in forced.stdout
