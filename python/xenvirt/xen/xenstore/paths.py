"""Paths of the xenstore, checked before they are sent (docs/misc/xenstore.txt, at its beginning)."""

from __future__ import annotations

import re

ABSOLUTE_PATH_MAX = 3072
"""Bytes (xs_wire.h, XENSTORE_ABS_PATH_MAX)."""
RELATIVE_PATH_MAX = 2048
"""Bytes (xs_wire.h, XENSTORE_REL_PATH_MAX). Special paths, "@releaseDomain", have the same."""

_PERMITTED = re.compile(r"[-A-Za-z0-9/_@]+", re.ASCII)


def checked(path: str) -> str:
    """The path itself, if it may be one. A relative one begins without "/", a special one with "@".

    Raises:
        TypeError: it is no string.
        ValueError: it is empty or too long, ends with "/", has "//" in it, or has other characters than
            ASCII letters, digits and ``-/_@``.
    """
    if not isinstance(path, str):
        raise TypeError(f"a path of the xenstore is a str, not {type(path).__name__}")
    if not path:
        raise ValueError("an empty path; the root of the xenstore is '/'")
    limit = ABSOLUTE_PATH_MAX if path.startswith("/") else RELATIVE_PATH_MAX
    if len(path) > limit:
        kind = "an absolute" if path.startswith("/") else "a relative"
        raise ValueError(f"{kind} path has at most {limit} bytes, not {len(path)}: {path[:40]}...")
    if not _PERMITTED.fullmatch(path):
        raise ValueError(f"path {path!r} may have ASCII letters, digits and -/_@ only")
    if "//" in path or (path.endswith("/") and path != "/"):
        raise ValueError(f"path {path!r} has an empty name: write single slashes, and none at the end")
    return path


def joined(path: str, *names: str | int) -> str:
    """`path` with names below it: ``joined("/local/domain", 3, "name")``."""
    return "/".join((path.rstrip("/"), *map(str, names)))


def lies_in(path: str, parent: str) -> bool:
    """Whether `path` is `parent` or below it. Both are absolute, or both relative."""
    return path == parent or parent == "/" or path.startswith(parent + "/")
