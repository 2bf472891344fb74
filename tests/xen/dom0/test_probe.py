"""``xenvirt probe`` in a dom0 says what is there and what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")

KINDS = {"pv": "PV", "pvh": "PVH", "aarch64": "Arm"}
EVENTFDS = {"Xen irqfd", "Xen ioeventfd"}
"""What Debian's kernels have not, and the lab's own for Arm has."""


def test_it_finds_what_this_dom0_has_and_says_why_the_rest_matters(dom0: str) -> None:
    command = [sys.executable, "-m", "xenvirt", "probe", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    findings = {one["name"]: one for one in json.loads(done.stdout)["findings"]["Xen"]}
    assert f"{KINDS[dom0]} dom0" in findings["Xen domain"]["found"]
    assert "the hypervisor answers (Xen 4." in findings["Xen hypercalls"]["found"]
    assert len(findings) == 11
    missing = {name: one for name, one in findings.items() if not one["works"]}
    assert set(missing) == (set() if dom0 == "aarch64" else EVENTFDS)
    assert all(one["needed_for"] for one in missing.values())
    if missing:
        assert "CONFIG_XEN_PRIVCMD_EVENTFD" in missing["Xen irqfd"]["advice"]
        kicks = "dom0=pvh" if dom0 == "pv" else "CONFIG_XEN_PRIVCMD_EVENTFD"
        assert kicks in missing["Xen ioeventfd"]["advice"]
