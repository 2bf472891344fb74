"""What a child process prints, kept while it runs."""

from __future__ import annotations

import os
import re
import select
import threading

KEPT_OUTPUT = 1 << 20
"""How many bytes of a process's output are kept; older ones are dropped."""

SHOWN_LINES = 20
"""How many lines of it a message ends with."""

LAST_WORDS = re.compile(r"panicked at|[Aa]ssertion .*failed|Sanitizer:")
"""What a program prints that dies by its own mistake: Rust's panic, an assertion, a sanitizer's report."""

LAST_WORDS_LINES = 2
"""How many lines of a report are shown where it begins: Rust says what is wrong in the second one."""


def excerpt(text: str) -> list[str]:
    """The last lines of an output, and the beginning of the first report of a mistake, if that was before: a
    backtrace must not hide what it is a backtrace of.
    """
    lines = text.splitlines()
    before, shown = lines[:-SHOWN_LINES], lines[-SHOWN_LINES:]
    if not before:
        return shown
    report = next((number for number, line in enumerate(before) if LAST_WORDS.search(line)), None)
    if report is None:
        return [*_left_out(len(before), "before"), *shown]
    begin = before[report : report + LAST_WORDS_LINES]
    between = len(before) - report - len(begin)
    return [*_left_out(report, "before"), *begin, *_left_out(between, "between"), *shown]


def _left_out(count: int, where: str) -> list[str]:
    return [f"({count} line{'s' if count > 1 else ''} {where})"] if count else []


class Output:
    """Reads what a process and its children print, on a thread, until nobody can print any more or it is
    closed.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lock = threading.Condition()
        self._ended = threading.Event()
        self._read = self._write = self._stop = -1
        self._thread: threading.Thread | None = None

    def open(self) -> int:
        """Begins; gives the descriptor to print to."""
        self._read, self._write = os.pipe()
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._collect, name="daemon output", daemon=True)
        self._thread.start()
        return self._write

    def close_write_end(self) -> None:
        """The process has its own by now."""
        os.close(self._write)

    def text(self) -> str:
        with self._lock:
            return self._kept.decode("utf-8", "replace")

    def search(self, expression: re.Pattern[str], timeout: float) -> re.Match[str] | None:
        """Looks for something in what was printed; waits for more of it once, if there is nothing yet."""
        with self._lock:
            found = expression.search(self._kept.decode("utf-8", "replace"))
            if found is None and not self._ended.is_set():
                self._lock.wait(max(timeout, 0))
                found = expression.search(self._kept.decode("utf-8", "replace"))
            return found

    def drain(self) -> None:
        """Waits a moment for what is still in the pipe: to its end, if all who could print have ended."""
        if self._thread is not None:
            self._ended.wait(0.2)

    def close(self) -> None:
        if self._thread is None:
            return
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._thread = None
        os.close(self._read)
        os.close(self._stop)

    def _collect(self) -> None:
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        poller.register(self._stop, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._read in ready:
                data = os.read(self._read, 65536)
                if not data:
                    break
                with self._lock:
                    self._kept += data
                    del self._kept[:-KEPT_OUTPUT]
                    self._lock.notify_all()
            elif self._stop in ready:
                break
        self._ended.set()
