"""Makes what a mapping names: an instance of a class, or a daemon as a device, started where need be."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from xenvirt import Daemon, Device, RemoteDevice
from xenvirt._processes import is_socket
from xenvirt.errors import BackendError, DaemonError
from xenvirt.xen.attach.mapping import Backend, DaemonCommand, DaemonSocket, PythonClass
from xenvirt.xen.virtio_node import VirtioNode, type_name
from xenvirt.xen.xenbus import XenbusState

log = logging.getLogger("xenvirt")

Served: TypeAlias = Device | RemoteDevice

PATIENCE_SECONDS = 60.0
"""For a daemon to open its socket: meanwhile the guest's requests wait."""
TOOLSTACK_SECONDS = 9.0
"""The same while the toolstack waits: xl gives a guest up whose backend is not there in ten."""


class StartedDaemon:
    """A daemon that is started, and started again when it dies, behind a path that stays the same.

    Attributes:
        path: a symbolic link to the socket of the present one.
    """

    def __init__(self, command: DaemonCommand) -> None:
        self._command = command
        self._daemon: Daemon | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="xenvirt-"))
        self.path = str(self._folder / "d")
        self._pidfd = -1

    def start(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Starts one, in place of one that died. It has `timeout` seconds to open its socket.

        Raises:
            DaemonError: it cannot be started, or did not open its socket.
        """
        self.stop()
        program, *arguments = self._command.words
        daemon = Daemon(
            program,
            *arguments,
            socket_suffix=self._command.socket_suffix,
            env=self._command.env,
            timeout=timeout,
        ).__enter__()
        self._daemon = daemon
        self._pidfd = os.pidfd_open(daemon.pid)
        Path(self.path).unlink(missing_ok=True)
        Path(self.path).symlink_to(daemon.socket)

    def stop(self) -> None:
        """Ends the present one. What it has to say for having died is logged."""
        daemon, self._daemon = self._daemon, None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if daemon is not None:
            try:
                daemon.__exit__(None, None, None)
            except DaemonError as error:
                log.warning("%s", error)

    def fileno(self) -> int:
        """Readable when it has ended; -1 while there is none."""
        return self._pidfd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def make(backend: Backend, node: VirtioNode, stack: ExitStack) -> tuple[Served | None, StartedDaemon | None]:
    """The device that serves a node, None for an empty slot; and the daemon that was started for it.

    What is to be closed at the end goes on the stack.

    Raises:
        BackendError: the class cannot be imported or made, or is of another type of device than the node.
        DaemonError: the daemon cannot be started.
    """
    match backend:
        case PythonClass():
            return _made(backend, node, stack), None
        case DaemonSocket(path):
            return RemoteDevice(path, device_id=node.device_id), None
        case DaemonCommand():
            daemon = stack.enter_context(StartedDaemon(backend))
            waits = node.state == XenbusState.INITIALISING
            daemon.start(TOOLSTACK_SECONDS if waits else PATIENCE_SECONDS)
            return RemoteDevice(daemon.path, device_id=node.device_id), daemon
        case _:
            return None, None


def check(backend: Backend) -> str | None:
    """What would keep a backend from being made, as far as can be seen without making it; None if nothing."""
    match backend:
        case PythonClass():
            try:
                imported(backend.name)
            except BackendError as error:
                return str(error)
        case DaemonSocket(path):
            if not is_socket(Path(path)):
                return f"there is no socket at {path}: does the daemon run?"
        case DaemonCommand(words):
            if shutil.which(words[0]) is None:
                return f"{words[0]} is not in the PATH, or not executable"
        case _:
            pass
    return None


def imported(name: str) -> type[Device]:
    """A class by ``module:Class``.

    Raises:
        BackendError: there is none, or it is no :class:`~xenvirt.Device`.
    """
    module, _, wanted = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), wanted)
    except ImportError as error:
        raise BackendError(f"{name}: {module} cannot be imported: {error}") from error
    except AttributeError as error:
        raise BackendError(f"{name}: {module} has no {wanted}") from error
    if not (isinstance(found, type) and issubclass(found, Device)):
        raise BackendError(f"{name} is no xenvirt.Device, but {found!r}")
    return found


def _made(backend: PythonClass, node: VirtioNode, stack: ExitStack) -> Device:
    made = imported(backend.name)
    try:
        device = made(**backend.arguments)
    except Exception as error:
        raise BackendError(f"{backend} cannot be made: {type(error).__name__}: {error}") from error
    if isinstance(device, AbstractContextManager):
        stack.enter_context(device)
    if node.device_id not in (None, device.device_id):
        raise BackendError(
            f"{backend.name} is of type {type_name(device.device_id)}, and the guest has been told "
            f"{type_name(node.device_id)}"
        )
    return device
