"""What outlives a process that serves a guest's devices, so that the next one can go on with them.

General layout, below a folder that is empty after the host's boot::

    3-3c41.../          a guest: its id and uuid; locked (flock) while somebody looks or changes something
        server-1/       an IOREQ server of a process, which has the folder locked for as long as it lives
            2000000     the registers of the device at that address, as its driver has left them

A process that takes a device up moves its file from the folder of the dead server to its own. When all
devices are taken up, the dead server itself is: what vCPUs have asked it since is answered.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xenvirt._native import GuestBus
from xenvirt.errors import ForeignMapError, XenvirtError
from xenvirt.xen.xenstore import XenStore

log = logging.getLogger("xenvirt")

ROOT = Path("/run/xenvirt/guests")


class GuestRecords:
    """The records of one guest's devices, as this process sees them. Not for several threads at once.

    Args:
        root: where those of all guests are.
        domid: the guest.
        uuid: tells it from another that gets its id later; the last part of its ``vm`` in the xenstore.
    """

    def __init__(self, root: Path, domid: int, uuid: str) -> None:
        self._domid = domid
        self._folder = root / f"{domid}-{uuid.rsplit('/', 1)[-1]}"
        self._own: dict[Path, int] = {}
        """The servers of this process, by which they are locked."""

    def take(self, base: int, server: int) -> int:
        """The file for the registers of the device at `base` (a guest physical address) on a server of this
        process, open; it is empty where no other has left it.

        Raises:
            OSError: it cannot be made.
        """
        own = self._folder / f"server-{server}"
        record = own / f"{base:x}"
        with self._locked():
            if own not in self._own:
                own.mkdir(exist_ok=True)
                self._own[own] = lock(own)
            for dead in self._dead():
                with suppress(FileNotFoundError):
                    (dead / record.name).rename(record)
            return os.open(record, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def left(self) -> list[int]:
        """The addresses of devices that processes which are gone had, and nobody has taken up."""
        with self._locked():
            return [int(record.name, 16) for dead in self._dead() for record in dead.iterdir()]

    def take_over(self, bus: GuestBus) -> None:
        """Answers, from the devices on the bus, what was asked of processes that are gone. All devices that
        those had have to be there."""
        with self._locked():
            for dead in self._dead():
                try:
                    waited = bus.take_over(int(dead.name.removeprefix("server-")))
                except ForeignMapError:
                    pass  # it was ended, and its folder not removed
                except XenvirtError as error:
                    log.warning("domain %d: what another process has left stays: %s", self._domid, error)
                    continue
                else:
                    text = "domain %d: taken over from a process that is gone; %d vCPUs waited for it"
                    log.info(text, self._domid, waited)
                shutil.rmtree(dead)

    def forget(self, base: int) -> None:
        """The device at `base` is served no more, by nobody."""
        with self._locked():
            for own, held in list(self._own.items()):
                (own / f"{base:x}").unlink(missing_ok=True)
                with suppress(OSError):  # other devices have their records there
                    own.rmdir()
                    os.close(held)
                    del self._own[own]
            with suppress(OSError):  # likewise
                self._folder.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes away from the guest's folder, which exists inside."""
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                held = lock(self._folder, wait=True)
                if self._folder.exists() and self._folder.samefile(f"/proc/self/fd/{held}"):
                    break
                os.close(held)  # it was removed meanwhile
        try:
            yield
        finally:
            os.close(held)

    def _dead(self) -> Iterator[Path]:
        """The servers of processes that are gone."""
        for server in sorted(self._folder.glob("server-*")):
            if server in self._own:
                continue
            with suppress(BlockingIOError):
                held = lock(server)
                try:
                    yield server
                finally:
                    os.close(held)


def forget_guests_that_are_gone(root: Path, store: XenStore) -> None:
    """Removes what is left of guests that ended while nobody was there."""
    for folder in root.glob("*-*"):
        domid, _, uuid = folder.name.partition("-")
        vm = store.get(f"/local/domain/{domid}/vm", "") or ""
        if vm.rsplit("/", 1)[-1] != uuid:
            shutil.rmtree(folder, ignore_errors=True)


def lock(folder: Path, *, wait: bool = False) -> int:
    """Locks a folder until the descriptor is closed, or its process ends.

    Raises:
        BlockingIOError: somebody has it locked, and this is not to be waited for.
        FileNotFoundError: there is none.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(fd)
        raise
    return fd
