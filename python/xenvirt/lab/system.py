"""What dom0 boots into: one archive in memory, of Debian's packages, the kernel's modules and an init.

Python, pytest, Xen's tools and a shell are in it. Bytecode is made here where this Python is of dom0's minor
version: dom0, emulated, takes seconds for that.
"""

from __future__ import annotations

import gzip
import importlib.util
import marshal
import re
import shutil
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import agent, archive, kernel, linux
from .archive import Archive
from .cache import kept, make
from .hypervisor import built, newest_source
from .kernel import Kernel, module_content, plain_image
from .packages import Suite, debs, members
from .progress import Say
from .recipes import RECIPES, Recipe, kernel_of


@dataclass(frozen=True)
class System:
    """What there is to boot."""

    recipe: Recipe
    hypervisor: Path
    kernel: Path
    initrd: Path


_PACKAGES = (
    "base-files",
    "bash",
    "busybox-static",
    "python3",
    "xenstore-utils",
)
# Pure Python, from a newer Debian: pytest 8, which runs on every Python from 3.8.
_TOOLS = tuple(
    f"python3-{name}" for name in ("iniconfig", "packaging", "pluggy", "pygments", "pytest", "pytest-timeout")
)
_TOOLS_FROM = "trixie"
_MODULES = (
    *("xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xenfs"),
    *("virtio_console", "9pnet_virtio", "9p"),
)
# For the guests of a dom0 whose kernel has modules: not loaded, named in /modules/guest in their order.
_GUEST_MODULES = ("virtio_mmio", "virtio_blk", "virtio_rng", "crc32c_generic", "ext4", "loop")

# What those packages depend on to be installed and configured, which nobody does here.
_NOT_UNPACKED = re.compile(
    r"(adduser|debconf|debianutils|dpkg|ipxe-qemu|iso-codes|libcap2-bin|libdb5|libpam-|libsasl2-modules|libsemanage|"
    r"libsepol|mawk|media-types|passwd|perl-base|sensible-utils|sysvinit-utils|tar|ucf|udev)[^/]*_[^/]*\.deb"
)
_LEFT_OUT = re.compile(
    r"(usr/(share|games|include|src)|var/(lib/(dpkg|systemd)|cache|backups)|boot|home|media|mnt|opt|srv|"
    r"usr/lib/(systemd|udev|tmpfiles\.d|debug|[^/]*/(gconv|gstreamer-1\.0|perl-base))|etc/(init\.d|logrotate\.d|default)|"
    r"usr/lib/python3[^/]*/(test|idlelib|lib2to3|ensurepip|pydoc_data|distutils|turtledemo|tkinter)|"
    # pytest imports Pygments, and of its 5 MB these only.
    r"usr/lib/python3/dist-packages/pygments/lexers/(?!__init__|_mapping|diff|python\.)|"
    r"usr/lib/python3/dist-packages/pygments/styles/(?!__init__|_mapping|default)"
    r")"
)
# What an HVM guest begins with, given a kernel.
_KEPT = ("usr/share/seabios/bios-256k.bin", "usr/share/qemu/linuxboot.bin", "usr/share/qemu/keymaps/en-us")
_MERGED = ("bin", "sbin", "lib", "lib64")

_INIT = """\
#!/usr/bin/busybox sh
export PATH=/usr/lib/xen-{xen}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export HOME=/root USER=root LOGNAME=root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
/usr/bin/busybox --install -s /usr/bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /run/xen /run/lock /run/xenstored
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
for module in {modules}; do
    insmod /modules/$module || echo "xenvirt: insmod $module failed"
done
hostname dom0
ip link set lo up
mount -t xenfs xenfs /proc/xen
for folder in lab host; do
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 $folder /$folder || echo "xenvirt: no $folder"
done
xenstored --pid-file /run/xen/xenstored.pid
for attempt in $(seq 100); do [ -S /run/xenstored/socket ] && break; sleep 0.1; done
xen-init-dom0
xenconsoled --log=guest --log-dir=/var/log/xen/console --pid-file=/run/xen/xenconsoled.pid
for word in $(cat /proc/cmdline); do [ $word = xenvirt.once ] && once=once; done
echo "xenvirt: dom0 is ready"
python3 /usr/lib/xenvirt-agent.py $once
sync
poweroff -f
"""
_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "/etc/group": "root:x:0:\n",
    "/etc/hosts": "127.0.0.1 localhost dom0\n::1 localhost\n",
}
_FOLDERS = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/lab", "/host", "/root", "/modules"),  # noqa: S108
    *("/var/log/xen/console", "/var/lib/xen", "/var/lib/xenstored"),
)


