#!/usr/bin/env python3
"""Times the legs of a request of a Linux guest on the lab's Arm machine: `python benches/legs.py [REQUESTS]`.

By foreign memory and by grants, the device in the process that holds the guest and in a daemon. It needs
aarch64-linux-gnu-gcc. The machine is emulated: the ratios say something, the microseconds little.
docs/how-it-works.md explains the legs.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.rig import TOP
from xenvirt.lab import Lab
from xenvirt.lab.agent import HOST
from xenvirt.lab.progress import on_stderr

REQUESTS = 1024


def build_guest_program() -> Path:
    """Compiles what runs in the guest."""
    source = TOP / "benches" / "dom0" / "legs_guest.c"
    program = TOP / "target" / "benches" / source.stem
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding"]
    compiler = "aarch64-linux-gnu-gcc"
    subprocess.run([compiler, *flags, "-fno-stack-protector", "-o", program, source], check=True)
    return program


def table(found: dict[str, dict[str, float]]) -> str:
    """The medians, a line for each leg."""
    legs = list(dict.fromkeys(leg for legs in found.values() for leg in legs))
    lines = [f"{'us':<38}" + "".join(f"{way:>21}" for way in found)]
    for leg in legs:
        lines.append(f"{leg:<38}" + "".join(f"{legs[leg]:>21.1f}" for legs in found.values()))
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    program = HOST / build_guest_program().relative_to(TOP)
    output = io.BytesIO()
    with Lab.boot("aarch64", kernel="own", share=TOP, say=on_stderr) as lab:
        script = HOST / "benches" / "dom0" / "legs.py"
        status = lab.run("python3", str(script), str(program), str(requests), stdout=output)
    if status:
        raise SystemExit(f"{script} in dom0 ended with status {status}")
    print(table(json.loads(output.getvalue())))


if __name__ == "__main__":
    main()
