"""Daemon starts a program, knows when its socket listens, says in words what went wrong, and leaves nothing
behind.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from xenvirt.daemon import Daemon
from xenvirt.errors import DaemonError, DisconnectedError, LinkTimeoutError

LISTEN = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
print("listening", flush=True)
"""


def python(code: str, *args: str, **options: object) -> Daemon:
    # Isolated and without site-packages it starts in a moment, also on a busy machine.
    return Daemon(sys.executable, "-I", "-S", "-c", code, *(args or ("{socket}",)), **options)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    """No process of that id, not even one that waits to be collected by us."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return status[0] == "Z" and int(status[1]) != os.getpid()


def test_the_block_begins_when_the_socket_listens_and_all_is_gone_after_it() -> None:
    daemon = python(
        LISTEN + "listener.accept(); print('a client'); sys.stdin.read(); import time; time.sleep(60)"
    )
    with daemon:
        pid, directory = daemon.pid, Path(daemon.dir)
        assert Path(daemon.socket).parent == directory
        assert directory.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.socket)
    assert gone(pid)
    assert not directory.exists()
    with pytest.raises(DaemonError, match="does not run: use it inside its with block"):
        _ = daemon.socket


def test_finding_out_does_not_connect() -> None:
    code = LISTEN + "listener.accept()[0].send(b'first'); import time; time.sleep(60)"
    with python(code) as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(daemon.socket)
        assert client.recv(10) == b"first"


def test_a_socket_that_is_bound_by_a_relative_path_is_found() -> None:
    code = "import os, sys; os.chdir(sys.argv[1]); sys.argv[1] = 's'" + LISTEN + "import time; time.sleep(60)"
    with python(code, "{dir}") as daemon:
        assert Path(daemon.socket).exists()


def test_placeholders_are_replaced_literally_and_other_braces_left_alone() -> None:
    code = (
        LISTEN + "import os; print(sys.argv[2], os.environ['WHERE'], flush=True); import time; time.sleep(60)"
    )
    with python(code, "{socket}", '{"a": {}, "b": "{dir}"}', env={"WHERE": "{socket}!"}) as daemon:
        expected = f'{{"a": {{}}, "b": "{daemon.dir}"}} {daemon.socket}!'
        daemon.wait_for_output(re.escape(expected))


def test_a_suffix_is_part_of_the_socket() -> None:
    code = "import sys; sys.argv[1] += '0'" + LISTEN + "import time; time.sleep(60)"
    with python(code, socket_suffix="0") as daemon:
        assert daemon.socket.endswith("0")
        assert Path(daemon.socket).is_socket()


def test_a_suffix_that_was_forgotten_is_suggested() -> None:
    code = "import sys; sys.argv[1] += '0'" + LISTEN + "import time; time.sleep(60)"
    with pytest.raises(DaemonError, match=r"did not open its socket .* within 4.0 s.*say socket_suffix='0'"):
        python(code, timeout=4.0).__enter__()


def test_a_daemon_that_never_opens_its_socket_is_ended_with_its_output_shown() -> None:
    daemon = python("print('waiting for Godot', flush=True); import time; time.sleep(60)", timeout=4.0)
    with pytest.raises(
        DaemonError, match=r"(?s)No other socket appeared.*It printed:\n    waiting for Godot"
    ) as caught:
        daemon.__enter__()
    pid = re.search(r"pid (\d+)", str(caught.value))
    assert pid is not None
    assert gone(int(pid[1]))
    assert caught.value.exit_status is None


def test_a_socket_that_is_bound_but_does_not_listen_is_not_ready() -> None:
    code = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); time.sleep(60)"
    with pytest.raises(DaemonError, match="did not open its socket"):
        python(code, timeout=1.0).__enter__()


def test_a_daemon_that_dies_at_start_is_named_with_status_and_output() -> None:
    with pytest.raises(DaemonError) as caught:
        python("import sys; sys.exit('error: no such device: /dev/i2c-9')").__enter__()
    assert re.search(r"ended with status 1 before it opened its socket", str(caught.value))
    assert str(caught.value).endswith("It printed:\n    error: no such device: /dev/i2c-9")
    assert caught.value.exit_status == 1
    assert caught.value.output == "error: no such device: /dev/i2c-9\n"


def test_a_daemon_that_goes_to_the_background_gets_a_hint() -> None:
    with pytest.raises(DaemonError, match=r"status 0 before .* tell it to stay in the foreground"):
        python("pass").__enter__()


def test_a_daemon_that_a_signal_killed_is_said_so() -> None:
    with pytest.raises(DaemonError, match="was killed by SIGSEGV before it opened its socket") as caught:
        python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").__enter__()
    assert caught.value.exit_status == -signal.SIGSEGV


def test_only_the_last_lines_are_shown_and_all_is_kept() -> None:
    with pytest.raises(DaemonError, match=r"\(30 lines before\)\n    line 30\n") as caught:
        python("[print('line', i) for i in range(50)]; raise SystemExit(3)").__enter__()
    assert caught.value.output.startswith("line 0\n")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("no-such-daemon", "no-such-daemon is not in the PATH: install it, or give its path"),
        ("/no/such/daemon", "/no/such/daemon does not exist"),
        (__file__, "is not executable"),
    ],
)
def test_a_program_that_cannot_be_found_is_said_so(program: str, message: str) -> None:
    with pytest.raises(DaemonError, match=message):
        Daemon(program, "{socket}").__enter__()


def test_a_program_that_is_not_told_its_socket_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"no argument of rng has \{socket\} or \{dir\}"):
        Daemon("rng", "--socket-path=/tmp/rng.sock")


def test_a_daemon_that_ignores_sigterm_and_its_children_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenvirt.daemon.GRACE_SECONDS", 0.1)
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n" + LISTEN + "import time; time.sleep(60)"
    )
    with python(code) as daemon:
        pid = daemon.pid
        child = int(daemon.wait_for_output(r"child (\d+)\n")[1])
    assert gone(pid)
    assert gone(child)


def test_a_child_that_outlives_its_daemon_is_ended_too() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n" + LISTEN + "listener.accept()"
    )
    with python(code) as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(daemon.socket)
        assert daemon.wait() == 0
        child = int(daemon.wait_for_output(r"child (\d+)\n")[1])
    assert gone(child)


def test_a_daemon_that_dies_in_mid_use_is_added_to_the_error() -> None:
    code = (
        LISTEN
        + "c, _ = listener.accept(); print('thread main panicked at rng.rs:42', flush=True); sys.exit(101)"
    )

    def use() -> None:
        with python(code) as daemon, socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.socket)
            client.recv(1)
            raise DisconnectedError("the backend hung up after SET_VRING_ENABLE")

    with pytest.raises(DisconnectedError) as caught:
        use()
    (note,) = caught.value.__notes__
    assert "ended with status 101 after a panic" in note
    assert "    thread main panicked at rng.rs:42" in note


PANIC = """
import time
print("thread 'worker' panicked at src/lib.rs:441:63:", flush=True)
print("range end index 40 out of range for slice of length 32", flush=True)
"""


def test_a_backtrace_does_not_hide_the_panic_and_is_waited_for() -> None:
    """Rust closes the connection, and then takes its time to print where it was."""
    code = LISTEN + "listener.accept()[0].close()" + PANIC + "time.sleep(0.5)\n"

    def use() -> None:
        with (
            python(code + "[print('frame', i) for i in range(50)]; sys.exit(101)") as daemon,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.connect(daemon.socket)
            assert client.recv(1) == b""
            raise DisconnectedError("the backend hung up after GET_CONFIG")

    with pytest.raises(DisconnectedError) as caught:
        use()
    (note,) = caught.value.__notes__
    assert "ended with status 101 after a panic (its own mistake, whatever was sent to it)." in note
    assert "    range end index 40 out of range for slice of length 32\n    (30 lines between)\n" in note
    assert note.endswith("    frame 49")


def test_a_panic_that_the_daemon_survives_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenvirt.daemon.DYING_SECONDS", 0.1)

    def use() -> None:
        with python(LISTEN + "listener.accept()" + PANIC + "time.sleep(60)") as daemon:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(daemon.socket)
                daemon.wait_for_output("out of range")
            raise LinkTimeoutError("the device did not answer within 5 s: a read")

    with pytest.raises(LinkTimeoutError) as caught:
        use()
    assert "was still running after a panic (its own mistake" in caught.value.__notes__[0]


def test_a_death_that_nobody_noticed_is_an_error_at_the_end() -> None:
    code = LISTEN + "listener.accept(); sys.exit('panicked')"

    def use() -> None:
        with python(code) as daemon, socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.socket)
            assert client.recv(1) == b""
            os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(
        DaemonError, match=r"(?s)ended with status 1 while it was in use\. It printed:.*panicked"
    ):
        use()


def test_a_death_that_was_waited_for_is_none() -> None:
    with python(LISTEN + "listener.accept(); sys.exit(3)") as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(daemon.socket)
        assert daemon.wait(10) == 3


def test_output_is_waited_for() -> None:
    code = LISTEN + "import time; time.sleep(0.05); print('port', 4711, flush=True); listener.accept()"
    with python(code) as daemon:
        assert daemon.wait_for_output(r"^port (\d+)$")[1] == "4711"
        with pytest.raises(DaemonError, match=r"python.* did not print 'never' within 0.05 s. It printed:"):
            daemon.wait_for_output("never", 0.05)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.socket)
            with pytest.raises(DaemonError, match=r"ended with status 0 and did not print 'never'"):
                daemon.wait_for_output("never")


def test_waiting_has_an_end() -> None:
    with (
        python(LISTEN + "import time; time.sleep(60)") as daemon,
        pytest.raises(DaemonError, match=r"still runs after 0.05 s"),
    ):
        daemon.wait(0.05)


def test_the_same_object_starts_a_fresh_daemon_each_time() -> None:
    daemon = python(LISTEN + "import time; time.sleep(60)")
    with daemon:
        first = daemon.pid
        with pytest.raises(RuntimeError, match="runs already"):
            daemon.__enter__()
    with daemon:
        assert daemon.pid != first
        daemon.wait_for_output("listening\n")
        assert daemon.output() == "listening\n"


def test_a_long_directory_for_temporary_files_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with python(LISTEN + "import time; time.sleep(60)") as daemon:
        assert len(daemon.socket) <= 107
    assert list(long.iterdir()) == []


def test_no_descriptor_or_thread_stays() -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    import threading

    gc.collect()  # what earlier tests left goes now, not while we count
    before = open_descriptors(), threading.active_count()
    for _ in range(3):
        with python(LISTEN + "import time; time.sleep(60)"):
            pass
        with pytest.raises(DaemonError):
            python("pass").__enter__()
    assert (open_descriptors(), threading.active_count()) == before
