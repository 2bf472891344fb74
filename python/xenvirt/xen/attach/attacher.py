"""Follows the xenstore: an attachment for each device that comes, and its end when the device goes."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty as NothingQueued
from queue import SimpleQueue
from typing import Self

from xenvirt.errors import MappingError, VirtioNodeError, XenStoreError
from xenvirt.xen.attach.attachment import Attachment, OpenSlot
from xenvirt.xen.attach.mapping import Backend, Empty, Ignored, Mapping
from xenvirt.xen.hotplug import HotplugWatch, Plugged
from xenvirt.xen.virtio_node import VirtioNode, node_paths, read_node
from xenvirt.xen.xenbus import XenbusState
from xenvirt.xen.xenstore import XenStore

log = logging.getLogger("xenvirt")


class Attacher:
    """Serves the devices of one guest, or of all, by a mapping, until it is stopped.

    ::

        with XenStore() as store, Attacher(store, load(Path("attach.toml")), open_slot) as attacher:
            attacher.run()

    Args:
        store: the xenstore.
        mapping: which backend serves which device; a device that no rule fits gets an empty slot.
        open_slot: takes a guest's slot.
        domid: one guest alone, whose end ends :meth:`run`; None for all.
        fixed: a device of which the xenstore says nothing; it alone is served. Its ``path`` is empty.
        complete: called with a guest whenever one of its devices got its slot, and all have theirs.
    """

    def __init__(
        self,
        store: XenStore,
        mapping: Mapping,
        open_slot: OpenSlot,
        domid: int | None = None,
        fixed: VirtioNode | None = None,
        complete: Callable[[int], None] = lambda _domid: None,
    ) -> None:
        self._store = store
        self._mapping = mapping
        self._open_slot = open_slot
        self._domid = domid
        self._fixed = fixed
        self._complete = complete
        self._taken: SimpleQueue[int] = SimpleQueue()
        """Guests of which a device got its slot."""
        self._ignored: set[str] = set()
        self._attached: dict[str, Attachment] = {}
        self._ending: dict[str, Attachment] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._devices = HotplugWatch(store, domid)

    @property
    def attached(self) -> tuple[VirtioNode, ...]:
        """The devices that are served."""
        return tuple(attachment.node for attachment in self._attached.values())

    def run(self) -> None:
        """Serves until :meth:`stop`, or until the one guest is gone.

        Raises:
            XenStoreError: the xenstore cannot be reached any more. What is served goes on until
                :meth:`close`.
        """
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._devices, select.POLLIN)
        if self._fixed is not None:
            self._attach(Plugged(self._fixed))
        while not self._stopped:
            self._dispatch()
            if self._domid is not None and not self._store.is_domain_introduced(self._domid):
                log.info("domain %d is gone", self._domid)
                return
            if any(fd == self._wake for fd, _ in poller.poll()):
                os.eventfd_read(self._wake)

    def stop(self) -> None:
        """Ends :meth:`run`; may be called from any thread and from a signal handler."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Leaves all devices as they are, with their nodes: whoever comes next goes on with them."""
        for attachment in self._attached.values():
            attachment.stop(leaving=self._is_there(attachment.node.domid))
        for attachment in self._ending.values():
            attachment.stop(unplugged=True, leaving=True)
        for attachment in (*self._attached.values(), *self._ending.values()):
            attachment.join()
        self._attached.clear()
        self._ending.clear()
        try:
            self._devices.close()
        except XenStoreError as error:
            log.warning("%s", error)
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts

    def _dispatch(self) -> None:
        self._ending = {path: one for path, one in self._ending.items() if one.runs}
        while (event := self._devices.poll()) is not None:
            path = event.node.path
            if self._fixed is not None:
                continue
            if isinstance(event, Plugged):
                self._attach(event)
            elif (attachment := self._attached.pop(path, None)) is not None:
                log.info("%s: %s", event.node.name, event.reason)
                attachment.stop(unplugged=not event.replaced)
                self._ending[path] = attachment
        self._tell_complete()
        # After the events, one of which may be what tells that a domain is gone.
        for one in self._ending.values():
            if not self._store.is_domain_introduced(one.node.domid):
                one.release()

    def _attach(self, event: Plugged) -> None:
        node = event.node
        backend = backend_for(self._store, self._mapping, node)
        if isinstance(backend, Ignored):
            log.info("%s: %s", node.name, backend)
            self._ignored.add(node.path)
            return
        if event.again:
            log.info("%s: it is taken up again from another process", node.name)
        self._attached[node.path] = Attachment(
            node,
            backend,
            self._devices,
            self._open_slot,
            after=self._ending.pop(node.path, None),
            taken=partial(self._has_slot, node.domid),
        )

    def _has_slot(self, domid: int) -> None:
        self._taken.put(domid)
        os.eventfd_write(self._wake, 1)

    def _tell_complete(self) -> None:
        """Says of which guests all devices have their slots."""
        guests = set()
        with suppress(NothingQueued):
            while True:
                guests.add(self._taken.get_nowait())
        for domid in guests:
            paths = [self._fixed.path] if self._fixed is not None else node_paths(self._store, domid)
            if all(self._is_taken(path) for path in paths):
                self._complete(domid)

    def _is_there(self, domid: int) -> bool:
        try:
            return self._store.is_domain_introduced(domid)
        except XenStoreError:
            return True  # as far as anybody can tell

    def _is_taken(self, path: str) -> bool:
        attachment = self._attached.get(path)
        if attachment is not None:
            return attachment.has_slot
        if path in self._ignored:
            return True
        try:
            node = read_node(self._store, path)
        except VirtioNodeError:
            return True  # nobody serves it
        return node is None or not node.online or node.state in (XenbusState.CLOSING, XenbusState.CLOSED)


def backend_for(store: XenStore, mapping: Mapping, node: VirtioNode) -> Backend:
    """What serves a device by the mapping; an empty slot, and a line in the log, where it cannot be said."""
    guest = store.get(f"/local/domain/{node.domid}/name", "") or ""
    try:
        return mapping.backend_for(node, guest)
    except MappingError as error:
        log.warning("%s", error)
        return Empty()
