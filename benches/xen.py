"""Foreign memory and grants in a PV dom0 of the lab, against C over Debian's Xen libraries.

The machine's clocks count instructions, so that the ratios repeat, whatever else this host does.
"""

import atexit
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from xenvirt.lab import Lab
from xenvirt.lab.agent import HOST
from xenvirt.lab.progress import on_stderr

from .rig import TOP, Row, rust_bench

AIMS = {
    "map-1": {"python": 1.25, "core": 1.0},
    "map-64": {"python": 1.05, "core": 1.0},
    "map-4096": {"python": 1.0, "core": 1.0},
    "attach-1g": {"python": 0.05},
}
GRANT_CACHE_AIM = 0.1
TURNS = {"map-1": 7, "map-64": 7, "map-4096": 5, "attach-1g": 3}
PROGRAMS = TOP / "target" / "benches"


def run(name: str, quick: bool) -> Iterator[Row]:
    """Rows of foreign mappings, in microseconds: from Python, and from the Rust core alone."""
    peer = built("foreign_peer", "xenforeignmemory")
    taken = in_dom0("foreign.py", name, peer, 1 if quick else TURNS[name])
    for side, aim in AIMS[name].items():
        yield Row(f"{name}/{side}", taken[side] / 1000, taken["peer"] / 1000, "us", "lower", aim)


def run_grant_cache(name: str, quick: bool) -> Iterator[Row]:
    """A row for each kind of chain, in microseconds for one."""
    peer = built("grants_peer", "xengnttab")
    for kind in ("1-buffer", "3-buffers"):
        taken = in_dom0("grants.py", kind, peer, 1 if quick else 5)
        ours, theirs = taken["core"] / 1000, taken["peer"] / 1000
        yield Row(f"{name}/{kind}", ours, theirs, "us", "lower", GRANT_CACHE_AIM)


def in_dom0(program: str, name: str, peer: Path, turns: int) -> dict[str, float]:
    """What a program of `dom0` measures, in nanoseconds."""
    core = PROGRAMS / "xen_core"
    shutil.copyfile(rust_bench("xen"), core)
    core.chmod(0o755)
    paths = [HOST / path.relative_to(TOP) for path in (TOP / "benches" / "dom0" / program, core, peer)]
    output = io.BytesIO()
    command = ["python3", str(paths[0]), name, str(paths[1]), str(paths[2]), str(turns)]
    status = lab().run(*command, stdout=output)
    if status:
        raise RuntimeError(f"{program} in dom0 ended with status {status}")
    taken: dict[str, float] = json.loads(output.getvalue())
    return taken


@cache
def lab() -> Lab:
    """A PV dom0 that counts instructions, for all rows of this run, with room for a guest of 1 GiB."""
    booted = Lab.boot("x86_64", "pv", share=TOP, memory=3072, counted=True, say=on_stderr)
    atexit.register(booted.close)
    return booted


def built(program: str, library: str) -> Path:
    """Compiles a C program of `dom0`; it needs libxen-dev."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    source, target = TOP / "benches" / "dom0" / f"{program}.c", PROGRAMS / program
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", target, source, f"-l{library}"], check=True)
    return target
