"""Settings of the whole suite."""

import contextlib
import os
from collections.abc import Generator

import pytest

pytest_plugins = ["pytester", "xenvirt.testing.dom0"]

with contextlib.suppress(ModuleNotFoundError):  # in a dom0, whose tests have no properties
    from hypothesis import settings

    # No test is about time: a slow example on a busy machine is no failure.
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")

IN_CI = bool(os.environ.get("CI"))


def _no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where CI is set everything is there, so a test that skips has lost what it tests with: it fails."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which is a failure in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See `_no_skip`."""
    report = yield
    _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """See `_no_skip`."""
    report = yield
    _no_skip(report)
    return report
