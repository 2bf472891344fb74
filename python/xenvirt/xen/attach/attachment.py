"""One virtio device of a guest that is served: from when it is announced until it is gone.

Each has a thread of its own, so that a daemon that is slow to start, or a device that is slow to close, keeps
no other guest waiting. The order is what matters: the slot is taken before the toolstack is told (INIT_WAIT),
because it lets the guest run then, and a guest that touches a slot which nobody has dies of it; and it is
given up before the toolstack is told (CLOSED), because it destroys the guest then, and what is still mapped
would keep it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from xenvirt.errors import BackendError, DaemonError, XenStoreError
from xenvirt.xen.attach import backend as backends
from xenvirt.xen.attach.backend import Served, StartedDaemon
from xenvirt.xen.attach.mapping import Backend, Empty
from xenvirt.xen.hotplug import HotplugWatch
from xenvirt.xen.virtio_node import VirtioNode
from xenvirt.xen.xenbus import XenbusState

log = logging.getLogger("xenvirt")

PATIENCE_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""How long a daemon that died stays dead: at first not at all; the last one holds from then on."""
HEALTHY_SECONDS = 60.0
"""A daemon that has run for so long starts at the beginning of that row again when it dies."""


class Slot(Protocol):
    """Where a device meets its guest: registers that are answered, until it is closed."""

    def close(self) -> None:
        """Gives everything of the guest back: mappings, grants, event channels, the registers."""

    def leave(self) -> None:
        """As :meth:`close`; but the guest does not notice, and another process goes on with the device."""


OpenSlot = Callable[[VirtioNode, Served | None, Callable[[], None]], Slot]
"""Takes a guest's slot for a device, or for none (DeviceID 0). The last argument is called, on any thread,
when the guest's driver has set DRIVER_OK. A BackendError says that this device cannot be served there."""


class Attachment:
    """A served device. It begins at once.

    Args:
        node: the device.
        backend: what serves it.
        devices: where its state is written.
        open_slot: takes its slot.
        after: the attachment that had this node before; it is let to end first.
        taken: called on the attachment's thread when it has its slot.

    Attributes:
        has_slot: whether it had its slot by now.
    """

    def __init__(
        self,
        node: VirtioNode,
        backend: Backend,
        devices: HotplugWatch,
        open_slot: OpenSlot,
        after: Attachment | None = None,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self.node = node
        self.backend = backend
        self._devices = devices
        self._open_slot = open_slot
        self._after = after
        self._taken = taken
        self.has_slot = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = threading.Event()
        self._released = threading.Event()
        self._unplugged = self._leaving = False
        self._driver_ready = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=node.name, daemon=True)
        self._thread.start()

    def stop(self, *, unplugged: bool = False, leaving: bool = False) -> None:
        """Begins to end it, and returns at once.

        Args:
            unplugged: the toolstack wants it gone, and is told when it is. Without that the node stays as it
                is.
            leaving: another process takes the device up, and its guest is not to notice.
        """
        self._unplugged, self._leaving = unplugged, leaving
        self._stopping.set()
        if leaving or not unplugged:
            self._released.set()
        self._awake()

    def release(self) -> None:
        """Gives up the slot that is left of an unplugged device: its guest is gone, or has another one."""
        self._released.set()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Waits until it has ended."""
        self._thread.join()

    # ---- parts

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after.release()
                self._after.join()
                self._after = None
            self._serve()
        except XenStoreError as error:
            log.warning("%s: %s", self.node.name, error)
        except Exception:
            log.exception("%s: it is not served any more", self.node.name)
        finally:
            with self._lock:
                os.close(self._wake)
                self._wake = -1

    def _serve(self) -> None:
        with ExitStack() as stack:
            device, daemon = self._make(stack)
            try:
                slot = self._open_slot(self.node, device, self._driver_is_ready)
            except BackendError as error:
                log.warning("%s: the guest finds an empty slot: %s", self.node.name, error)
                device = None
                slot = self._open_slot(self.node, None, self._driver_is_ready)
            stack.callback(self._let_go, slot)
            self.has_slot = True
            self._taken()
            self._devices.advance(self.node, XenbusState.INIT_WAIT)
            log.info("%s: %s", self.node.name, self.backend if device is not None else Empty())
            self._watch(daemon)
        if not self._unplugged:
            return
        with ExitStack() as stack:
            left = self._devices.guest_goes_on(self.node)
            if left:
                # Its driver does not know yet, and must not die of touching what nobody answers for.
                slot = self._open_slot(self.node, None, lambda: None)
                stack.callback(self._let_go, slot)
            self._devices.advance(self.node, XenbusState.CLOSED)
            if left:
                self._released.wait()

    def _let_go(self, slot: Slot) -> None:
        if self._leaving:
            slot.leave()
        else:
            slot.close()

    def _make(self, stack: ExitStack) -> tuple[Served | None, StartedDaemon | None]:
        """The device; none, if it cannot be made: the guest shall boot without it."""
        with ExitStack() as trial:
            try:
                made = backends.make(self.backend, self.node, trial)
            except (BackendError, DaemonError) as error:
                log.warning("%s: the guest finds an empty slot: %s", self.node.name, error)
                return None, None
            stack.push(trial.pop_all())
            return made

    def _watch(self, daemon: StartedDaemon | None) -> None:
        """Waits for the end; tells the toolstack that the driver is ready, and starts a daemon that died."""
        deaths, started = 0, time.monotonic()
        again: float | None = None
        while not self._stopping.is_set():
            if self._driver_ready.is_set():
                self._driver_ready.clear()
                self._devices.advance(self.node, XenbusState.CONNECTED)
            poller = select.poll()
            poller.register(self._wake, select.POLLIN)
            if daemon is not None and daemon.fileno() >= 0:
                poller.register(daemon.fileno(), select.POLLIN)
            left = None if again is None else max(0.0, again - time.monotonic()) * 1000
            ready = {fd for fd, _ in poller.poll(left)}
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if daemon is None:
                continue
            if daemon.fileno() in ready:
                if time.monotonic() - started > HEALTHY_SECONDS:
                    deaths = 0
                daemon.stop()
                again = time.monotonic() + PATIENCE_SECONDS[min(deaths, len(PATIENCE_SECONDS) - 1)]
                deaths += 1
            if again is not None and time.monotonic() >= again:
                again = None
                try:
                    daemon.start()
                except DaemonError as error:
                    log.warning("%s: %s", self.node.name, error)
                    again = time.monotonic() + PATIENCE_SECONDS[min(deaths, len(PATIENCE_SECONDS) - 1)]
                    deaths += 1
                else:
                    started = time.monotonic()
                    log.warning("%s: its daemon was started again", self.node.name)

    def _driver_is_ready(self) -> None:
        self._driver_ready.set()
        self._awake()

    def _awake(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
