"""Guests' virtio devices as they come and go: events made of what happens in the xenstore, without waiting.

General theory of operation: a watch says where something happened, not what, and may say so late, once for
several changes, or without a reason. So for each event the node is read anew and compared with what is known
of it; only the difference counts. A device that went away and came again between two looks (a domain id that
is used again) is told by the guest's uuid, and by a state that is INITIALISING again after this backend had
left it.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

from xenvirt.errors import VirtioNodeError
from xenvirt.xen.virtio_node import VirtioNode, backend_folders, node_paths, read_node
from xenvirt.xen.xenbus import XenbusState, advance
from xenvirt.xen.xenstore import XenStore, XenStoreError
from xenvirt.xen.xenstore.paths import joined, lies_in

log = logging.getLogger("xenvirt")

INTRODUCE, RELEASE = "@introduceDomain", "@releaseDomain"
"""What xenstored tells of when domains come and go (docs/misc/xenstore.txt, WATCH)."""


@dataclass(frozen=True)
class Plugged:
    """A device is there and wants to be served."""

    node: VirtioNode

    @property
    def again(self) -> bool:
        """Whether a backend had begun with it before: another process, which is gone."""
        return self.node.state not in (XenbusState.INITIALISING, XenbusState.UNKNOWN)


@dataclass(frozen=True)
class Unplugged:
    """A device that was there is to go, or is gone."""

    node: VirtioNode
    reason: str
    """In words, for the log."""
    replaced: bool = False
    """Whether the node is another device's by now: its state is none of this one's business."""


HotplugEvent: TypeAlias = Plugged | Unplugged


class HotplugWatch:
    """The virtio devices that are announced to this domain: those that are there first, then what changes.

    ::

        with XenStore() as store, HotplugWatch(store) as devices:
            for event in devices:
                print(event)

    Nodes that are not what libxl writes are left alone, with a warning in the log; when they change they are
    looked at again.

    Args:
        store: the xenstore; it may be used for other things meanwhile.
        domid: one guest alone; None for all.
    """

    def __init__(self, store: XenStore, domid: int | None = None) -> None:
        self._store = store
        self._domid = domid
        self._known: dict[str, VirtioNode] = {}
        self._complained: dict[str, str] = {}
        self._ready: deque[HotplugEvent] = deque()
        self._dropped: set[str] = set()
        self._lock = threading.Lock()
        self._folders = backend_folders(store)
        watched = self._folders if domid is None else [joined(folder, domid) for folder in self._folders]
        self._watch = store.watch(*watched, INTRODUCE, RELEASE)

    @property
    def nodes(self) -> tuple[VirtioNode, ...]:
        """The devices that are there, as far as events were taken."""
        return tuple(self._known.values())

    def fileno(self) -> int:
        """A descriptor for select: readable when :meth:`poll` may have an event."""
        return self._watch.fileno()

    def poll(self) -> HotplugEvent | None:
        """An event, if there is one; does not wait. Call it until it gives None."""
        while not self._ready:
            changed = self._watch.poll()
            if changed is None:
                return None
            with self._lock:
                self._look(changed.path)
        return self._ready.popleft()

    def wait(self, timeout: float | None = None) -> HotplugEvent | None:
        """Waits for an event, at most `timeout` seconds (None: for ever)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (event := self.poll()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            changed = self._watch.wait(left)
            if changed is None:
                return None
            with self._lock:
                self._look(changed.path)
        return event

    def __iter__(self) -> Iterator[HotplugEvent]:
        """Events, for ever."""
        while True:
            event = self.wait()
            if event is not None:
                yield event

    def advance(self, node: VirtioNode, state: XenbusState) -> bool:
        """Writes the backend's state of a device, where it may follow on the present one.

        See :func:`xenvirt.xen.xenbus.advance`; and it is known here at once. May be called from any thread.
        """
        if not node.path:
            return False  # the xenstore says nothing of it
        with self._lock:
            if not advance(self._store, node.path, state):
                return False
            if (known := self._known.get(node.path)) is not None:
                self._known[node.path] = replace(known, state=state)
            return True

    def guest_goes_on(self, node: VirtioNode) -> bool:
        """Whether the guest runs on without a device that the toolstack takes away.

        When it destroys a guest it forces its devices away: the frontend's nodes are gone before the
        backend's (libxl__initiate_device_generic_remove).
        """
        frontend = self._store.get(f"{node.path}/frontend") if node.path else None
        return bool(frontend) and self._store.get(f"{frontend}/state") is not None

    def close(self) -> None:
        """Watches no longer."""
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts

    def _look(self, path: str) -> None:
        """Looks at what a watch has reported."""
        if path == RELEASE:
            for node in tuple(self._known.values()):
                if not self._store.is_domain_introduced(node.domid):
                    self._drop(node, "its domain is gone")
            return
        if path == INTRODUCE:
            for one in node_paths(self._store, self._domid):
                if one not in self._known:
                    self._compare(one)
            return
        folder = next((one for one in self._folders if lies_in(path, one)), None)
        if folder is None:
            return
        names = [name for name in path.removeprefix(folder).split("/") if name]
        if len(names) >= 2:
            self._compare(joined(folder, *names[:2]))
            return
        # A guest's folder, or that of all: what is known there, and what is there now.
        known = [one for one in self._known if lies_in(one, path)]
        now = [one for one in node_paths(self._store, self._domid) if lies_in(one, path)]
        for one in dict.fromkeys((*known, *now)):
            self._compare(one)

    def _compare(self, path: str) -> None:
        """Reads a node, and makes events of the difference to what is known of it."""
        known = self._known.get(path)
        node = self._read(path)
        if node is None:
            if known is not None:
                self._drop(known, "the toolstack has removed it")
            self._dropped.discard(path)
        elif not node.online or node.state == XenbusState.CLOSING:
            if known is not None:
                self._drop(known, "the toolstack takes it away")
            elif path not in self._dropped:  # else who serves it closes it when it has let go of it
                advance(self._store, path, XenbusState.CLOSED)
        elif known is not None and self._is_still(known, node):
            self._known[path] = node
        else:
            if known is not None:
                self._drop(known, "another one has taken its place", replaced=True)
            self._plug(node)

    def _plug(self, node: VirtioNode) -> None:
        if node.state == XenbusState.CLOSED and node.path in self._dropped:
            return  # we closed it
        if not self._store.is_domain_introduced(node.domid):
            return  # not yet, or not any more: a node that was left behind
        self._dropped.discard(node.path)
        self._known[node.path] = node
        self._ready.append(Plugged(node))

    @staticmethod
    def _is_still(known: VirtioNode, node: VirtioNode) -> bool:
        begun_anew = node.state == XenbusState.INITIALISING and known.state != XenbusState.INITIALISING
        return known.is_same_device(node) and not begun_anew

    def _drop(self, node: VirtioNode, reason: str, *, replaced: bool = False) -> None:
        del self._known[node.path]
        self._dropped.add(node.path)
        self._ready.append(Unplugged(node, reason, replaced))

    def _read(self, path: str) -> VirtioNode | None:
        try:
            node = read_node(self._store, path)
        except VirtioNodeError as error:
            if self._complained.get(path) != str(error):
                self._complained[path] = str(error)
                log.warning("a virtio device cannot be served: %s", error)
            return None
        except XenStoreError as error:
            if error.errno not in (errno.EACCES, errno.ENOENT):
                raise
            log.warning("a virtio device cannot be looked at: %s", error)
            return None
        self._complained.pop(path, None)
        return node
