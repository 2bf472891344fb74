"""libblkio's example programs, frontends for vhost-user-blk: of Debian 13, and they run on 12."""

import shutil
import subprocess
from pathlib import Path

from .cache import kept, make

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
    # apt with a source and folders of its own: the host's packages stay at their release.
    apt = folder / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keys}] http://deb.debian.org/debian {SUITE} main\n")
    settings = {
        "APT::Sandbox::User": "root",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
    }
    apt_get = [
        "apt-get",
        "-qq",
        "-oAcquire::Retries=3",
        *(f"-o{key}={value}" for key, value in settings.items()),
    ]
    subprocess.run([*apt_get, "update"], check=True)
    subprocess.run([*apt_get, "download", *PACKAGES], check=True, cwd=apt)
    for package in apt.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, apt / "root"], check=True)
    (library,) = (apt / "root").glob("usr/lib/*/libblkio.so.1")
    (folder / library.name).write_bytes(library.read_bytes())
    include = apt / "root/usr/include"
    for name in PROGRAMS:
        source = apt / f"root/usr/share/doc/libblkio-dev/examples/{name}.c"
        here = ["-Wl,-rpath,$ORIGIN", str(folder / library.name)]
        command = ["cc", "-O2", "-D_GNU_SOURCE", f"-I{include}", str(source), "-o", str(folder / name), *here]
        subprocess.run([*command, "-lpthread"], check=True)
    shutil.rmtree(apt)
