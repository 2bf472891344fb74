"""A guest's whole system: an archive (cpio, newc) of busybox, some programs, kernel modules and a script."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from xenvirt.lab.archive import Archive
from xenvirt.lab.kernel import module_content

BUSYBOX = Path("/bin/busybox")

# The script runs with errexit; the guest says how it ended. Lines that begin with @@ are results.
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {modules}; do
    insmod /modules/$module || echo "@@ failed insmod $module"
done
sh -e /script </dev/null
echo "@@ status $?"
sync
poweroff -f
"""

_PRELUDE = """\
result() { echo "@@ $*"; }
await() {
    for attempt in $(seq 200); do [ -e "$1" ] && return; sleep 0.05; done
    echo "no $1 after 10 s"; return 1
}
"""


def add_program(archive: Archive, path: Path) -> None:
    """Adds a program of this host as /programs/NAME, with its interpreter and libraries."""
    archive.file(f"/programs/{path.name}", path.read_bytes(), executable=True)
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        archive.file(library, Path(library).read_bytes(), executable=True)


def find_program(name: str) -> Path:
    """A program of this host, also where only root's PATH has it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise FileNotFoundError(f"no program {name} on this host")
    return Path(found)


def build(
    script: str,
    *,
    modules: Iterable[Path] = (),
    programs: Iterable[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """The archive of a guest that loads `modules` in their order and runs `script` (busybox sh, `set -e`).

    The script can say `result KEY WORDS...` and `await PATH`. It calls programs by path, `/programs/mke2fs`,
    because busybox prefers its own.
    """
    archive = Archive()
    for folder in ("proc", "sys", "dev", "tmp", "mnt"):
        archive.folder(folder)
    archive.file("/bin/busybox", BUSYBOX.read_bytes(), executable=True)
    for program in programs:
        add_program(archive, find_program(program))
    names = []
    for module in modules:
        name = module.name.removesuffix(".xz")
        archive.file(f"/modules/{name}", module_content(module))
        names.append(name)
    for path, content in (files or {}).items():
        archive.file(path, content)
    archive.file("/script", (_PRELUDE + script).encode())
    archive.file("/init", _INIT.format(modules=" ".join(names)).encode(), executable=True)
    return archive.finish()
