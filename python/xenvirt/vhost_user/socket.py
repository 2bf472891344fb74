"""The vhost-user socket as a transport: where a frontend finds the device."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenvirt._native import Endpoint, Relay

_BACKLOG = 16


class VhostUserSocket:
    """A Unix socket on which a vhost-user frontend (QEMU, UML, DPDK, cloud-hypervisor) reaches the device.

    One frontend at a time; the next one waits until the first is gone, and finds the device again.

    Args:
        path: where the socket is made. A stale socket in its place is replaced; one that somebody listens on
            is not.
        mode: permission bits of the socket, for instance ``0o660``; by default what the umask leaves.
        owner: ``(uid, gid)`` of the socket; -1 leaves one as it is.
        connect: connect to ``path`` instead, where the frontend listens (QEMU's ``server=on``), and again
            when it goes away.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        connect: bool = False,
    ) -> None:
        if connect and (mode is not None or owner is not None):
            raise ValueError(
                "mode and owner belong to a socket that is made here, not to one that is connected to"
            )
        self.path: str | None = os.fspath(path)
        self.mode = mode
        self.owner = owner
        self.connect = connect
        self._inherited: int | None = None
        self._inode: tuple[int, int] | None = None

    @classmethod
    def from_fd(cls, fd: int) -> VhostUserSocket:
        """A socket that was opened by somebody else: listening (systemd socket activation) or connected.

        The descriptor stays the caller's.

        Raises:
            ValueError: ``fd`` is not a Unix stream socket.
        """
        try:
            probe = socket.socket(fileno=os.dup(fd))
        except OSError as error:
            raise ValueError(f"descriptor {fd} is not a socket: {error.strerror}") from error
        with probe:
            if (probe.family, probe.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
                raise ValueError(
                    f"descriptor {fd} is a socket of {probe.family!r} and {probe.type!r}; "
                    "vhost-user wants a Unix stream socket"
                )
        transport = cls.__new__(cls)
        transport.path, transport.mode, transport.owner, transport.connect = None, None, None, False
        transport._inherited, transport._inode = fd, None
        return transport

    @property
    def listens(self) -> bool:
        """True where frontends come to us, and False where we come to a frontend or were given one
        connection."""
        if self._inherited is None:
            return not self.connect
        with socket.socket(fileno=os.dup(self._inherited)) as inherited:
            return bool(inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def __repr__(self) -> str:
        where = repr(self.path) if self.path is not None else f"fd {self._inherited}"
        return f"VhostUserSocket({where}{', connect=True' if self.connect else ''})"

    def open(self) -> socket.socket:
        """Opens the socket: listening, or connected. The caller closes what it gets.

        Raises:
            OSError: the path cannot be used; EADDRINUSE when somebody listens there.
        """
        if self._inherited is not None:
            return socket.socket(fileno=os.dup(self._inherited))
        assert self.path is not None
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if self.connect:
                opened.connect(self.path)
            else:
                self._listen(opened, self.path)
        except BaseException:
            opened.close()
            raise
        return opened

    def _listen(self, listener: socket.socket, path: str) -> None:
        _remove_stale(path)
        try:
            listener.bind(path)
        except OSError as error:
            # A path that is too long has no number of its own from Python.
            why = f"cannot make the socket: {error.strerror or error}"
            raise OSError(error.errno or errno.ENAMETOOLONG, why, path) from error
        # Before anybody can connect: a socket is connectable only once it listens.
        if self.owner is not None:
            os.chown(path, *self.owner)
        if self.mode is not None:
            Path(path).chmod(self.mode)
        made = Path(path).stat()
        self._inode = (made.st_dev, made.st_ino)
        listener.listen(_BACKLOG)

    def attach(self, endpoint: Endpoint | Relay, _device_id: int = 0, /) -> bool:
        """Opens the socket and hands it to the endpoint of a device. False if it has to connect, and nobody
        is there yet.

        Raises:
            OSError: the socket cannot be opened.
        """
        try:
            opened = self.open()
        except (FileNotFoundError, ConnectionRefusedError):
            if not self.connect:
                raise
            return False
        with opened:
            if self.listens:
                endpoint.listen(opened.fileno())
            else:
                endpoint.adopt(opened.fileno())
        return True

    def remove(self) -> None:
        """Removes the socket's path, if it is still the one that was made here."""
        if self._inode is None or self.path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            now = Path(self.path).stat()
            if (now.st_dev, now.st_ino) == self._inode:
                Path(self.path).unlink()
        self._inode = None


def _remove_stale(path: str) -> None:
    """Makes room for a socket: only a socket that nobody listens on is taken away."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            why = "cannot make the socket: something else than a socket is there"
            raise FileExistsError(errno.EEXIST, why, path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
        else:
            raise OSError(errno.EADDRINUSE, "cannot make the socket: somebody listens there", path)
