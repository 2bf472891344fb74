"""A raw disk image: a file, or a block device of the host."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from xenvirt.virtio.block import SECTOR_SIZE

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
"""Modes of fallocate(2)."""

NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
"""What file systems and block devices say that lack a mode."""

ZERO_CHUNK = 1 << 20


class RawImage:
    """A disk image whose byte 0 is the disk's byte 0.

    An image that is opened for writing is locked (flock), so that two of our devices cannot destroy it
    together; several may read it. QEMU and mkfs do not look at this lock.

    Args:
        path: the file or block device.
        read_only: open it for reading only.

    Raises:
        FileNotFoundError, PermissionError: it cannot be opened.
        BlockingIOError: another xenvirt device uses it, and one of the two wants to write.
        ValueError: it is smaller than one sector of 512 bytes, or is neither a file nor a block device.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        # A file object, so that the descriptor is closed also when nobody closes the image.
        self._file = Path(self.path).open("rb" if read_only else "r+b", buffering=0)  # noqa: SIM115
        try:
            self._check()
            self._lock()
            self.size = self._measure()
        except BaseException:
            self._file.close()
            raise

    def fileno(self) -> int:
        """The descriptor. It stays the image's.

        Raises:
            ValueError: the image is closed.
        """
        return self._file.fileno()

    def flush(self) -> None:
        """Returns once all that was written is durable.

        Raises:
            OSError: the storage failed.
        """
        os.fdatasync(self.fileno())

    def discard(self, offset: int, size: int) -> None:
        """Frees a range of bytes; a file reads as zeroes there. Storage that cannot free does nothing.

        Raises:
            OSError: the storage failed.
        """
        self._allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = False) -> None:
        """Makes a range of bytes read as zeroes; with `unmap` its storage may be freed, without it stays
        ours.

        Raises:
            OSError: the storage failed, or has no room left.
        """
        if unmap and self._allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size):
            return
        if self._allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, size):
            return
        zeroes = bytes(min(size, ZERO_CHUNK))
        end = offset + size
        while offset < end:
            offset += os.pwrite(self.fileno(), zeroes[: end - offset], offset)

    def resize(self, size: int) -> None:
        """Makes a file longer or shorter, in bytes; takes a block device as it is now.

        Raises:
            OSError: it cannot be changed.
        """
        if stat.S_ISREG(os.fstat(self.fileno()).st_mode):
            os.ftruncate(self.fileno(), size)
        self.size = self._measure()

    def close(self) -> None:
        """Closes the file. Closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        mode = os.fstat(self.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ValueError(f"{self.path} is neither a file nor a block device")
        if self._measure() < SECTOR_SIZE:
            raise ValueError(
                f"{self.path} has {self._measure()} bytes; a disk has at least one sector of {SECTOR_SIZE}"
            )

    def _measure(self) -> int:
        """Bytes of the image; a block device has no length that fstat would know."""
        return os.lseek(self.fileno(), 0, os.SEEK_END)

    def _lock(self) -> None:
        kind = fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self.fileno(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                errno.EAGAIN, "is used by another device; only read-only ones may share an image", self.path
            ) from None
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise

    def _allocate(self, mode: int, offset: int, size: int) -> bool:
        """fallocate(2). False if this storage cannot do that."""
        libc = ctypes.CDLL(None, use_errno=True)
        while libc.fallocate64(self.fileno(), mode, ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in NOT_SUPPORTED:
                return False
            raise OSError(number, os.strerror(number), self.path)
        return True
