"""The plugin that runs marked tests in a dom0: their results come back as if they had run here."""

import pytest

from xenvirt.lab.cache import cache

pytestmark = pytest.mark.timeout(900)

CACHE = str(cache())
PROGRAM = """
import pytest
from pathlib import Path

pytestmark = pytest.mark.dom0

@pytest.fixture
def broken():
    raise RuntimeError("the fixture is broken")

def test_in_dom0(dom0):
    assert "control_d" in Path("/proc/xen/capabilities").read_text()
    assert dom0 == "pv"

def test_that_fails():
    there, here = "dom0", "host"
    print("printed in", there)
    assert there == here

def test_that_skips():
    pytest.skip("not today")

def test_that_cannot_begin(broken):
    pass
"""

BOTH = """
import pytest

@pytest.fixture(scope="module")
def once():
    yield "this module's"

@pytest.mark.hypervisor
def test_on_both(hypervisor, once):
    assert once
"""


def test_results_come_back_with_their_tracebacks(
    x86_64: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert x86_64
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("XENVIRT_CACHE", CACHE)  # pytester moves the home
    pytester.makeconftest('pytest_plugins = ["xenvirt.testing.dom0"]')
    pytester.makepyfile(test_both=BOTH, test_marked=PROGRAM, test_here="def test_here(): pass")
    result = pytester.runpytest_subprocess("-v")
    result.assert_outcomes(passed=4, failed=1, skipped=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "test_marked.py::test_in_dom0*PASSED*",
            "*RuntimeError: the fixture is broken",
            "*assert there == here",
            "*AssertionError: assert 'dom0' == 'host'",
            "test_marked.py:*: AssertionError",
            "printed in dom0",
        ]
    )


def test_a_kind_of_dom0_that_is_not_there_is_a_wrong_use(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["xenvirt.testing.dom0"]')
    pytester.makepyfile("import pytest\n@pytest.mark.dom0('arm')\ndef test_it(): pass")
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*no dom0 is called arm"])
