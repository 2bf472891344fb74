"""libblkio's example programs, frontends for vhost-user-blk: of Debian 13, and they run on 12."""

import shutil
import subprocess
from pathlib import Path

from xenvirt.lab.cache import kept, make

from .debian import unpack

SUITE = "trixie"
PACKAGES = ("libblkio1", "libblkio-dev")
PROGRAMS = ("blkio-bench", "blkio-copy", "blkio-info")
_FOLDER = kept("libblkio", SUITE, PACKAGES, PROGRAMS)


def program(name: str) -> Path:
    """One of `PROGRAMS`, there once `build` has made it."""
    return _FOLDER / name


def build() -> None:
    """Downloads the packages, installs nothing, and compiles the programs; does nothing if they are there."""
    make(_FOLDER, _build)


def _build(folder: Path) -> None:
    root = unpack(folder, [SUITE], PACKAGES)
    (library,) = root.glob("usr/lib/*/libblkio.so.1")
    (folder / library.name).write_bytes(library.read_bytes())
    include = root / "usr/include"
    for name in PROGRAMS:
        source = root / f"usr/share/doc/libblkio-dev/examples/{name}.c"
        here = ["-Wl,-rpath,$ORIGIN", str(folder / library.name)]
        command = ["cc", "-O2", "-D_GNU_SOURCE", f"-I{include}", str(source), "-o", str(folder / name), *here]
        subprocess.run([*command, "-lpthread"], check=True)
    shutil.rmtree(folder / "apt")
