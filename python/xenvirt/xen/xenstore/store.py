"""The xenstore, blocking: what a program in dom0 or a driver domain asks and is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from xenvirt.errors import XenStoreError

from . import operations, replay
from .channel import Channel
from .nodes import Nodes
from .operations import Call
from .transaction import Transaction
from .watch import Watch

T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds that an answer may take, unless told otherwise."""


class XenStore(Nodes):
    """A connection to the xenstore.

    ::

        with XenStore() as store:
            name = store.read(f"/local/domain/{domid}/name")
            with store.watch(f"/local/domain/{domid}/device") as watch:
                for event in watch:
                    print(event.path)

    A path without "/" at its beginning lies below ``/local/domain/N``, N being this domain. The object may be
    used from several threads, but not in a child after fork (ForkError). When the daemon is gone
    (ECONNRESET) it cannot be used any more. After a timeout it can over the socket, and cannot over the
    device: Linux keeps a request there in one place, and the next one would overwrite what was not sent yet.

    Args:
        path: the daemon's socket, or the kernel's device ``/dev/xen/xenbus``; by default what XENSTORED_PATH
            names, else the first of these that exists.
        timeout: seconds that an answer may take. The kernel's device keeps it for everything but setting and
            taking back a watch, in which the kernel itself waits.

    Raises:
        XenStoreError: it cannot be reached.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float = TIMEOUT) -> None:
        self._channel = Channel(path, timeout)
        self._tokens = 0

    @property
    def path(self) -> str:
        """What it is connected to."""
        return self._channel.path

    @property
    def timeout(self) -> float:
        """Seconds that an answer may take."""
        return self._channel.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._channel.timeout = seconds

    # ---- domains

    def domain_path(self, domid: int) -> str:
        """Where a domain's own nodes are, ``/local/domain/N``, whether it exists or not."""
        return self._channel.run(operations.domain_path(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the xenstore talks to this domain: it was made, and is not destroyed."""
        return self._channel.run(operations.is_domain_introduced(domid))

    # ---- watches

    def watch(self, *paths: str, token: str | None = None) -> Watch:
        """Watches paths and all below them; also ``"@introduceDomain"`` and ``"@releaseDomain"``.

        Each is reported once at the beginning, so what is there already need not be asked for separately.

        Args:
            paths: what to watch; more can be added to the watch later.
            token: what each event carries; by default a new one.

        Raises:
            ValueError: another watch of this connection has the token.
            XenStoreError: the xenstore refused one of the paths (E2BIG: too many watches).
        """
        with self._channel.lock:
            if token is None:
                self._tokens += 1
                token = f"xenvirt-{self._tokens}"
            if operations.checked_token(token) in self._channel.watches:
                raise ValueError(f"token {token!r} is the one of another watch of this connection")
            watch = Watch(self._channel, token)
        try:
            for path in paths:
                watch.add(path)
        except BaseException:
            watch.close()
            raise
        return watch

    # ---- transactions

    def transaction(self) -> Transaction:
        """Operations that happen all at once, or not at all.

        ::

            with store.transaction() as transaction:
                state = transaction.read(f"{path}/state")
                transaction.write(f"{path}/state", int(state) + 1)

        The block ends with a commit; an exception in it discards all. Where others have changed what was
        touched, the operations are done again, up to 16 times, as long as they give the same answers as
        before; when one differs, leaving the block raises XenStoreError with EAGAIN, and nothing has changed.
        """
        return Transaction(self._channel)

    def transact(self, function: Callable[[Transaction], T]) -> T:
        """Calls a function with a transaction, again and again until nobody has changed what it read.

        ::

            store.transact(lambda t: t.write("counter", int(t.read("counter")) + 1))

        Raises:
            XenStoreError: EAGAIN, 16 times in a row.
        """
        for left in reversed(range(replay.COMMIT_TRIES)):
            try:
                with self.transaction() as transaction:
                    return function(transaction)
            except XenStoreError as error:
                if error.errno != errno.EAGAIN or not transaction.conflicted or not left:
                    raise
        raise AssertionError("unreachable")

    # ---- life

    def close(self) -> None:
        """Closes the connection; its watches end, its transactions are discarded."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"XenStore({self.path!r})"

    # ---- parts

    def _do(self, _subject: str, make: Callable[[int], Call[T]]) -> T:
        return self._channel.run(make(0))
