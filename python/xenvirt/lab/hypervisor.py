"""Xen for Arm, cross-built from Debian's source: Debian's own binary has no IOREQ servers there.

The archive does not always hold the source that its lists name, so the newest that can be had is taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from xenvirt.errors import LabError

from .building import CROSS_COMPILER, PROGRAMS, build_of
from .cache import kept, make
from .packages import prepared
from .progress import Say
from .recipes import Recipe

_CONFIG = ("CONFIG_EXPERT=y", "CONFIG_UNSUPPORTED=y", "CONFIG_IOREQ_SERVER=y")
_NEEDED = {**PROGRAMS, "patch": "patch", "python3": "python3"}
_CHOICE = "recipe"


def newest_source(recipes: Sequence[Recipe], say: Say, *, refresh: bool = False) -> tuple[Recipe, Path]:
    """The first of these recipes whose source can be had, and the folder of its files; downloaded once."""
    target = kept("xen-source", [recipe.name for recipe in recipes])
    if refresh and target.exists():
        shutil.rmtree(target)

    def build(folder: Path) -> None:
        missed = []
        for recipe in recipes:
            with prepared(recipe.suite, folder / "apt", say) as apt:
                for version in apt.source_versions("xen"):
                    if apt.download_source("xen", version, folder, say):
                        say(f"taking Xen {version}")
                        (folder / _CHOICE).write_text(recipe.name)
                        shutil.rmtree(folder / "apt")
                        return
                    missed.append(f"{version} of {recipe.suite.name}")
            shutil.rmtree(folder / "apt")
        raise LabError(f"the mirror has no source of Xen; it was asked for {', '.join(missed)}")

    made = make(target, build)
    chosen = (made / _CHOICE).read_text()
    return next(recipe for recipe in recipes if recipe.name == chosen), made


def built(source: Path, say: Say) -> Path:
    """The hypervisor that this source makes, built if it is not there."""
    files = sorted(path.name for path in source.iterdir())

    def build(folder: Path) -> None:
        say("building Xen for Arm, which takes one to five minutes")
        with build_of("Xen for Arm", folder, _NEEDED) as log:
            _build(source, folder, log)

    return make(kept("xen-arm64", files, _CONFIG), build) / "xen"


def _build(source: Path, folder: Path, log: int) -> None:
    work = folder / "work"
    work.mkdir()
    (original,) = source.glob("xen_*.orig.tar.*")
    (changes,) = source.glob("xen_*.debian.tar.*")
    for archive in (original, changes):
        with tarfile.open(archive) as tar:
            tar.extractall(work)  # noqa: S202 - apt has checked its signature
    debian = work / "debian"
    (tree,) = (path.parents[1] for path in work.glob("*/xen/Kconfig"))

    def run(*command: str, stdin: int = subprocess.DEVNULL) -> None:
        subprocess.run(command, cwd=tree / "xen", check=True, stdin=stdin, stdout=log, stderr=log)

    for line in (debian / "patches" / "series").read_text().splitlines():
        if line and not line.startswith("#"):
            with (debian / "patches" / line.split()[0]).open() as patch:
                run("patch", "-p1", "-s", "-d", "..", stdin=patch.fileno())
    make_xen = ["nice", "make", "-s", "XEN_TARGET_ARCH=arm64", f"CROSS_COMPILE={CROSS_COMPILER}"]
    run(*make_xen, "defconfig")
    with (tree / "xen" / ".config").open("a") as config:
        config.write("\n".join(_CONFIG) + "\n")
    run(*make_xen, "olddefconfig")
    if not set(_CONFIG) <= set((tree / "xen" / ".config").read_text().splitlines()):
        raise LabError(f"this Xen cannot be configured with {', '.join(_CONFIG)}")
    run(*make_xen, f"-j{os.cpu_count() or 1}")
    shutil.copyfile(tree / "xen" / "xen", folder / "xen")
    shutil.rmtree(work)
