"""A guest's whole system: an archive (cpio, newc) of busybox, some programs, kernel modules and a script."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass
class Archive:
    """A cpio archive under construction; parent folders come by themselves."""

    _data: bytearray = field(default_factory=bytearray)
    _seen: set[str] = field(default_factory=set)

    def folder(self, path: str) -> None:
        """Adds an empty folder."""
        self._entry(path, 0o040755, b"")

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Adds a regular file."""
        self._entry(path, 0o100755 if executable else 0o100644, content)

    def program(self, path: Path) -> None:
        """Adds a program of this host as /programs/NAME, with its interpreter and libraries."""
        self.file(f"/programs/{path.name}", path.read_bytes(), executable=True)
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            self.file(library, Path(library).read_bytes(), executable=True)

    def finish(self) -> bytes:
        """The archive, with its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _entry(self, path: str, mode: int, content: bytes) -> None:
        name = path.strip("/")
        if name in self._seen:
            return
        if parent := str(Path(name).parent).removeprefix("."):
            self.folder(parent)
        self._seen.add(name)
        links, encoded = 1, name.encode() + b"\0"
        fields = (len(self._seen), mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


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
        archive.program(find_program(program))
    names = []
    for module in modules:
        archive.file(f"/modules/{module.name}", module.read_bytes())
        names.append(module.name)
    for path, content in (files or {}).items():
        archive.file(path, content)
    archive.file("/script", (_PRELUDE + script).encode())
    archive.file("/init", _INIT.format(modules=" ".join(names)).encode(), executable=True)
    return archive.finish()
