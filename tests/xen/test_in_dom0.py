"""The tests of tests/xen/dom0 in the dom0s of the lab: each result is shown by its own name."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from xenvirt.lab import Lab
from xenvirt.lab.progress import on_stderr

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("dom0", ["pv", "pvh"])
def test_foreign_memory(x86_64: str, dom0: str) -> None:
    report = ROOT / f".pytest-dom0-{dom0}.xml"
    output = io.BytesIO()
    command = ["pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report.name}", "tests/xen/dom0"]
    try:
        with Lab.boot(x86_64, dom0, share=ROOT, say=on_stderr) as lab:
            status = lab.run(*command, stdout=output, stderr=output, timeout=600)
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it
    finally:
        report.unlink(missing_ok=True)
    assert status == 0, output.getvalue().decode()
    assert len(cases) > 15
    assert not [case.get("name") for case in cases if len(case)]  # neither failed nor skipped
