"""What the rings' methods take, beside buffers. Private; nothing is needed at run time."""

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenvirt._buffer import BytesLike

    class HasFileno(Protocol):
        """An open file, a socket."""

        def fileno(self) -> int:
            """The number of its descriptor."""

    FileLike: TypeAlias = int | HasFileno
    """A descriptor, or what has one. It is duplicated for the call."""

    Offsets: TypeAlias = BytesLike | Sequence[int]
    """One whole number for each request: a buffer of integers (a column of a batch, a NumPy array of 16, 32
    or 64 bits), or a sequence. A negative one lies outside of everything."""


class HeaderLayout(Protocol):
    """What :meth:`VirtQueue.pop_batch` wants to know of a header: every
    :class:`xenvirt.virtio.structure.Structure` has it."""

    @classmethod
    def fields(cls) -> tuple[tuple[str, str, int], ...]:
        """For each field its name, its letter as in :mod:`struct` (``B H I Q b h i q 6s``) and its offset."""
        ...

    @classmethod
    def size(cls) -> int:
        """The length of the whole header in bytes."""
        ...
