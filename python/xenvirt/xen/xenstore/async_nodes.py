"""What can be done with nodes, on asyncio: at once, or in a transaction."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TypeVar

from xenvirt.errors import XenStoreError

from . import operations
from .operations import Call
from .permissions import Permission

T = TypeVar("T")


class AsyncNodes:
    """The methods of :class:`~xenvirt.xen.xenstore.nodes.Nodes`, as coroutines; that has their errors."""

    async def _do(self, subject: str, make: Callable[[int], Call[T]]) -> T:
        raise NotImplementedError

    async def read(self, path: str) -> str:
        """The value of a node as text; bytes beyond ASCII are escaped (``surrogateescape``)."""
        return (await self.read_bytes(path)).decode("ascii", "surrogateescape")

    async def read_bytes(self, path: str) -> bytes:
        """The value of a node as it is."""
        return await self._do(path, lambda number: operations.read(path, number))

    async def get(self, path: str, default: str | None = None) -> str | None:
        """The value of a node as text, or `default` where there is no such node."""
        try:
            return await self.read(path)
        except XenStoreError as error:
            if error.errno != errno.ENOENT:
                raise
            return default

    async def write(self, path: str, value: str | bytes | int) -> None:
        """Sets the value of a node, and makes it and the nodes above it where they are missing."""
        data = operations.value_bytes(path, value)
        await self._do(path, lambda number: operations.write(path, data, number))

    async def mkdir(self, path: str) -> None:
        """Makes sure that a node exists; if it does already, its value stays."""
        await self._do(path, lambda number: operations.make_directory(path, number))

    async def rm(self, path: str) -> None:
        """Makes sure that a node and all below it do not exist; the one above it has to."""
        await self._do(path, lambda number: operations.remove(path, number))

    async def list(self, path: str) -> tuple[str, ...]:
        """The names of the nodes below a node, however many there are, in the xenstore's order."""
        return await self._do(path, lambda number: operations.children(path, number))

    async def permissions(self, path: str) -> tuple[Permission, ...]:
        """Who owns a node, and who may read and write it."""
        return await self._do(path, lambda number: operations.permissions(path, number))

    async def set_permissions(self, path: str, permissions: Iterable[Permission | str]) -> None:
        """Replaces the permissions of a node: ``["n0", "r3"]``, or as :class:`Permission`."""
        wanted = tuple(permissions)
        await self._do(path, lambda number: operations.set_permissions(path, wanted, number))
