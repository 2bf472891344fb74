"""The base of everything that virtio lays out in bytes: configuration spaces, request headers, messages.

A structure is a frozen dataclass whose fields say their width::

    @dataclass(frozen=True)
    class Sector(Structure):
        number: U64 = 0
        count: U32 = 0

Virtio 1.x is little-endian throughout (virtio 1.3, section 1.4), and its structures have no hidden padding:
what a C compiler would insert stands here as a field. Values are checked when the object is made.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Self, get_type_hints

if TYPE_CHECKING:
    from typing_extensions import Buffer

U8 = Annotated[int, "B"]
"""An unsigned byte."""
U16 = Annotated[int, "H"]
"""An unsigned number of 2 bytes, little-endian."""
U32 = Annotated[int, "I"]
"""An unsigned number of 4 bytes, little-endian."""
U64 = Annotated[int, "Q"]
"""An unsigned number of 8 bytes, little-endian."""
S32 = Annotated[int, "i"]
"""A signed number of 4 bytes, little-endian."""


@dataclass(frozen=True)
class Structure:
    """A packed, little-endian structure. Subclasses declare their fields in the order in which they lie in
    memory.

    Raises:
        ValueError: on making one, when a value does not fit its field; the message names both.
    """

    _layout: ClassVar[tuple[tuple[str, str, int], ...]] = ()
    _struct: ClassVar[struct.Struct] = struct.Struct("<")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        layout: list[tuple[str, str, int]] = []
        offset = 0
        for name, hint in get_type_hints(cls, include_extras=True).items():
            letters = getattr(hint, "__metadata__", None)
            if letters is None:
                continue  # a ClassVar
            layout.append((name, letters[0], offset))
            offset += struct.calcsize("<" + letters[0])
        cls._layout = tuple(layout)
        cls._struct = struct.Struct("<" + "".join(letter for _, letter, _ in layout))

    def __post_init__(self) -> None:
        try:
            self._struct.pack(*self._values())
        except struct.error:
            pass
        else:
            if not any(letter.endswith("s") for _, letter, _ in self._layout):
                return
        for name, letter, _ in self._layout:
            self._check(name, letter)

    def _check(self, name: str, letter: str) -> None:
        value = getattr(self, name)
        where = f"{type(self).__name__}.{name}"
        size = struct.calcsize("<" + letter)
        if letter.endswith("s"):
            if len(value) > size:
                raise ValueError(f"{where} has {len(value)} bytes, and takes at most {size}")
            return
        low, high = (
            (-1 << (8 * size - 1), (1 << (8 * size - 1)) - 1) if letter == "i" else (0, (1 << 8 * size) - 1)
        )
        if not low <= value <= high:
            raise ValueError(f"{where} is {value}, and takes {low} to {high:#x}")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name, _, _ in self._layout)

    @classmethod
    def fields(cls) -> tuple[tuple[str, str, int], ...]:
        """The layout: for each field its name, its letter as in :mod:`struct` (``B H I Q``, ``i``, ``6s``)
        and its offset in bytes."""
        return cls._layout

    @classmethod
    def size(cls) -> int:
        """The length of the whole structure in bytes."""
        return cls._struct.size

    @classmethod
    def offset(cls, name: str) -> int:
        """The offset of a field in bytes.

        Raises:
            KeyError: there is no field of this name.
        """
        for field, _, offset in cls._layout:
            if field == name:
                return offset
        raise KeyError(f"{cls.__name__} has no field {name!r}")

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Decodes the structure from its first bytes.

        Configuration spaces grew over the years, and a device may have a shorter or a longer one than we
        know: fields that lie beyond the end of `data` are 0, one that it cuts has the bytes that are there,
        and bytes after the structure are ignored. :meth:`missing` says which fields a space of some length
        lacks.
        """
        raw = memoryview(data).cast("B")[: cls._struct.size]
        return cls(*cls._struct.unpack(bytes(raw).ljust(cls._struct.size, b"\0")))

    @classmethod
    def missing(cls, length: int) -> tuple[str, ...]:
        """The names of the fields that do not lie wholly within the first `length` bytes."""
        return tuple(
            name for name, letter, offset in cls._layout if offset + struct.calcsize("<" + letter) > length
        )

    def to_bytes(self) -> bytes:
        """The structure as bytes, always :meth:`size` long. A bytes field that is too short is filled with
        zeroes.
        """
        return self._struct.pack(*self._values())
