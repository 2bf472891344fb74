"""Who may read and write a node: the list of permissions that each node has, typed.

The first entry of a list names the owner, who may do everything, and says what those domains may that no
other entry names. Domain 0 may do everything everywhere (docs/misc/xenstore.txt, "Each node has one or
multiple permission entries").
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

DOMID_MAX = 65535
"""docs/misc/xenstore.txt, <domid>: a number from 0 to 65535."""


class Access(Enum):
    """What a domain may do with a node; the values are the letters of the wire format."""

    NONE = "n"
    READ = "r"
    WRITE = "w"
    BOTH = "b"


class Permission(NamedTuple):
    """One entry. As the first of a list: the owner, and what everybody else may."""

    domid: int
    access: Access

    def __str__(self) -> str:
        """As ``xenstore-ls -p`` shows it: "n0", "r3"."""
        return f"{self.access.value}{self.domid}"

    @classmethod
    def parse(cls, text: str) -> Permission:
        """From "r3".

        Raises:
            ValueError: it is not a letter of "nrwb" and a domain id.
        """
        letter, digits = text[:1], text[1:]
        if letter not in {access.value for access in Access} or not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"a permission is one of n, r, w, b and a domain id, as in 'r3', not {text!r}")
        return cls(checked_domid(int(digits)), Access(letter))


def checked_permissions(permissions: Iterable[Permission | str]) -> tuple[Permission, ...]:
    """A list of permissions, each as such or as text ("r3").

    Raises:
        ValueError: it is empty, or an entry is no permission.
    """
    made = tuple(
        Permission.parse(one) if isinstance(one, str) else Permission(checked_domid(one.domid), one.access)
        for one in permissions
    )
    if not made:
        raise ValueError("a node has at least one permission: the first one names its owner")
    return made


def checked_domid(domid: int) -> int:
    """The domain id itself.

    Raises:
        ValueError: it is not in 0 to 65535.
    """
    if not 0 <= domid <= DOMID_MAX:
        raise ValueError(f"a domain id is in 0 to {DOMID_MAX}, not {domid}")
    return domid
