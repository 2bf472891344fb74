"""Foreign memory in a PV dom0 of the lab, from Python, against C over Debian's libxenforeignmemory."""

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from xenvirt.lab import Lab
from xenvirt.lab.agent import HOST
from xenvirt.lab.progress import on_stderr

from .rig import TOP, Row

AIMS = {"map-1": 1.25, "map-64": 1.05, "map-4096": 1.0}
TURNS = {"map-1": 31, "map-64": 31, "map-4096": 15}


def run(name: str, quick: bool) -> Iterator[Row]:
    """One row, in microseconds."""
    peer = build_peer()
    output = io.BytesIO()
    with Lab.boot("x86_64", "pv", share=TOP, say=on_stderr) as lab:
        program = HOST / "benches" / "dom0" / "foreign.py"
        turns = 2 if quick else TURNS[name]
        status = lab.run(
            "python3", str(program), name, str(HOST / peer.relative_to(TOP)), str(turns), stdout=output
        )
    if status:
        raise RuntimeError(f"{program} in dom0 ended with status {status}")
    taken = json.loads(output.getvalue())
    yield Row(name, taken["ours"] / 1000, taken["peer"] / 1000, "us", "lower", AIMS[name])


def build_peer() -> Path:
    """Compiles the C program; it needs libxen-dev."""
    source = TOP / "benches" / "dom0" / "foreign_peer.c"
    program = TOP / "target" / "benches" / source.stem
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, source, "-lxenforeignmemory"], check=True)
    return program