def system(architecture: str, say: Say, *, kernel: str | None = None, refresh: bool = False) -> System:
    """All that the dom0 of an architecture boots from, downloaded and built if it is not there.

    Its `kernel` is "debian" or "own" (see linux.py). With `refresh` Debian is asked for newer versions.
    """
    own = linux.image(say, refresh=refresh) if kernel_of(architecture, kernel) == "own" else None
    recipe, hypervisor = RECIPES[architecture][0], None
    if recipe.hypervisor is None:
        recipe, source = newest_source(RECIPES[architecture], say, refresh=refresh)
        hypervisor = built(source, say)
    alone = [f"linux-image-{recipe.suite.architecture}"]
    if recipe.hypervisor:
        alone.append(recipe.hypervisor)
    packages = [*_PACKAGES, f"xen-utils-{recipe.xen}", *recipe.device_model]
    found = debs(recipe.suite, packages, alone, say, refresh=refresh)
    tools = Suite(_TOOLS_FROM, recipe.suite.architecture)
    found += [] if tools == recipe.suite else debs(tools, (), _TOOLS, say, refresh=refresh)

    def build(folder: Path) -> None:
        say(f"building dom0's file system of {recipe.suite}")
        _build(recipe, found, own, folder)

    debian = [deb.name for deb in found]
    inputs = (recipe, debian, own and own.parent.name, _sources(), sys.version_info[:2])
    target = make(kept(f"dom0-{recipe.suite.name}-{recipe.suite.architecture}", *inputs), build)
    return System(recipe, hypervisor or target / "xen", target / "vmlinux", target / "dom0.cpio")


def _sources() -> list[bytes]:
    """All that decides how it is built."""
    files = (agent.__file__, archive.__file__, kernel.__file__, __file__)
    return [Path(file or "").read_bytes() for file in files]


def _build(recipe: Recipe, found: Iterable[Path], own: Path | None, folder: Path) -> None:
    root = Archive()
    for path in _FOLDERS:
        root.folder(path)
    for name in _MERGED:
        root.link(name, f"usr/{name}")
    root.link("/var/run", "/run")
    root.link("/usr/bin/sh", "busybox")
    for path, text in _FILES.items():
        root.file(path, text.encode())
    compile_for = recipe.python == sys.version_info[:2]
    unpacked = folder / "kernel"
    for deb in found:
        if deb.name.startswith("linux-image-"):
            if own is None:
                kernel.unpack(deb, unpacked)
        elif recipe.hypervisor and deb.name.startswith(recipe.hypervisor):
            _unpack_hypervisor(deb, folder / "xen")
        elif not _NOT_UNPACKED.match(deb.name):
            _add_package(root, deb, compile_for=compile_for)
    if own is None:
        image, modules, for_guests = _debian_kernel(unpacked, [recipe.transport, *_MODULES])
    else:
        image, modules, for_guests = own.read_bytes(), [], []
    for module in [*modules, *for_guests]:
        root.file(f"/modules/{_module_name(module)}", module_content(module))
    root.file("/modules/guest", "\n".join(map(_module_name, for_guests)).encode())
    root.file("/boot/vmlinuz", image)
    (folder / "vmlinux").write_bytes(plain_image(image))
    init = _INIT.format(xen=recipe.xen, modules=" ".join(map(_module_name, modules)))
    root.file("/init", init.encode(), executable=True)
    root.file("/usr/lib/xenvirt-agent.py", Path(agent.__file__).read_bytes())
    command = '#!/bin/sh\nexec python3 -m xenvirt "$@"\n'
    root.file("/usr/bin/xenvirt", command.encode(), executable=True)
    pytest = '#!/bin/sh\nexec python3 -m pytest "$@"\n'
    root.file("/usr/bin/pytest", pytest.encode(), executable=True)
    (folder / "dom0.cpio").write_bytes(root.finish())
    shutil.rmtree(unpacked, ignore_errors=True)


def _debian_kernel(unpacked: Path, wanted: Iterable[str]) -> tuple[bytes, list[Path], list[Path]]:
    """The image of an unpacked kernel, its modules in their order of loading, and likewise the guests'."""
    found = Kernel.unpacked(unpacked)
    assert found is not None
    return found.image.read_bytes(), found.modules_for(wanted), found.modules_for(_GUEST_MODULES)


def _module_name(path: Path) -> str:
    """The name of a module's file in dom0, where none is compressed."""
    return path.name.removesuffix(".xz")


def _unpack_hypervisor(deb: Path, target: Path) -> None:
    for name, member, content in members(deb):
        if member.isfile() and re.fullmatch(r"boot/xen-[0-9.]*-[a-z0-9]*\.gz", name):
            target.write_bytes(gzip.decompress(content()))


def _add_package(root: Archive, deb: Path, *, compile_for: bool) -> None:
    for given, member, content in members(deb):
        name = _merged(given)
        if _LEFT_OUT.match(name) and name not in _KEPT:
            continue
        if member.isdir():
            root.folder(name)
        elif member.issym():
            root.link(name, member.linkname)
        elif member.islnk():
            root.link(name, "/" + _merged(member.linkname.removeprefix(".").strip("/")))
        elif member.isfile():
            data = content()
            root.file(name, data, executable=bool(member.mode & 0o111))
            if compile_for and name.startswith("usr/lib/python3") and name.endswith(".py"):
                bytecode = compiled(data, name)
                if bytecode:
                    root.file(importlib.util.cache_from_source(name), bytecode)


def _merged(name: str) -> str:
    """Where a file is once /bin is /usr/bin and so on."""
    return f"usr/{name}" if name.split("/")[0] in _MERGED else name


def compiled(source: bytes, name: str) -> bytes | None:
    """The content of this Python's `.pyc` for a module that never changes (PEP 552: an unchecked hash).

    None where the source does not compile: a package may have files for other versions of Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, f"/{name}", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    flags = (1).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(source) + marshal.dumps(code)
