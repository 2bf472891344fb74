"""Starting somebody else's vhost-user daemon for a test or a script, and ending it without a trace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ._output import LAST_WORDS, Output, excerpt
from ._processes import ending, is_socket, unix_sockets, wait_for_group, wait_without_collecting
from .errors import DaemonError

GRACE_SECONDS = 2.0
"""How long a daemon may take to end after SIGTERM, before SIGKILL."""

DYING_SECONDS = 5.0
"""How long a daemon that prints that it panicked may take to end."""

LONGEST_SOCKET_PATH = 107
"""What fits in a socket's address (unix(7)), in bytes."""

LISTENING = 0x10000
"""The flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON)."""

_TICK_SECONDS = 0.01


class Daemon:
    """A daemon that runs while its ``with`` block does.

    ::

        with Daemon("vhost-device-rng", "--socket-path={socket}", socket_suffix="0") as daemon:
            with connect(daemon.socket) as link:
                ...

    On entering, a private directory is made, the program is started in a session of its own, and the block
    begins once its socket listens. Nothing connects to the socket to find that out: many daemons serve one
    client only, and quit after it. On leaving, the daemon and whatever it started are ended (SIGTERM, two
    seconds later SIGKILL), and the directory is removed. The object can be entered again, for a fresh daemon.

    When the block ends with an exception, the daemon's last output is added to it as a note.

    Args:
        program: its name, looked up in the PATH, or its path.
        args: its arguments. ``{socket}`` and ``{dir}`` are replaced, literally: other braces are left alone.
        socket_suffix: what the daemon appends to the path that it is given: rust-vmm's number their sockets
            (``"0"``).
        env: variables to be set for it, beside those of this process. ``{socket}`` and ``{dir}`` are replaced
            there too.
        timeout: how long it may take until its socket listens, in seconds.

    Raises, on entering:
        DaemonError: the program was not found, died, or did not open its socket in time. All of it is cleaned
            up.
        ValueError: neither arguments nor variables tell the daemon where its socket shall be.

    Raises, on leaving:
        DaemonError: the daemon died of itself, not with status 0, and nobody waited for that by :meth:`wait`.
    """

    def __init__(
        self,
        program: str | os.PathLike[str],
        *args: str | os.PathLike[str],
        socket_suffix: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._program = os.fspath(program)
        self._args = tuple(os.fspath(arg) for arg in args)
        self._suffix = socket_suffix
        self._env = dict(env or {})
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._output = Output()
        self._dir: Path | None = None
        self._expected = False
        if not any("{socket}" in text or "{dir}" in text for text in (*self._args, *self._env.values())):
            raise ValueError(
                f"no argument of {self._program} has {{socket}} or {{dir}}: it would not know where to open "
                "its socket; write for instance --socket-path={socket}"
            )

    # ---- what can be asked

    @property
    def dir(self) -> str:
        """The private directory, which is removed at the end.

        Raises:
            DaemonError: the daemon is not running.
        """
        return str(self._running_dir())

    @property
    def socket(self) -> str:
        """The path where the daemon listens.

        Raises:
            DaemonError: the daemon is not running.
        """
        return self._given_socket() + self._suffix

    @property
    def pid(self) -> int:
        """Its process id, and the id of its session.

        Raises:
            DaemonError: the daemon is not running.
        """
        return self._running().pid

    def output(self) -> str:
        """What it has printed so far, standard output and error together; the last MiB of it."""
        return self._output.text()

    def wait_for_output(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Waits until the daemon has printed something.

        Args:
            pattern: a regular expression, searched in all of its output so far.
            timeout: in seconds.

        Raises:
            DaemonError: the daemon ended, or the time did, and nothing matches.
        """
        deadline = time.monotonic() + timeout
        expression = re.compile(pattern, re.MULTILINE)
        while (match := self._output.search(expression, min(deadline - time.monotonic(), 0.1))) is None:
            status = self._running().poll()
            if status is not None:
                self._output.drain()
                if match := expression.search(self._output.text()):
                    break
                raise self._error(f"{self._name} {ending(status)} and did not print {pattern!r}.", status)
            if time.monotonic() > deadline:
                raise self._error(f"{self._name} did not print {pattern!r} within {timeout} s.")
        return match

    def wait(self, timeout: float | None = 10.0) -> int:
        """Waits until the daemon ends of itself, and takes that as expected.

        Args:
            timeout: in seconds; None waits for ever.

        Returns:
            Its exit status, negative for a signal, as in :mod:`subprocess`.

        Raises:
            DaemonError: it still runs after `timeout` seconds.
        """
        process = self._running()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"{self._name} (pid {process.pid}) still runs after {timeout} s") from None
        self._expected = True
        self._output.drain()
        return status

    def __repr__(self) -> str:
        state = "not running" if self._process is None else f"pid {self._process.pid}, socket {self.socket}"
        return f"<Daemon {self._name}: {state}>"

    # ---- its life

    def __enter__(self) -> Self:
        if self._process is not None:
            raise RuntimeError(f"{self!r} runs already; make another Daemon for a second one")
        self._expected = False
        self._output = Output()
        try:
            self._start()
            self._wait_for_socket()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            status = self._running().poll()
            self._end()
            if status not in (None, 0) and not self._expected:
                mistake = _mistake(LAST_WORDS.search(self._output.text()))
                raise self._error(f"{self._name} {ending(status)} while it was in use{mistake}.", status)
            return
        # Who notices first that a daemon dies is often its client; its last words may still be on their way,
        # and a backtrace takes its time.
        status = self._poll(1.0 if isinstance(error, ConnectionError) else 0.0)
        if status is None and LAST_WORDS.search(self._output.text()):
            status = self._poll(DYING_SECONDS)
        self._end()
        report = LAST_WORDS.search(self._output.text())
        state = "was still running" if status is None else ending(status)
        error.add_note(f"{self._name} {state}{_mistake(report)}.{self._said()}")

    def _start(self) -> None:
        program = shutil.which(self._program, path=self._env.get("PATH"))
        if program is None:
            raise DaemonError(self._not_found())
        self._dir = _private_directory(len(self._suffix))
        command = [program, *map(self._replaced, self._args)]
        environment = os.environ | {name: self._replaced(value) for name, value in self._env.items()}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output.open(),
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DaemonError(f"{program} cannot be started: {error.strerror}") from error
        finally:
            self._output.close_write_end()

    def _wait_for_socket(self) -> None:
        deadline = time.monotonic() + self._timeout
        path = Path(self.socket)
        seen_at: float | None = None
        while True:
            status = self._poll(_TICK_SECONDS)
            if status is not None:
                hint = ""
                if status == 0:
                    hint = " If it went to the background: tell it to stay in the foreground."
                raise self._error(
                    f"{self._name} {ending(status)} before it opened its socket {path}.{hint}", status
                )
            if is_socket(path):
                listening = self._listens(path)
                seen_at = seen_at or time.monotonic()
                # None: it is of another network namespace, where we cannot see it; listen() follows bind() at
                # once.
                if listening or (listening is None and time.monotonic() > seen_at + 0.5):
                    return
            if time.monotonic() > deadline:
                raise self._error(
                    f"{self._name} (pid {self.pid}) did not open its socket {path} within {self._timeout} s."
                    f"{self._other_sockets(path)}"
                )

    def _end(self) -> None:
        """Ends the daemon and its children, collects it, removes the directory. Does nothing twice."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                self._signal_group(process.pid, signal.SIGTERM)
                # Not collected yet, so that its id, which is that of the group too, cannot go to another
                # process.
                wait_without_collecting(process.pid, GRACE_SECONDS)
            self._signal_group(process.pid, signal.SIGKILL)
            process.wait()
            wait_for_group(process.pid, GRACE_SECONDS)
        self._output.drain()
        self._output.close()
        directory, self._dir = self._dir, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    @staticmethod
    def _signal_group(group: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)

    # ---- parts

    @property
    def _name(self) -> str:
        return Path(self._program).name

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DaemonError(f"{self._name} does not run: use it inside its with block")
        return self._process

    def _running_dir(self) -> Path:
        if self._dir is None:
            raise DaemonError(f"{self._name} does not run: use it inside its with block")
        return self._dir

    def _given_socket(self) -> str:
        return str(self._running_dir() / "s")

    def _replaced(self, text: str) -> str:
        return text.replace("{socket}", self._given_socket()).replace("{dir}", self.dir)

    def _poll(self, seconds: float) -> int | None:
        try:
            return self._running().wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _listens(self, path: Path) -> bool | None:
        """Does a socket listen at `path`? None: no socket of that name can be seen."""
        found = None
        for flags, name in unix_sockets():
            place = Path(name)
            if not place.is_absolute() and place.name == path.name:
                with contextlib.suppress(OSError):
                    place = Path(f"/proc/{self.pid}/cwd").readlink() / place
            if place == path:
                if flags & LISTENING:
                    return True
                found = False
        return found

    def _other_sockets(self, path: Path) -> str:
        others = sorted(
            entry for entry in self._running_dir().iterdir() if entry != path and is_socket(entry)
        )
        if not others:
            return " No other socket appeared in its directory either: do the arguments tell it the path?"
        given = Path(self._given_socket()).name
        for other in others:
            if other.name.startswith(given):
                suffix = other.name.removeprefix(given)
                return f" It opened {other} instead: say socket_suffix={suffix!r}."
        return f" It opened {', '.join(map(str, others))} instead."

    def _not_found(self) -> str:
        if os.sep not in self._program:
            path = self._env.get("PATH", os.environ.get("PATH", ""))
            return f"{self._program} is not in the PATH: install it, or give its path (PATH is {path})"
        if not Path(self._program).exists():
            return f"{self._program} does not exist"
        return f"{self._program} is not executable: chmod +x, or start its interpreter"

    def _said(self) -> str:
        self._output.drain()
        lines = excerpt(self._output.text())
        if not lines:
            return " It printed nothing."
        return " It printed:" + "".join(f"\n    {line}" for line in lines)

    def _error(self, message: str, status: int | None = None) -> DaemonError:
        return DaemonError(message + self._said(), self._output.text(), status)


def _mistake(report: re.Match[str] | None) -> str:
    """What is to be said of a daemon whose output has a report of its own mistake."""
    if report is None:
        return ""
    what = "a panic" if "panicked" in report[0] else "a report"
    return f" after {what} (its own mistake, whatever was sent to it)"


def _private_directory(suffix_length: int) -> Path:
    """A directory of our own, short enough for a socket's path: /tmp where the usual one is too long."""
    for base in (None, "/tmp"):  # noqa: S108 - the directory in it is private
        made = Path(tempfile.mkdtemp(prefix="xenvirt-", dir=base))
        if len(os.fsencode(made / "s")) + suffix_length <= LONGEST_SOCKET_PATH:
            return made
        made.rmdir()
    raise DaemonError(
        f"a socket's path has at most {LONGEST_SOCKET_PATH} bytes, and socket_suffix is too long for that"
    )
