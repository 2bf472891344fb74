"""A plugin of pytest: tests marked `dom0` run in a real dom0, in the lab; their results are ordinary ones.

In the conftest.py at the top of the tests: ``pytest_plugins = ["xenvirt.testing.dom0"]``. Then::

    @pytest.mark.dom0("pv", "pvh")  # and "aarch64"; without words, "pv"
    def test_a_page_is_mapped(dom0: str) -> None:
        ...

is two tests. All that are selected for one kind of dom0 run in one boot of it, with pytest's root folder as
the shared one, so what they and their conftest.py import has to be in there, in xenvirt, or in the standard
library. Fixtures are set up there too. The environment variable CI is passed on, others are not. In a dom0
itself the tests just run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xenvirt.errors import LabError
from xenvirt.lab import Lab
from xenvirt.lab.agent import LAB
from xenvirt.lab.boot import LAB_FOLDER
from xenvirt.lab.progress import on_stderr

MACHINES = {
    "pv": ("x86_64", "pv", "debian"),
    "pvh": ("x86_64", "pvh", "debian"),
    "aarch64": ("aarch64", "pvh", "own"),
}
"""The kinds of dom0: architecture, how Xen runs it, and its kernel."""
REPORTS_VARIABLE = "XENVIRT_DOM0_REPORTS"

_SHOWN_LINES = 60
_BOOT_SECONDS = 3600
_remote = pytest.StashKey["Remote"]()


@pytest.fixture(scope="session")
def dom0(request: pytest.FixtureRequest) -> str:
    """The kind of dom0 that the test runs in: "pv", "pvh" or "aarch64"."""
    kind: str = request.param
    return kind


def pytest_configure(config: pytest.Config) -> None:
    """Declares the mark."""
    config.addinivalue_line(
        "markers", "dom0(*kinds): run it in a real dom0: 'pv' (the default), 'pvh', 'aarch64'"
    )
    config.stash[_remote] = Remote(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test of each kind of dom0."""
    mark = metafunc.definition.get_closest_marker("dom0")
    if mark is None:
        return
    kinds = list(mark.args or ("pv",))
    unknown = set(kinds) - set(MACHINES)
    if unknown:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: no dom0 is called {', '.join(sorted(unknown))}"
        )
    if "dom0" not in metafunc.fixturenames:
        metafunc.fixturenames.append("dom0")
    metafunc.parametrize("dom0", kinds, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Gives the first marked test the time that all of them take together: it waits for the whole boot."""
    marked = item.get_closest_marker("dom0") is not None and not in_dom0()
    if marked and item.config.pluginmanager.hasplugin("timeout") and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(_BOOT_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Runs a marked test elsewhere."""
    if item.get_closest_marker("dom0") is None or in_dom0():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in item.config.stash[_remote].reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In dom0: leaves each report for the host, at once, so that a crash loses none."""
    path = os.environ.get(REPORTS_VARIABLE)
    if path and in_dom0():
        with Path(path).open("a") as file:
            file.write(json.dumps(report._to_json(), default=str) + "\n")


def in_dom0() -> bool:
    """Whether this is one."""
    try:
        return "control_d" in Path("/proc/xen/capabilities").read_text()
    except OSError:
        return False


class Remote:
    """Runs all tests of one kind of dom0 when the first result is asked for, and keeps the results."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: dict[str, dict[str, list[pytest.TestReport]]] = {}
        self._failure: dict[str, str] = {}

    def reports_of(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of one test; a failed one if there are none that say how it ended."""
        kind = kind_of(item)
        if kind not in self._results:
            wanted = [
                one.nodeid
                for one in item.session.items
                if one.get_closest_marker("dom0") is not None and kind_of(one) == kind
            ]
            self._results[kind] = {}
            self._run(kind, wanted)
        reports = self._results[kind].get(item.nodeid, [])
        yield from reports
        if not any(report.when == "teardown" for report in reports):
            why = self._failure.get(kind, "pytest in dom0 ended before this test did")
            yield pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")

    def _run(self, kind: str, nodeids: list[str]) -> None:
        architecture, how, kernel = MACHINES[kind]
        share = self._config.rootpath
        output = io.BytesIO()
        name = f"reports-{uuid.uuid4().hex}"
        capture = self._config.pluginmanager.getplugin("capturemanager")
        shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        try:
            with shown, Lab.boot(architecture, how, kernel=kernel, share=share, say=on_stderr) as lab:
                command = ["python3", "-m", "pytest", "--rootdir=/host", "-p", "no:cacheprovider"]
                environment = {REPORTS_VARIABLE: str(LAB / name)}
                if "CI" in os.environ:
                    environment["CI"] = os.environ["CI"]
                try:
                    status = lab.run(
                        *command, *nodeids, cwd="/host", env=environment, stdout=output, stderr=output
                    )
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        self._take(kind, (lab.folder / LAB_FOLDER / name).read_text())
        except LabError as error:
            self._failure[kind] = f"{error}\n{_last(output)}"
        else:
            self._failure[kind] = f"pytest in dom0 ended with status {status}\n{_last(output)}"

    def _take(self, kind: str, lines: str) -> None:
        for line in lines.splitlines():
            data: dict[str, Any] = json.loads(line)
            if isinstance(data["longrepr"], list):  # of a skip: a tuple, which JSON has not
                data["longrepr"] = tuple(data["longrepr"])
            report = pytest.TestReport._from_json(data)
            self._results[kind].setdefault(report.nodeid, []).append(report)


def kind_of(item: pytest.Item) -> str:
    """The kind of dom0 that a marked test is for."""
    kind: str = item.callspec.params["dom0"]  # type: ignore[attr-defined]
    return kind


def _last(output: io.BytesIO) -> str:
    return "\n".join(output.getvalue().decode(errors="replace").splitlines()[-_SHOWN_LINES:])
