"""What a chain costs: our Rust core against rust-vmm's virtio-queue, on the same memory."""

import json
from collections.abc import Iterator

from .rig import DRIVER_CORE, Row, output_of, pinned, rust_bench

AIM = 0.2


def run(name: str, quick: bool) -> Iterator[Row]:
    """A row for each kind of chain; the program has ours and theirs take turns itself."""
    samples = 5 if quick else 2001
    for found in output_of(pinned(DRIVER_CORE, rust_bench("ring"), str(samples))).splitlines():
        row = json.loads(found)
        yield Row(f"{name}/{row['chain']}", row["ours"], row["peer"], "ns", "lower", AIM)
