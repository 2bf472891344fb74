"""The guests' kernels: Debian's for QEMU, unpacked but not installed, and the one of user-mode-linux."""

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .cache import cache, kept, make

UML_IMAGE = Path("/usr/bin/linux.uml")
_UML_MODULES = Path("/usr/lib/uml/modules")

# The parts of Debian's 400 MB that a guest of ours may want; the last two are for a dom0.
_WANTED = (
    "./boot/vmlinuz-*",
    "./lib/modules/*/modules.builtin",
    "./lib/modules/*/kernel/crypto/*",
    "./lib/modules/*/kernel/arch/x86/crypto/*",
    "./lib/modules/*/kernel/drivers/block/*",
    "./lib/modules/*/kernel/drivers/char/*",
    "./lib/modules/*/kernel/drivers/i2c/*",
    "./lib/modules/*/kernel/drivers/input/*",
    "./lib/modules/*/kernel/drivers/net/*.ko",
    "./lib/modules/*/kernel/drivers/scsi/*.ko",
    "./lib/modules/*/kernel/drivers/virtio/*",
    "./lib/modules/*/kernel/fs/*",
    "./lib/modules/*/kernel/lib/*",
    "./lib/modules/*/kernel/net/*",
    "./lib/modules/*/kernel/sound/*",
    "./lib/modules/*/kernel/drivers/xen/*",
    "./lib/modules/*/kernel/mm/*",
)


def _normal(name: str) -> str:
    return name.removesuffix(".ko").replace("-", "_")


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder of its modules (the one that has `modules.builtin`)."""

    image: Path
    modules: Path

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {_normal(path.name): path for path in self.modules.rglob("*.ko")}

    @cached_property
    def _builtin(self) -> frozenset[str]:
        return frozenset(
            _normal(Path(line).name) for line in (self.modules / "modules.builtin").read_text().split()
        )

    def modules_for(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules and of all that they need, in an order in which insmod takes them."""
        ordered: dict[str, Path] = {}
        for name in names:
            for found in self._with_needs(_normal(name)):
                ordered.setdefault(found.name, found)
        return list(ordered.values())

    def _with_needs(self, name: str) -> Iterator[Path]:
        if name in self._builtin:
            return
        path = self._files.get(name)
        if path is None:
            raise FileNotFoundError(f"{self.modules} has no module {name}")
        # From .modinfo, NUL-terminated "key=value": modules.dep is only written when a package is installed.
        needs = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for need in needs[1].decode().split(",") if needs else []:
            if need:
                yield from self._with_needs(_normal(need))
        yield path


def uml() -> Kernel | None:
    """The kernel that is a program, if its package is installed."""
    modules = sorted(_UML_MODULES.glob("*/modules.builtin"))
    return Kernel(UML_IMAGE, modules[-1].parent) if modules and UML_IMAGE.exists() else None


def debian() -> Kernel | None:
    """Debian's kernel, if `fetch_debian` has unpacked it."""
    current = _current()
    images, modules = sorted(current.glob("boot/vmlinuz-*")), sorted(current.glob("lib/modules/*"))
    return Kernel(images[-1], modules[-1]) if images and modules else None


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
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpack:
            subprocess.run(
                ["tar", "-x", "--wildcards", "-C", folder, *_WANTED], stdin=unpack.stdout, check=True
            )
        archive.unlink()

    made = make(kept(package, version and version[1], _WANTED), build)
    link = cache() / f".{made.name}"
    link.unlink(missing_ok=True)
    link.symlink_to(made.name)
    link.rename(_current())
    return made


def _current() -> Path:
    """The link to the newest kernel that was unpacked."""
    return kept("kernel", _WANTED)
