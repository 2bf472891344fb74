"""Archives as Linux unpacks them into its first file system: cpio in the format "newc".

See Documentation/driver-api/early-userspace/buffer-format.rst in Linux. Several archives may follow each
other; what comes later replaces what came before.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import PurePosixPath


@dataclass
class Archive:
    """A cpio archive under construction, all of it root's; parent folders come by themselves.

    A path that is there already stays as it is: the first one counts.
    """

    _data: bytearray = field(default_factory=bytearray)
    _seen: set[str] = field(default_factory=set)

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._seen

    def folder(self, path: str) -> None:
        """Adds an empty folder."""
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Adds a regular file."""
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, path: str, to: str) -> None:
        """Adds a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, to.encode())

    def finish(self) -> bytes:
        """The archive, with its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _entry(self, path: str, mode: int, content: bytes) -> None:
        name = path.strip("/")
        if not name or name in self._seen:
            return
        parent = str(PurePosixPath(name).parent)
        if parent != ".":
            self.folder(parent)
        self._seen.add(name)
        links, encoded = 1, name.encode() + b"\0"
        fields = (len(self._seen), mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
