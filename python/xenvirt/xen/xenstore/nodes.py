"""What can be done with nodes, blocking: at once, or in a transaction."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TypeVar

from xenvirt.errors import XenStoreError

from . import operations
from .operations import Call
from .permissions import Permission

T = TypeVar("T")


class Nodes:
    """What can be done with nodes, in and outside of a transaction."""

    def _do(self, subject: str, make: Callable[[int], Call[T]]) -> T:
        raise NotImplementedError

    def read(self, path: str) -> str:
        """The value of a node as text; bytes beyond ASCII are escaped (``surrogateescape``).

        Raises:
            XenStoreError: ENOENT, there is no such node; EACCES, this domain may not read it.
            ValueError: that is no path. So for every method that takes one.
        """
        return self.read_bytes(path).decode("ascii", "surrogateescape")

    def read_bytes(self, path: str) -> bytes:
        """The value of a node as it is."""
        return self._do(path, lambda number: operations.read(path, number))

    def get(self, path: str, default: str | None = None) -> str | None:
        """The value of a node as text, or `default` where there is no such node."""
        try:
            return self.read(path)
        except XenStoreError as error:
            if error.errno != errno.ENOENT:
                raise
            return default

    def write(self, path: str, value: str | bytes | int) -> None:
        """Sets the value of a node, and makes it and the nodes above it where they are missing.

        Args:
            path: the node.
            value: bytes as they are, text as ASCII, a number in decimal. Path and value together have at most
                4095 bytes, and 4079 over the kernel's device (ValueError); a guest's quota may allow less for
                a value (2048 by default; ENOSPC).
        """
        data = operations.value_bytes(path, value)
        self._do(path, lambda number: operations.write(path, data, number))

    def mkdir(self, path: str) -> None:
        """Makes sure that a node exists; if it does already, its value stays."""
        self._do(path, lambda number: operations.make_directory(path, number))

    def rm(self, path: str) -> None:
        """Makes sure that a node and all below it do not exist.

        Raises:
            XenStoreError: ENOENT, the node above it does not exist either.
        """
        self._do(path, lambda number: operations.remove(path, number))

    def list(self, path: str) -> tuple[str, ...]:
        """The names of the nodes below a node, however many there are, in the xenstore's order."""
        return self._do(path, lambda number: operations.children(path, number))

    def permissions(self, path: str) -> tuple[Permission, ...]:
        """Who owns a node, and who may read and write it."""
        return self._do(path, lambda number: operations.permissions(path, number))

    def set_permissions(self, path: str, permissions: Iterable[Permission | str]) -> None:
        """Replaces the permissions of a node: ``["n0", "r3"]``, or as :class:`Permission`.

        Raises:
            XenStoreError: EACCES or EPERM, only the owner may do it, and only domain 0 may name another one.
        """
        wanted = tuple(permissions)
        self._do(path, lambda number: operations.set_permissions(path, wanted, number))
