"""rust-vmm's daemons, built from the crate registry in pinned versions with their own lock files."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xenvirt.lab import cross
from xenvirt.lab.cache import cache, kept, make
from xenvirt.lab.progress import on_stderr


@dataclass(frozen=True)
class Crate:
    """One daemon: a crate, its version, what else `cargo install` is told, and for which machine."""

    name: str
    version: str
    arguments: tuple[str, ...] = ()
    architecture: str | None = None

    @property
    def program(self) -> Path:
        """The daemon's file, there once `build_all` has made it."""
        if self.architecture is None:
            return kept(f"{self.name}-{self.version}", self.arguments) / "bin" / self.name
        return kept(f"{self.name}-{self.version}-{self.architecture}", self.arguments) / "bin" / self.name

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.version, *self.arguments, self.architecture)))

    def build(self, shared: Path) -> None:
        """Builds it, unless that was done before; `shared` is a target folder for many crates."""

        def install(root: Path) -> None:
            wanted = ["--version", f"={self.version}", "--locked", *self.arguments, self.name]
            environment = dict(os.environ)
            if self.architecture is not None:
                environment = cross.environment(self.architecture, on_stderr, folder=root)
                wanted += ["--target", cross.target_of(self.architecture)]
            # Nobody measures these, so they may be built the quick way.
            profile = {"OPT_LEVEL": "1", "LTO": "off", "CODEGEN_UNITS": "16", "DEBUG": "false"}
            settings = {f"CARGO_PROFILE_RELEASE_{key}": value for key, value in profile.items()}
            subprocess.run(
                ["cargo", "install", "-q", "--root", root, *wanted],
                check=True,
                env={**environment, **settings, "CARGO_TARGET_DIR": str(shared)},
            )

        make(self.program.parent.parent, install)


RNG = Crate("vhost-device-rng", "0.1.0")
I2C = Crate("vhost-device-i2c", "0.1.0")
SCSI = Crate("vhost-device-scsi", "0.1.0")
CAN = Crate("vhost-device-can", "0.1.0")
SPI = Crate("vhost-device-spi", "0.1.0")
CONSOLE = Crate("vhost-device-console", "0.1.0")
INPUT = Crate("vhost-device-input", "0.1.0")
VSOCK = Crate("vhost-device-vsock", "0.3.0")
SOUND = Crate("vhost-device-sound", "0.3.0", ("--no-default-features",))
"""Without ALSA and PipeWire: its null backend is always there."""

# rust-vmm decides between Xen and the rest when it is compiled, so these are other programs.
RNG_XEN = Crate("vhost-device-rng", "0.1.0", ("--features=xen",))
CONSOLE_XEN = Crate("vhost-device-console", "0.1.0", ("--features=xen",))
VSOCK_XEN = Crate("vhost-device-vsock", "0.3.0", ("--features=xen",))

# For the lab's Arm dom0.
RNG_ARM = Crate("vhost-device-rng", "0.1.0", ("--features=xen",), "aarch64")
CONSOLE_ARM = Crate("vhost-device-console", "0.1.0", ("--features=xen",), "aarch64")

ARM_CRATES = (RNG_ARM, CONSOLE_ARM)
CRATES = (
    RNG,
    I2C,
    SCSI,
    CAN,
    SPI,
    CONSOLE,
    INPUT,
    VSOCK,
    SOUND,
    RNG_XEN,
    CONSOLE_XEN,
    VSOCK_XEN,
    *ARM_CRATES,
)


def build_all(crates: Iterable[Crate] = CRATES) -> None:
    """Builds those that are not there yet."""
    shared = cache() / ".crates-target"
    for crate in crates:
        if not crate.program.exists():
            start = time.monotonic()
            print(f"building {crate}", end=": ", flush=True)
            crate.build(shared)
            print(f"{time.monotonic() - start:.0f} s", flush=True)
    shutil.rmtree(shared, ignore_errors=True)
