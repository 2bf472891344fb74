"""A lab that runs: booted for one command, or kept up under a name for many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from xenvirt.errors import LabError

from .agent import HOST
from .boot import CONSOLE, LAB_FOLDER, OUTPUT, SOCKET, Machine, start
from .channel import Channel
from .progress import Say, silent
from .recipes import dom0_of, kernel_of, recipe_named
from .system import system
from .wheel import bundle, files_for

BOOT_TIMEOUT = 300.0
"""Seconds for dom0 to come up: ten times what it takes on two idle cores."""
_HALT_TIMEOUT = 30.0
_TICK = 0.05
_LAST_LINES = 25


def labs() -> Path:
    """The folder of the labs that are up: ours alone, and with a short name, because sockets are in it."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "xenvirt" if base else Path(tempfile.gettempdir()) / f"xenvirt-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise LabError(f"{folder} is not a folder that only this user can open")
    return folder


class Lab:
    """A dom0 that is up. Made by :meth:`boot` or :meth:`attach`; use it in a `with` block.

    Attributes:
        architecture: "x86_64" or "aarch64".
        dom0: "pv" or "pvh".
        kernel: "debian" or "own", dom0's.
        share: the folder of the host that dom0 has as /host.
        folder: where its console (console.log) and what QEMU says (qemu.log) are.
    """

    def __init__(self, folder: Path, *, ours: bool, say: Say = silent) -> None:
        self.folder = folder
        self._say = say
        state = json.loads((folder / "lab.json").read_text())
        self.architecture: str = state["architecture"]
        self.dom0: str = state["dom0"]
        self.kernel: str = state["kernel"]
        self.share = Path(state["share"])
        self._recipe = recipe_named(state["recipe"])
        self._pid: int = state["pid"]
        self._ours = ours
        self._channel: Channel | None = None
        self._client: BinaryIO | None = None

    @classmethod
    def boot(
        cls,
        architecture: str = "x86_64",
        dom0: str | None = None,
        *,
        kernel: str | None = None,
        share: Path | None = None,
        name: str | None = None,
        memory: int = 2048,
        dom0_memory: int = 1024,
        counted: bool = False,
        timeout: float = BOOT_TIMEOUT,
        say: Say = silent,
    ) -> Lab:
        """Boots a lab and waits until its dom0 is up; what it boots from is built first if need be.

        `dom0` is "pv" or "pvh"; on aarch64 there is but one kind, called "pvh". Its `kernel` is
        "debian", or on aarch64 "own", a small one that is built here and has what Debian's lacks: virtio over
        grants, irqfd and ioeventfd. With a `name` the lab stays
        up until :func:`down`; without, until it is closed or this process ends. `share` (the working
        directory, if not given) is /host in dom0; the memories are in MiB. A `counted` machine's clocks count
        instructions, so that what is measured in it repeats.
        """
        dom0, kernel = dom0_of(architecture, dom0), kernel_of(architecture, kernel)
        booted = system(architecture, say, kernel=kernel)
        share = (share or Path.cwd()).resolve()
        once = name is None
        machine = Machine(booted, dom0, share, memory, dom0_memory, once=once, counted=counted)
        folder = _new_folder(name)
        try:
            with (folder / "alive").open("w") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX)
                say(f"booting Xen {booted.recipe.xen} with a {dom0.upper()} dom0 for {architecture}")
                pid = start(machine, folder, alive.fileno())
            state = {
                "architecture": architecture,
                "recipe": booted.recipe.name,
                "dom0": dom0,
                "kernel": kernel,
                "share": str(share),
                "pid": pid,
            }
            (folder / "lab.json.new").write_text(json.dumps(state))
            (folder / "lab.json.new").rename(folder / "lab.json")
            lab = cls(folder, ours=name is None, say=say)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            lab._connect(timeout)
        except BaseException:
            lab._take_down(patience=0)
            raise
        assert lab._channel is not None
        say(f"dom0 is up, {lab._channel.uptime:.0f} s after its kernel began")
        return lab

    @classmethod
    def attach(cls, name: str, *, say: Say = silent) -> Lab:
        """The lab that is up under this name; waits while another process runs a command in it."""
        lab = cls(_folder_of(name), ours=False, say=say)
        lab._connect(BOOT_TIMEOUT)
        return lab

    def run(
        self,
        *argv: str,
        wheel: Path | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdout: BinaryIO | None = None,
        stderr: BinaryIO | None = None,
        timeout: float | None = None,
    ) -> int:
        """Runs a command in dom0 and gives its status as a shell would (127: not found, 128 + n: signal n).

        The xenvirt that it imports is the one of this process, or `wheel`. Its working directory is `cwd`, or
        ours where that is in the shared folder, or /host. Its output goes to `stdout` and `stderr`, or to our
        own.
        """
        if self._channel is None:
            raise LabError("this lab was closed")
        files = files_for(self.architecture, wheel, self._say)
        name, data = bundle(files, self._recipe, self.architecture)
        package = self.folder / LAB_FOLDER / name
        if not package.exists():
            half_written = package.with_name(f".{name}")
            half_written.write_bytes(data)
            half_written.rename(package)
        return self._channel.run(
            argv,
            package=name,
            cwd=cwd or self._cwd(),
            env=env or {},
            stdout=stdout or sys.stdout.buffer,
            stderr=stderr or sys.stderr.buffer,
            timeout=timeout,
        )

    @property
    def console(self) -> str:
        """All that Xen and dom0 have printed so far."""
        try:
            return (self.folder / CONSOLE).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Takes down what was booted without a name; a lab with a name stays up."""
        if self._ours:
            self._take_down(_HALT_TIMEOUT)
        else:
            self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cwd(self) -> str:
        try:
            return str(HOST / Path.cwd().resolve().relative_to(self.share))
        except ValueError:
            return str(HOST)

    def _connect(self, timeout: float) -> None:
        self._client = (self.folder / "client").open("w+b")
        try:
            fcntl.flock(self._client, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._say("waiting for another command to end")
            fcntl.flock(self._client, fcntl.LOCK_EX)
        self._channel = Channel(self.folder / SOCKET, self._check, timeout)

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def _check(self) -> None:
        if not is_alive(self.folder):
            said = (self.folder / OUTPUT).read_text(errors="replace") + self.console
            last = "\n".join(said.splitlines()[-_LAST_LINES:])
            raise LabError(f"the machine is gone; what it said last:\n{last}", self.console)

    def _take_down(self, patience: float) -> None:
        if self._channel is not None and patience:
            with contextlib.suppress(LabError):
                self._channel.halt()
        ended = wait_until_dead(self.folder, patience if self._channel is not None else 0)
        self._disconnect()
        for number in () if ended else (signal.SIGTERM, signal.SIGKILL):
            if is_alive(self.folder):  # so that the process id still is QEMU's
                os.kill(self._pid, number)
                wait_until_dead(self.folder, 5)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)
        shutil.rmtree(self.folder, ignore_errors=True)


def down(name: str, *, patience: float = _HALT_TIMEOUT) -> None:
    """Powers off the lab of this name, by force if dom0 does not do it in `patience` seconds."""
    lab = Lab(_folder_of(name), ours=True)
    with contextlib.suppress(LabError):
        lab._connect(patience)
    lab._take_down(patience)


def is_up(name: str) -> bool:
    """Whether there is a lab of this name."""
    return is_alive(_path_of(name))


def is_alive(folder: Path) -> bool:
    """Whether the machine of this folder runs: QEMU holds a lock on a file in it, as long as it lives."""
    try:
        with (folder / "alive").open("rb") as alive:
            fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def wait_until_dead(folder: Path, seconds: float) -> bool:
    """Whether the machine of this folder has ended within a time."""
    deadline = time.monotonic() + seconds
    while is_alive(folder):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_TICK)
    return True


def _path_of(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}", name):
        raise LabError(f"a lab's name is up to 31 letters, digits, '-', '_' and '.', not {name!r}")
    return labs() / name


def _folder_of(name: str) -> Path:
    path = _path_of(name)
    if not is_alive(path):
        raise LabError(f"no lab {name!r} is up; xenvirt lab up boots one")
    if not (path / "lab.json").exists():
        raise LabError(f"the lab {name!r} is just being booted")
    return path


def _new_folder(name: str | None) -> Path:
    if name is None:
        for old in labs().glob(".run-*"):  # of a process that was killed; its dom0 has powered itself off
            if (old / "lab.json").exists() and not is_alive(old):
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=".run-", dir=labs()))
    path = _path_of(name)
    with _lock():
        if is_alive(path):
            raise LabError(f"a lab {name!r} is up already; xenvirt lab down ends it")
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    return path


@contextmanager
def _lock() -> Iterator[None]:
    with (labs() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
