"""A plugin of pytest: tests marked `dom0` run in a real dom0, in the lab; their results are ordinary ones.

In the conftest.py at the top of the tests: ``pytest_plugins = ["xenvirt.testing.dom0"]``. Then::

    @pytest.mark.dom0("pv", "pvh")  # and "aarch64"; without words, "pv"
    def test_a_page_is_mapped(dom0: str) -> None:
        ...

is two tests. ::

    @pytest.mark.hypervisor("pv", "pvh", "aarch64")
    def test_a_page_is_mapped_on_both(hypervisor: SimulatedXen | None, dom0: str) -> None:
        with ForeignMemory(hypervisor=hypervisor) as foreign:
            ...

is six: one on a simulated Xen of each kind, right here, where `hypervisor` is that; and one in each real
dom0, where it is None, and the kernel is asked. Those in a real dom0 have the mark `dom0` too, so that ``-m
"not dom0"`` leaves them out. All that are selected for one kind of dom0 run in one boot of it, with pytest's
root folder as the shared one, so what they and their conftest.py import has to be in there, in xenvirt, or
in the standard library. Fixtures are set up there too. The environment variable CI is passed on, others are
not. In a dom0 itself the tests just run.
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

from .simulated_xen import SimulatedXen

MACHINES = {
    "pv": ("x86_64", "pv", "debian", 2048),
    "pvh": ("x86_64", "pvh", "debian", 2048),
    "aarch64": ("aarch64", "pvh", "own", 5632),
}
"""The kinds of dom0: architecture, how Xen runs it, its kernel, and MiB of the machine. On Arm there is room
for a guest that has RAM in both banks; what is not touched costs the host nothing."""
SIMULATED = "sim-"
"""What the names of simulated kinds begin with."""
REPORTS_VARIABLE = "XENVIRT_DOM0_REPORTS"

_SHOWN_LINES = 60
_BOOT_SECONDS = 3600
_remote = pytest.StashKey["Remote"]()


@pytest.fixture(scope="session")
def _machine(request: pytest.FixtureRequest) -> str:
    machine: str = request.param
    return machine


@pytest.fixture(scope="session")
def dom0(_machine: str) -> str:
    """The kind of dom0 that the test runs in: "pv", "pvh" or "aarch64"; a real one, or a simulated one."""
    return _machine.removeprefix(SIMULATED)


@pytest.fixture(scope="session")
def hypervisor(_machine: str) -> SimulatedXen | None:
    """The simulated Xen that the test runs on, the same in all tests of a session; None on a real one."""
    if not _machine.startswith(SIMULATED):
        return None
    kind: Any = _machine.removeprefix(SIMULATED)
    return SimulatedXen(kind)


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marks."""
    config.addinivalue_line(
        "markers", "hypervisor(*kinds): run it in real dom0s of these kinds and on simulated ones"
    )
    config.addinivalue_line(
        "markers", "dom0(*kinds): run it in a real dom0: 'pv' (the default), 'pvh', 'aarch64'"
    )
    config.stash[_remote] = Remote(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test of each kind of dom0, and with the mark `hypervisor` one of each simulated kind."""
    marks = [mark for mark in metafunc.definition.iter_markers() if mark.name in ("dom0", "hypervisor")]
    if not marks:
        return
    mark = marks[0]
    kinds = list(mark.args or ("pv",))
    unknown = set(kinds) - set(MACHINES)
    if unknown:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: no dom0 is called {', '.join(sorted(unknown))}"
        )
    if "_machine" not in metafunc.fixturenames:
        metafunc.fixturenames.append("_machine")
    simulated = [SIMULATED + kind for kind in kinds if mark.name == "hypervisor"]
    real = [pytest.param(kind, marks=pytest.mark.dom0(kind)) for kind in kinds]
    metafunc.parametrize("_machine", [*simulated, *real], indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Gives the first marked test the time that all of them take together: it waits for the whole boot."""
    has_timeouts = item.config.pluginmanager.hasplugin("timeout")
    if runs_elsewhere(item) and has_timeouts and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(_BOOT_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a marked test elsewhere."""
    if not runs_elsewhere(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in item.config.stash[_remote].reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    # A test before this one that ran here has left its module's fixtures for this one.
    item.session._setupstate.teardown_exact(nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In dom0: leaves each report for the host, at once, so that a crash loses none."""
    path = os.environ.get(REPORTS_VARIABLE)
    if path and in_dom0():
        with Path(path).open("a") as file:
            file.write(json.dumps(report._to_json(), default=str) + "\n")


def runs_elsewhere(item: pytest.Item) -> bool:
    """Whether a test is for a real dom0, and this is none."""
    marked = item.get_closest_marker("dom0") is not None
    return marked and not kind_of(item).startswith(SIMULATED) and not in_dom0()


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
                one.nodeid for one in item.session.items if runs_elsewhere(one) and kind_of(one) == kind
            ]
            self._results[kind] = {}
            self._run(kind, wanted)
        reports = self._results[kind].get(item.nodeid, [])
        yield from reports
        if not any(report.when == "teardown" for report in reports):
            why = self._failure.get(kind, "pytest in dom0 ended before this test did")
            yield pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")

    def _run(self, kind: str, nodeids: list[str]) -> None:
        architecture, how, kernel, memory = MACHINES[kind]
        share = self._config.rootpath
        output = io.BytesIO()
        name = f"reports-{uuid.uuid4().hex}"
        capture = self._config.pluginmanager.getplugin("capturemanager")
        shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        try:
            with (
                shown,
                Lab.boot(architecture, how, kernel=kernel, share=share, memory=memory, say=on_stderr) as lab,
            ):
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
    """The kind of dom0 that a marked test is for; of a simulated one, after `SIMULATED`."""
    kind: str = item.callspec.params["_machine"]  # type: ignore[attr-defined]
    return kind


def _last(output: io.BytesIO) -> str:
    return "\n".join(output.getvalue().decode(errors="replace").splitlines()[-_SHOWN_LINES:])
