"""Installs and builds the peers, as `scripts/test` asks for; quick when all is there."""

import os
import subprocess
import sys

from xenvirt.lab.cache import cache, one_at_a_time
from xenvirt.lab.progress import on_stderr
from xenvirt.lab.recipes import RECIPES
from xenvirt.lab.system import system

from . import crates, kernels, libblkio, newer_qemu

PACKAGES = (
    "acpica-tools",
    "bc",
    "bison",
    "busybox-static",
    "cpio",
    "dpdk-dev",
    "e2fsprogs",
    "flex",
    "gcc-aarch64-linux-gnu",
    "iproute2",
    "libc6-dev-arm64-cross",
    "librte-net-vhost23",
    "librte-net-virtio23",
    "libxen-dev",
    "linux-libc-dev",
    "make",
    "patch",
    "qemu-system-arm",
    "qemu-system-common",
    "qemu-system-x86",
    "user-mode-linux",
    "xz-utils",
)


def apt_get(*words: str) -> bool:
    """Runs apt-get as root, without questions. False if it failed."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    options = ["-qq", "-oAcquire::Retries=3", "-oDPkg::Lock::Timeout=600", "-oDpkg::Use-Pty=0"]
    command = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *options, *words]
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode == 0


def installed(package: str) -> bool:
    """Whether Debian's package manager says so."""
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def main() -> None:
    """Everything that tests/peers needs and that is not there yet."""
    with one_at_a_time():
        missing = [package for package in PACKAGES if not installed(package)]
        if missing or kernels.debian() is None:
            apt_get("update")  # one source of many may fail and be none of ours
        if missing:
            print("installing", *missing, flush=True)
            if not apt_get("install", "-y", "--no-install-recommends", *missing):
                sys.exit(f"apt-get could not install {' '.join(missing)}")
        if kernels.debian() is None:
            print("unpacking Debian's kernel", flush=True)
            kernels.fetch_debian()
        libblkio.build()
        newer_qemu.build()
        crates.build_all()
        for architecture, recipes in RECIPES.items():
            for kernel in recipes[0].kernels:
                system(architecture, on_stderr, kernel=kernel)
    print(f"the peers are in {cache()}")


if __name__ == "__main__":
    main()
