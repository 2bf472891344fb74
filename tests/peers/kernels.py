"""The guests' kernels: Debian's for QEMU, unpacked but not installed, and the one of user-mode-linux."""

import re
import subprocess
from pathlib import Path

from xenvirt.lab.cache import cache, kept, make
from xenvirt.lab.kernel import WANTED, Kernel, unpack

UML_IMAGE = Path("/usr/bin/linux.uml")
_UML_MODULES = Path("/usr/lib/uml/modules")


def uml() -> Kernel | None:
    """The kernel that is a program, if its package is installed."""
    modules = sorted(_UML_MODULES.glob("*/modules.builtin"))
    return Kernel(UML_IMAGE, modules[-1].parent) if modules and UML_IMAGE.exists() else None


def debian() -> Kernel | None:
    """Debian's kernel, if `fetch_debian` has unpacked it."""
    return Kernel.unpacked(_current())


def fetch_debian() -> Path:
    """Downloads and unpacks the kernel package that linux-image-amd64 stands for; nothing is installed."""

    def apt_cache(*words: str) -> str:
        return subprocess.run(["apt-cache", *words], check=True, capture_output=True, text=True).stdout

    depends = re.search(r"Depends: (linux-image-\S+)", apt_cache("depends", "linux-image-amd64"))
    if depends is None:
        raise RuntimeError("apt-cache knows no package linux-image-amd64: run apt-get update")
    package = depends[1]
    version = re.search(r"^Version: (\S+)", apt_cache("show", "--no-all-versions", package), re.MULTILINE)

    def build(folder: Path) -> None:
        subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], cwd=folder, check=True
        )
        (archive,) = folder.glob("*.deb")
        unpack(archive, folder)
        archive.unlink()

    made = make(kept(package, version and version[1], WANTED), build)
    link = cache() / f".{made.name}"
    link.unlink(missing_ok=True)
    link.symlink_to(made.name)
    link.rename(_current())
    return made


def _current() -> Path:
    """The link to the newest kernel that was unpacked."""
    return kept("kernel", WANTED)
