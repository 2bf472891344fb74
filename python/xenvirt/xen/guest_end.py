"""Notices that a guest is gone, so that its memory is given back: else Xen keeps what is left of it."""

from __future__ import annotations

import logging
import os
import select
import threading

from xenvirt._native import GuestBus
from xenvirt.errors import XenStoreError
from xenvirt.xen.xenstore import XenStore

log = logging.getLogger("xenvirt")

RELEASE = "@releaseDomain"
"""What xenstored tells of when a domain goes (docs/misc/xenstore.txt, WATCH)."""


class GuestEnd:
    """Watches a guest from a thread of its own until it is gone, and tells its bus; or until it is closed.

    Without a xenstore nothing is noticed, and the log says so.

    Args:
        domid: the guest.
        bus: whom to tell; it is closed with this object.

    Attributes:
        bus: the bus.
    """

    def __init__(self, domid: int, bus: GuestBus) -> None:
        self._domid = domid
        self.bus = bus
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"end of guest {domid}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watches no longer."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self.bus.close()

    def _run(self) -> None:
        try:
            with XenStore() as store, store.watch(RELEASE) as watch:
                poller = select.poll()
                poller.register(watch.fileno(), select.POLLIN)
                poller.register(self._wake, select.POLLIN)
                while self._is_there(store):
                    if any(fd == self._wake for fd, _ in poller.poll()):
                        return
                    while watch.poll() is not None:
                        pass
        except (XenStoreError, OSError) as error:
            log.warning("domain %d: its end will not be noticed: %s", self._domid, error)
            return
        self.bus.guest_is_gone()

    def _is_there(self, store: XenStore) -> bool:
        return store.is_domain_introduced(self._domid)
