#!/usr/bin/env python3
"""Measures xenvirt against its peers, in one run: `python benches/run.py [NAME...] [--json FILE]`.

Each bench has ours and the peer take turns, on cores of their own, and gives the medians. Without a name all
of them run, `--list` says which there are. docs/performance.md explains the numbers.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches import blk_file, blk_null, net, ring_batch, ring_core, xen
from benches.rig import Bench, Row

BENCHES: dict[str, Bench] = {
    "ring-core": ring_core.run,
    "ring-batch": ring_batch.run,
    "blk-qd1": blk_null.run,
    "blk-qd32": blk_null.run,
    "blk-qd64-poll": blk_null.run,
    "blk-file-qd32": blk_file.run,
    "net-64": net.run,
    "map-1": xen.run,
    "map-64": xen.run,
    "map-4096": xen.run,
    "attach-1g": xen.run,
    "grant-cache": xen.run_grant_cache,
}


def rows(names: Iterable[str], quick: bool) -> Iterator[Row]:
    """The rows of these benches, one after the other."""
    for name in names:
        yield from BENCHES[name](name, quick)


def line(row: Row) -> str:
    """A row of the table."""
    sign = "<=" if row.better == "lower" else ">="
    aim = f"{sign} {row.aim:.2f}{'' if row.met else '  missed'}"
    return f"{row.name:<24} {row.ours:>12.2f} {row.peer:>12.2f} {row.unit:<6} {row.ratio:>7.2f}   {aim}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benches that are named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benches; all without one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--list", action="store_true", help="say which benches there are")
    parser.add_argument(
        "--quick", action="store_true", help="only see that they run; the numbers mean nothing"
    )
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(BENCHES))
        return
    for name in options.names:
        if name not in BENCHES:
            parser.error(f"no bench {name!r}; there are: {', '.join(BENCHES)}")
    print(f"{'':<24} {'ours':>12} {'peer':>12} {'':<6} {'ratio':>7}   aim", flush=True)
    done: list[dict[str, object]] = []
    with ExitStack() as at_the_end:
        if options.json:
            # Also what was measured before one of them failed.
            at_the_end.callback(lambda: options.json.write_text(json.dumps(done, indent=1) + "\n"))
        for row in rows(options.names or BENCHES, options.quick):
            print(line(row), flush=True)
            done.append(row.as_json())


if __name__ == "__main__":
    main()
