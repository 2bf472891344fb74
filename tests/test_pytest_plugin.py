"""A failed test is shown with what its links said; one that passes, and one without links, as ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LINK = """
    import tempfile
    import pytest
    from xenvirt import Server, VhostUserSocket
    from xenvirt.devices import EntropyDevice

    @pytest.fixture(scope="session")
    def path():
        with tempfile.TemporaryDirectory(prefix="xenvirt-") as folder, Server() as server:
            server.add(EntropyDevice(), VhostUserSocket(f"{folder}/s"))
            yield f"{folder}/s"
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite of somebody else, in a process of its own, with the plugin found by its entry point."""
    pytester.makeconftest(LINK)
    return pytester


def test_a_closed_link_is_shown(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from xenvirt import connect

        def test(path):
            with connect(path):
                pass
            assert False
    """)
    result = suite.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- wire log of */s -*", "*-> SET_OWNER", "*-> GET_PROTOCOL_FEATURES"])


def test_an_open_link_is_shown_as_far_as_this_test_used_it(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from xenvirt import connect

        @pytest.fixture(scope="module")
        def link(path):
            with connect(path) as link:
                yield link

        def test_first(link):
            link.protocol.set_status(1)

        def test_second(link):
            assert link.protocol.status == 7
    """)
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*wire log of */s*", "*-> GET_STATUS", "*<- GET_STATUS: 0x1"])
    assert "SET_STATUS" not in result.stdout.str()
    assert "SET_OWNER" not in result.stdout.str()


def test_each_link_has_a_section_and_an_inspection_too(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from xenvirt import connect
        from xenvirt.vhost_user import inspect

        def test(path):
            assert inspect(path).queues == 1
            with connect(path) as link:
                assert link.queue_count == 2
    """)
    result = suite.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    assert result.stdout.str().count("- wire log of ") == 2
    result.stdout.fnmatch_lines(["*-> raw: GET_FEATURES"])


def test_a_failed_setup_and_a_failed_teardown_are_shown(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from xenvirt import connect

        @pytest.fixture
        def early(path):
            with connect(path) as link:
                raise RuntimeError

        @pytest.fixture
        def late(path):
            with connect(path) as link:
                yield
                raise RuntimeError

        def test_setup(early): ...
        def test_teardown(late): ...
    """)
    result = suite.runpytest_subprocess()
    result.assert_outcomes(errors=2, passed=1)
    assert result.stdout.str().count("- wire log of ") == 2


def test_a_test_that_passes_and_one_without_links_show_nothing(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from xenvirt import connect

        def test_passes(path):
            with connect(path):
                pass

        def test_fails():
            assert False
    """)
    result = suite.runpytest_subprocess("-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*wire log of*")


def test_only_the_last_messages_are_shown(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from xenvirt import connect

        def test(path):
            with connect(path) as link:
                for _ in range(100):
                    link.protocol.status
                assert False
    """)
    result = suite.runpytest_subprocess()
    result.stdout.fnmatch_lines(["(* before)", "*GET_STATUS*"])
    assert result.stdout.str().count("-> GET_STATUS") == 50


def test_only_the_last_links_are_shown(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from xenvirt import connect

        def test(path):
            for _ in range(20):
                connect(path).close()
            assert False
    """)
    result = suite.runpytest_subprocess()
    result.stdout.fnmatch_lines(["(12 closed links before)"])
    assert result.stdout.str().count("- wire log of ") == 8


def test_those_who_do_not_use_xenvirt_do_not_import_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test():
            assert "pytest_xenvirt" in sys.modules
            assert not [name for name in sys.modules if name.partition(".")[0] == "xenvirt"]
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_it_can_be_left_out(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from xenvirt import connect

        def test(path):
            with connect(path):
                assert False
    """)
    result = suite.runpytest_subprocess("-p", "no:xenvirt")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*wire log of*")


def test_no_link_is_kept_alive_for_it(tmp_path: Path) -> None:
    program = """
import gc, weakref, sys
from xenvirt import Server, VhostUserSocket, connect
from xenvirt.devices import EntropyDevice
from xenvirt.vhost_user.wire_logs import Collection
with Server() as server, Collection() as collection:
    server.add(EntropyDevice(), VhostUserSocket(sys.argv[1]))
    link = connect(sys.argv[1])
    there = weakref.ref(link)
    del link
    gc.collect()
    assert there() is None
    assert collection.logs() == []
"""
    path = tmp_path / "s"
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)
