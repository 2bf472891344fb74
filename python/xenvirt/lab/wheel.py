"""The xenvirt that dom0 gets: the one that is installed here, or a wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import platform
import re
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import xenvirt
from xenvirt.errors import LabError

from . import cross
from .progress import Say
from .recipes import Recipe
from .system import compiled

_NATIVE = re.compile(r"xenvirt/_native[^/]*\.so")
_MACHINES = {62: "x86_64", 183: "aarch64"}
"""e_machine of an ELF header."""


def installed() -> dict[str, bytes]:
    """The files of the package that runs here, by their paths below a folder of PYTHONPATH."""
    folder = Path(xenvirt.__file__).parent
    files = {
        f"xenvirt/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    distribution = metadata.distribution("xenvirt")
    described = distribution.read_text("METADATA") or ""
    return {**files, f"xenvirt-{distribution.version}.dist-info/METADATA": described.encode()}


def of_wheel(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    except (zipfile.BadZipFile, OSError) as error:
        raise LabError(f"{wheel} is no wheel that can be read: {error}") from error


def files_for(architecture: str, wheel: Path | None, say: Say) -> dict[str, bytes]:
    """The files of xenvirt for a dom0: a wheel's, or those that are here with a native module that fits."""
    if wheel is not None:
        return of_wheel(wheel)
    here = installed()
    if architecture == platform.machine():
        return here
    built = of_wheel(cross.wheel(architecture, say))
    return {
        **{name: content for name, content in here.items() if not _NATIVE.fullmatch(name)},
        **{name: content for name, content in built.items() if _NATIVE.fullmatch(name)},
    }


def bundle(files: Mapping[str, bytes], recipe: Recipe, architecture: str) -> tuple[str, bytes]:
    """Name and content of a tar for dom0; the name changes with the content. LabError if it would not run."""
    _check_native(files, recipe, architecture)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            _add(tar, name, content)
            if name.endswith(".py") and recipe.python == sys.version_info[:2]:
                bytecode = compiled(content, name)
                if bytecode:
                    _add(tar, importlib.util.cache_from_source(name), bytecode)
    whole = data.getvalue()
    return f"package-{hashlib.sha256(whole).hexdigest()[:16]}", whole


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _check_native(files: Mapping[str, bytes], recipe: Recipe, architecture: str) -> None:
    native = [name for name in files if _NATIVE.fullmatch(name)]
    if not native:
        raise LabError("this xenvirt has no native module; reinstall it, or give a wheel with --wheel")
    for name in native:
        content = files[name]
        machine = _MACHINES.get(int.from_bytes(content[18:20], "little"), "another machine")
        if machine != architecture:
            raise LabError(f"{name} is for {machine}, and dom0 is {architecture}: give a wheel with --wheel")
        needs = max(
            (tuple(map(int, found)) for found in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", content)),
            default=(0, 0),
        )
        if needs > recipe.glibc:
            needed, there = (".".join(map(str, version)) for version in (needs, recipe.glibc))
            raise LabError(
                f"{name} was built for glibc {needed}, and dom0 ({recipe.suite}) has {there}: give a wheel "
                "that asks for less with --wheel"
            )
