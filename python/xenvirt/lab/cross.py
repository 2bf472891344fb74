"""A wheel for a dom0 of another architecture than this machine's, from a source checkout of xenvirt.

maturin and cargo build it, with a linker of Debian's. Where this machine's Rust has no standard library for
the other architecture, Debian's Rust has: it is downloaded and unpacked, not installed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import xenvirt
from xenvirt.errors import LabError

from .cache import cache, kept, make
from .packages import Suite, debs
from .progress import Say

_LINKERS = {"aarch64": "aarch64-linux-gnu-gcc"}
_LINKER_PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
_RUST_FROM = "bookworm"
"""Its security archive has a Rust that is kept new, because browsers are built with it."""
_RUST_NAMES = {"x86_64": ("amd64", "x86_64-linux-gnu"), "aarch64": ("arm64", "aarch64-linux-gnu")}
_RUSTC = """\
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH=$root/usr/lib/{libraries}:$root/lib/{libraries}
exec "$root/usr/bin/rustc" --sysroot "$root/usr" "$@"
"""
_SOURCES = ("rust", "Cargo.toml", "Cargo.lock", "pyproject.toml")


def wheel(architecture: str, say: Say) -> Path:
    """The wheel for an architecture, built unless it was built before from the same Rust.

    Only its native module is of use: its Python files are those of the day on which it was built.
    """
    checkout = find_checkout()
    if checkout is None:
        raise LabError(
            f"xenvirt for {architecture} is built from its source, and there is no checkout of it here: "
            "give a wheel with --wheel"
        )
    sources = [(str(path.relative_to(checkout)), path.read_bytes()) for path in _source_files(checkout)]

    def build(folder: Path) -> None:
        _build(checkout, architecture, folder, say)

    (built,) = make(kept(f"wheel-{architecture}", sources), build).glob("*.whl")
    return built


def find_checkout() -> Path | None:
    """The source tree of the xenvirt that runs, or the one that we are in."""
    for folder in (*Path(xenvirt.__file__).resolve().parents, Path.cwd(), *Path.cwd().parents):
        try:
            project = tomllib.loads((folder / "pyproject.toml").read_text())
        except (OSError, ValueError):
            continue
        if project.get("project", {}).get("name") == "xenvirt" and (folder / "rust").is_dir():
            return folder
    return None


def _source_files(checkout: Path) -> Iterator[Path]:
    for name in _SOURCES:
        path = checkout / name
        yield from (file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else [path]


def target_of(architecture: str) -> str:
    """What Rust calls it."""
    return f"{architecture}-unknown-linux-gnu"


def environment(architecture: str, say: Say, *, folder: Path) -> dict[str, str]:
    """What cargo is run with, in `folder`, to build for :func:`target_of` an architecture.

    Raises:
        LabError: there is no linker for it.
    """
    linker = _LINKERS.get(architecture)
    if linker is None:
        raise LabError(f"nobody here builds for {architecture}: xenvirt itself may come as a --wheel")
    if shutil.which(linker) is None:
        raise LabError(f"to build for {architecture}: apt-get install {_LINKER_PACKAGES}")
    target = target_of(architecture)
    made = {**os.environ, f"CARGO_TARGET_{target.upper().replace('-', '_')}_LINKER": linker}
    made.pop("CARGO_TARGET_DIR", None)
    if not _has_standard_library(folder, target):
        made["RUSTC"] = str(_debian_rustc(architecture, say))
    return made


def _build(checkout: Path, architecture: str, folder: Path, say: Say) -> None:
    cargo = environment(architecture, say, folder=checkout)
    say(f"building xenvirt for {architecture}, which takes some minutes")
    found = shutil.which("maturin")
    maturin = [found] if found else [sys.executable, "-m", "maturin"]
    words = ["build", "--release", "--locked", "--target", target_of(architecture), "--out", str(folder)]
    words += ["--target-dir", str(cache() / f"cargo-{architecture}")]
    done = subprocess.run(
        ["nice", *maturin, *words],
        cwd=checkout,
        env=cargo,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise LabError(f"maturin could not build xenvirt for {architecture} (or give a --wheel):\n{last}")


def _has_standard_library(folder: Path, target: str) -> bool:
    """Whether this machine's Rust can compile for a target."""
    try:
        asked = subprocess.run(
            [os.environ.get("RUSTC", "rustc"), "--print", "target-libdir", "--target", target],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise LabError("no rustc here, which xenvirt is built with (https://rustup.rs)") from None
    return any(Path(asked.stdout.strip()).glob("libstd-*")) if asked.returncode == 0 else False


def _debian_rustc(architecture: str, say: Say) -> Path:
    """A compiler for this machine and that one, as a program to set RUSTC to."""
    here = platform.machine()
    if here not in _RUST_NAMES:
        raise LabError(
            f"Debian's Rust is not taken for {here}: rustup target add {architecture}-unknown-linux-gnu"
        )
    (name, libraries), (other, _) = _RUST_NAMES[here], _RUST_NAMES[architecture]
    found = debs(Suite(_RUST_FROM, name), ["libstd-rust-web-dev"], ["rustc-web"], say)
    found += debs(Suite(_RUST_FROM, other), [], ["libstd-rust-web-dev"], say)

    def build(folder: Path) -> None:
        say(f"unpacking Debian's Rust for {here} and {architecture}")
        for deb in found:
            # Everything else finds its C library where this machine has it.
            if not deb.name.startswith(("libc6", "gcc-", "libgcc-", "libcrypt")):
                subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        (folder / "rustc").write_text(_RUSTC.format(libraries=libraries))
        (folder / "rustc").chmod(0o755)

    root = make(kept(f"rust-{architecture}", [deb.name for deb in found]), build)
    return root / "rustc"
