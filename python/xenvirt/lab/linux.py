"""A small Linux for Arm, cross-built from Debian's source: it has what Debian's kernels lack.

For a guest that is virtio over grants (XEN_VIRTIO); for a dom0, irqfd and ioeventfd (XEN_PRIVCMD_EVENTFD).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from xenvirt.errors import LabError

from .building import CROSS_COMPILER, PROGRAMS, build_of
from .cache import kept, make
from .linux_config import OPTIONS
from .packages import Suite, debs
from .progress import Say

_SOURCE = (Suite("trixie", "arm64"), "linux-source-6.12")
_NEEDED = {**PROGRAMS, "bc": "bc", "xz": "xz-utils"}


def image(say: Say, *, refresh: bool = False) -> Path:
    """The image of the lab's own Linux for Arm, downloaded and built if it is not there."""
    suite, package = _SOURCE
    (source,) = debs(suite, (), [package], say, refresh=refresh)

    def build(folder: Path) -> None:
        say("building a small Linux for Arm, which takes three to fifteen minutes")
        with build_of("Linux for Arm", folder, _NEEDED) as log:
            _build(source, folder, log)

    return make(kept("linux-arm64", source.name, OPTIONS), build) / "Image"


def _build(source: Path, folder: Path, log: int) -> None:
    work = folder / "work"
    work.mkdir()
    subprocess.run(["dpkg-deb", "-x", source, work], check=True, stdout=log, stderr=log)
    (archive,) = work.glob("usr/src/linux-source-*.tar.xz")
    subprocess.run(["nice", "tar", "-xf", archive, "-C", work], check=True, stdout=log, stderr=log)
    (tree,) = (path.parent for path in work.glob("*/Kbuild"))
    options = work / "options"
    options.write_text("\n".join(OPTIONS) + "\n")
    fixed = {"KCONFIG_ALLCONFIG": str(options), "KBUILD_BUILD_USER": "xenvirt", "KBUILD_BUILD_HOST": "lab"}

    def run(*targets: str) -> None:
        subprocess.run(
            ["nice", "make", "-s", "ARCH=arm64", f"CROSS_COMPILE={CROSS_COMPILER}", *targets],
            cwd=tree,
            env={**os.environ, **fixed},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    run("allnoconfig")
    missing = set(OPTIONS) - set((tree / ".config").read_text().splitlines())
    if missing:
        raise LabError(f"this Linux cannot be configured with {', '.join(sorted(missing))}")
    run(f"-j{os.cpu_count() or 1}", "Image")
    shutil.copyfile(tree / "arch" / "arm64" / "boot" / "Image", folder / "Image")
    shutil.rmtree(work)
