"""Probes: programs that xenvirt can talk to, and modules that it uses where they are present."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from importlib import import_module, metadata

from xenvirt import Server, VhostUserSocket, connect
from xenvirt.devices import EntropyDevice
from xenvirt.drivers import EntropyDriver
from xenvirt.errors import XenvirtError

from .finding import Finding

VERSION_SECONDS = 10.0
SELF_SECONDS = 5.0

GUESTS = ("qemu-system-x86_64", "qemu-system-aarch64", "linux.uml", "dpdk-testpmd", "blkio-bench")
"""Programs that use a device which we serve."""

DAEMONS = (
    "qemu-storage-daemon",
    "virtiofsd",
    "vhost-device-can",
    "vhost-device-console",
    "vhost-device-i2c",
    "vhost-device-input",
    "vhost-device-rng",
    "vhost-device-scsi",
    "vhost-device-sound",
    "vhost-device-spi",
    "vhost-device-vsock",
)
"""Programs that serve a device which we drive."""


def guests() -> Finding:
    """Frontends in the PATH that start."""
    advice = "apt install qemu-system-x86 user-mode-linux"
    return _programs("frontends", GUESTS, advice, "a guest for the devices that you serve")


def daemons() -> Finding:
    """vhost-user daemons in the PATH that start."""
    advice = "cargo install vhost-device-rng, or apt install qemu-system-common"
    return _programs("daemons", DAEMONS, advice, "backends for your drivers and tests")


def numpy() -> Finding:
    """Is NumPy there? It is never needed."""
    needed = "batches as arrays; memoryviews do as well"
    try:
        version = import_module("numpy").__version__
    except ImportError:
        return Finding("NumPy", False, "not installed", "pip install numpy", needed)
    return Finding("NumPy", True, str(version), "", needed)


def xenvirt() -> Finding:
    """Ourselves: a device served over a socket, and driven."""
    needed = "everything"
    version = metadata.version("xenvirt")
    try:
        with tempfile.TemporaryDirectory(prefix="xenvirt-probe-") as folder, Server() as server:
            path = f"{folder}/s"
            server.add(EntropyDevice(), VhostUserSocket(path))
            with connect(path, timeout=SELF_SECONDS) as link, EntropyDriver(link) as rng:
                rng.read(16)
    except (XenvirtError, OSError) as error:
        return Finding(
            "xenvirt", False, f"version {version}, and serving a device fails: {error}", "", needed
        )
    return Finding("xenvirt", True, f"version {version}; a device could be served and driven", "", needed)


def _programs(name: str, programs: tuple[str, ...], advice: str, needed_for: str) -> Finding:
    found = []
    for program in programs:
        path = shutil.which(program)
        if path is None:
            continue
        version = _version(path)
        found.append(f"{program} {version}" if version else f"{program} (does not start)")
    works = any(not one.endswith("(does not start)") for one in found)
    return Finding(name, works, ", ".join(found) or "none in the PATH", "" if works else advice, needed_for)


def _version(path: str) -> str:
    """The number in what it prints for --version; empty if it cannot be started."""
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    number = re.search(r"\d+\.\d+[\w.]*", done.stdout + done.stderr)
    return number[0] if number else "of unknown version" if done.returncode == 0 else ""
