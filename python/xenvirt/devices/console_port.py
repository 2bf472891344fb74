"""What stands behind a port of a console: a pair of descriptors, a new pty, or the process's own terminal."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import termios
import tty
from collections.abc import Callable
from typing import Final

ESCAPE: Final = b"\x1d"
"""Ctrl-], which leaves a terminal that passes everything else on to the guest; as in telnet."""


class Port:
    """A pair of descriptors: what is read from the one goes to the guest, what the guest writes goes to the
    other.

    Args:
        source: where input comes from; None: there is none.
        sink: where output goes; None: it is dropped. It is made non-blocking, so that a slow reader delays no
            other port.
        name: how the guest finds the port, as `/dev/virtio-ports/NAME` on Linux.
        console: a console (on Linux `/dev/hvc0` and so on), and not a plain channel.

    The descriptors stay the caller's.
    """

    def __init__(self, source: int | None, sink: int | None, *, name: str = "", console: bool = True) -> None:
        self.name = name
        self.console = console
        self.source = source
        self._nowhere = -1
        if sink is None:
            self.sink = self._make_nowhere()
        else:
            os.set_blocking(sink, False)
            self.sink = sink
        self.pending = b""
        """Output that was taken from the guest and not written yet."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes of input; nothing at its end.

        Raises:
            BlockingIOError: there is none at the moment.
            OSError: there will be none any more.
        """
        return b"" if self.source is None else os.read(self.source, size)

    def flush(self) -> bool:
        """Writes what is pending, as far as that goes without waiting. True if nothing is left.

        Raises:
            OSError: it cannot be written any more.
        """
        while self.pending:
            try:
                self.pending = self.pending[os.write(self.sink, self.pending) :]
            except BlockingIOError:
                return False
        return True

    def give_up(self) -> None:
        """Drops what is pending, and all output from now on: nobody can get it any more."""
        self.pending = b""
        self.sink = self._make_nowhere()

    @property
    def one_way(self) -> bool:
        """With the end of the input nothing goes either way."""
        return self.sink in (self.source, self._nowhere)

    def window_size(self) -> tuple[int, int] | None:
        """Columns and rows of the terminal that the input comes from; None if it is none, or says nothing."""
        if self.source is None:
            return None
        size = array.array("H", [0, 0, 0, 0])
        try:
            fcntl.ioctl(self.source, termios.TIOCGWINSZ, size)
        except OSError:
            return None
        rows, cols = size[0], size[1]
        return (cols, rows) if cols and rows else None

    def close(self) -> None:
        """Gives back what the port has opened itself. Closing twice is allowed."""
        if self._nowhere >= 0:
            os.close(self._nowhere)
            self._nowhere = -1

    def _make_nowhere(self) -> int:
        if self._nowhere < 0:
            self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        return self._nowhere


class Pty(Port):
    """A new pseudo-terminal: a terminal program connects to `path` (``screen /dev/pts/3``).

    While nobody reads, the kernel keeps some thousand bytes of output, and then the guest waits: nothing is
    lost. The terminal is in raw mode, and follows the size that the terminal program gives it, as soon as
    something is typed.
    """

    def __init__(self, *, name: str = "", console: bool = True) -> None:
        self._master, self._slave = os.openpty()
        # Otherwise the line discipline would echo the guest's output back to it. Ours stays open, so that the
        # last terminal program that leaves does not end the input.
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        super().__init__(self._master, self._master, name=name, console=console)

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1
            self.source = None
        super().close()


class Stdio(Port):
    """Standard input and output of this process. A terminal is put in raw mode until `close`.

    Args:
        leave: called when :data:`ESCAPE` is typed at a terminal, which passes Ctrl-C on to the guest.
        source: another descriptor than standard input.
        sink: another descriptor than standard output.
    """

    def __init__(
        self,
        leave: Callable[[], object] | None = None,
        *,
        source: int = 0,
        sink: int = 1,
        name: str = "",
        console: bool = True,
    ) -> None:
        self._leave = leave
        self._terminal = source if os.isatty(source) else None
        self._before = termios.tcgetattr(source) if self._terminal is not None else None
        self._opened = _own_output(sink)
        super().__init__(source, self._opened, name=name, console=console)
        if self._terminal is not None:
            tty.setraw(self._terminal, termios.TCSADRAIN)
            # But with line ends as before, for what this process itself has to say.
            mode = termios.tcgetattr(self._terminal)
            mode[tty.OFLAG] |= termios.OPOST
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, mode)

    def read(self, size: int) -> bytes:
        data = super().read(size)
        if self._terminal is not None and self._leave is not None:
            data, escape, _ = data.partition(ESCAPE)
            if escape:
                self._leave()
                if not data:
                    raise BlockingIOError(errno.EAGAIN, "nothing but the escape was typed")
        return data

    def close(self) -> None:
        if self._opened >= 0:
            if self._terminal is not None and self._before is not None:
                termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._before)
            os.close(self._opened)
            self._opened = -1
        super().close()


def _own_output(fd: int) -> int:
    """A descriptor for the same output that can be made non-blocking without the others that share it
    (the shell, our own error messages) noticing; where the kernel allows that."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass  # somebody else's terminal: share it
    return os.dup(fd)
