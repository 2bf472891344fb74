"""What is compiled on this machine: which programs that takes, and what they say when it fails."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xenvirt.errors import LabError

CROSS_COMPILER = "aarch64-linux-gnu-"
"""The prefix of the names of Debian's compiler for Arm and its tools."""
PROGRAMS = {
    f"{CROSS_COMPILER}gcc": "gcc-aarch64-linux-gnu",
    "gcc": "gcc libc6-dev",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
}
"""The programs that Xen and Linux are built with, and Debian's packages that have them."""

_LAST_LINES = 15


@contextmanager
def build_of(what: str, folder: Path, programs: Mapping[str, str] = PROGRAMS) -> Iterator[int]:
    """Gives the descriptor of a log in `folder`; the end of the log is in the LabError of a build that fails.

    Refuses to begin where one of `programs` is missing.
    """
    missing = {package for program, package in programs.items() if shutil.which(program) is None}
    if missing:
        raise LabError(f"to build {what}: apt-get install {' '.join(sorted(missing))}")
    log = folder / "log"
    try:
        with log.open("w") as file:
            yield file.fileno()
    except subprocess.CalledProcessError as error:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
        raise LabError(f"{what} could not be built: {error}\n{last}") from error
