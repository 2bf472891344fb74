"""A QEMU that has `vhost-user-test-device-pci`, a frontend for any type of device: of Debian 13's backports.

Debian 12's has none. It runs here with the libraries that it comes with.
"""

import shutil
from pathlib import Path

from xenvirt.lab.cache import kept, make

from .debian import unpack

SUITES = ("trixie", "trixie-backports")
PACKAGES = ("qemu-system-x86",)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios")
_PROGRAM = "usr/bin/qemu-system-x86_64"
_FOLDER = kept("qemu", SUITES, PACKAGES)


def command() -> list[str] | None:
    """How it is started, once `build` has made it."""
    if not _FOLDER.exists():
        return None
    libraries = _FOLDER / _LIBRARIES
    firmware = [word for folder in _FIRMWARE for word in ("-L", str(_FOLDER / folder))]
    loader = libraries / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), str(_FOLDER / _PROGRAM), *firmware]


def build() -> None:
    """Downloads it; does nothing if it is there."""
    make(_FOLDER, _build)


def _build(folder: Path) -> None:
    root = unpack(folder, SUITES, PACKAGES, with_needs=True)
    for wanted in (_LIBRARIES, *_FIRMWARE, _PROGRAM):
        (folder / wanted).parent.mkdir(parents=True, exist_ok=True)
        (root / wanted).rename(folder / wanted)
    shutil.rmtree(folder / "apt")
