"""What a child process prints, kept while it runs."""

from __future__ import annotations

import os
import re
import select
import threading

KEPT_OUTPUT = 1 << 20
"""How many bytes of a process's output are kept; older ones are dropped."""


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
