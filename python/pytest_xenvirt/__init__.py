"""A plugin of pytest: shows with a failed test what its links to vhost-user backends said.

It is found by pytest as soon as xenvirt is installed, and stands outside of the package so that the tests of
those who do not use xenvirt do not import it. ``-p no:xenvirt`` leaves it out.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Protocol

import pytest

SHOWN_LINES = 100
"""How many messages of a link are shown, the last ones."""


class Collection(Protocol):
    """``xenvirt.vhost_user.wire_logs.Collection``, unless it is not there to be imported."""

    left_out: int

    def logs(self) -> list[tuple[str, list[str]]]: ...


_collection = pytest.StashKey[Collection]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collects the wire logs while a test runs, its fixtures with it, if xenvirt is imported at all."""
    wire_logs = sys.modules.get("xenvirt.vhost_user.wire_logs")
    if wire_logs is None:
        return (yield)
    with wire_logs.Collection() as item.stash[_collection]:
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds a section for each link that said something, where setup, test or teardown failed."""
    report = yield
    collection = item.stash.get(_collection, None)
    if report.failed and collection is not None:
        if collection.left_out:
            report.sections.append(("wire logs", f"({collection.left_out} closed links before)"))
        for name, lines in collection.logs():
            left_out = len(lines) - SHOWN_LINES
            before = [f"({left_out} before)"] if left_out > 0 else []
            report.sections.append(
                (f"wire log of {name or 'a socket'}", "\n".join([*before, *lines[-SHOWN_LINES:]]))
            )
    return report
