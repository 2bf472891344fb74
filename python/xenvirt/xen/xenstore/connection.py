"""Reaching the xenstore: the daemon's socket where it runs, or the kernel's device in any other domain."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from xenvirt.errors import XenStoreError

from .wire import HEADER, PAYLOAD_MAX

SOCKET = "/run/xenstored/socket"
"""Where the daemon listens, in the domain that it runs in."""
SOCKET_VARIABLE = "XENSTORED_PATH"
"""Environment variable: another place of the socket, as for Xen's own library."""
DEVICES = ("/dev/xen/xenbus", "/proc/xen/xenbus")
"""Linux's way through the ring that the domain shares with the daemon, newest first."""


def default_path() -> str:
    """What XENSTORED_PATH names, or the first that exists of the socket and the devices, as libxenstore does.

    Raises:
        XenStoreError: there is none of them.
    """
    if given := os.environ.get(SOCKET_VARIABLE):
        return given
    for path in (SOCKET, *DEVICES):
        if Path(path).exists():
            return path
    raise XenStoreError(
        f"no xenstore here: there is neither {SOCKET} (in the domain that xenstored runs in) nor "
        f"{DEVICES[0]} (in any domain: modprobe xenfs); xenvirt probe says more",
        errno.ENOENT,
        SOCKET,
    )


class Connection:
    """An open descriptor that does not block; partial reads and writes are the caller's.

    Attributes:
        path: what was opened.
        is_socket: whether the daemon's socket, else the kernel's device.
        payload_max: how many bytes of payload a request may have. The kernel keeps a request, header and all,
            in 4096 bytes (Linux's drivers/xen/xenbus/xenbus_dev_frontend.c, struct xenbus_file_priv).
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, timeout: float = 5.0) -> None:
        self.path = os.fspath(path) if path is not None else default_path()
        self._socket: socket.socket | None = None
        try:
            self.is_socket = stat.S_ISSOCK(Path(self.path).stat().st_mode)
            if self.is_socket:
                self._socket = _connected(self.path, timeout)
                self._fd = self._socket.fileno()
            else:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            self.payload_max = PAYLOAD_MAX if self.is_socket else PAYLOAD_MAX - HEADER.size
        except OSError as error:
            raise XenStoreError(
                f"the xenstore at {self.path} cannot be reached: {error.strerror or error}"
                + (" (does xenstored run?)" if error.errno == errno.ECONNREFUSED else ""),
                error.errno or errno.ETIMEDOUT,
                self.path,
            ) from error

    def fileno(self) -> int:
        """Its descriptor; -1 when it is closed."""
        return self._fd

    def send(self, data: memoryview) -> int:
        """Sends what there is room for; BlockingIOError if there is none."""
        if self._socket is not None:
            # Not write(), which raises SIGPIPE in a program that asked for it.
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        return os.write(self._fd, data)

    def receive(self) -> bytes:
        """What has come; empty at the end; BlockingIOError if there is nothing."""
        return os.read(self._fd, 8192)

    def close(self) -> None:
        """Closes it; watches and transactions end with it."""
        fd, self._fd = self._fd, -1
        if self._socket is not None:
            self._socket.close()
        elif fd >= 0:
            os.close(fd)


def _connected(path: str, timeout: float) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        end.settimeout(timeout)
        end.connect(path)
        end.setblocking(False)
    except BaseException:
        end.close()
        raise
    return end
