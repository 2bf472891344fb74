"""Each bench runs against its peer. What the numbers say is nobody's business here: others are at work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benches import blk_null
from benches.standstill import Standstill

from . import libblkio
from .conftest import need

RUN = Path(__file__).parents[2] / "benches" / "run.py"

ROWS = {
    "ring-core": [f"ring-core/{kind}" for kind in ("1-direct", "3-direct", "1-indirect", "3-indirect")],
    "ring-batch": [f"ring-batch/{kind}" for kind in ("1-direct", "3-direct", "1-indirect", "3-indirect")],
    "blk-qd1": ["blk-qd1"],
    "blk-qd32": ["blk-qd32"],
    "blk-qd64-poll": ["blk-qd64-poll"],
    "blk-file-qd32": [
        f"blk-file-qd32/{way}" for way in ("read-python", "read-native", "write-python", "write-native")
    ],
    "net-64": ["net-64"],
    **{name: [f"{name}/python", f"{name}/core"] for name in ("map-1", "map-64", "map-4096")},
    "attach-1g": ["attach-1g/python"],
    "grant-cache": ["grant-cache/1-buffer", "grant-cache/3-buffers"],
}


def run(*arguments: str) -> str:
    """What the program prints."""
    command = [sys.executable, str(RUN), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_the_list_names_every_bench() -> None:
    assert run("--list").split() == list(ROWS)


def test_an_unknown_name_is_refused_with_the_names_that_there_are() -> None:
    refused = subprocess.run([sys.executable, RUN, "ring"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no bench 'ring'; there are: ring-core, ring-batch" in refused.stderr


@pytest.mark.parametrize("name", ROWS)
def test_a_bench_gives_its_rows(name: str, blkio: Callable[[str], Path], tmp_path: Path) -> None:
    blkio("blkio-bench")
    need(shutil.which("qemu-storage-daemon"), "qemu-system-common")
    need(shutil.which("dpdk-testpmd"), "dpdk-dev")
    table = run("--quick", "--json", str(tmp_path / "rows.json"), name)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == ROWS[name]
    for row in rows:
        assert set(row) == {"name", "ours", "peer", "unit", "ratio", "better", "aim"}
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], abs=1e-3)
        assert row["name"] in table


ANSWER = '{"aggregate": {"kiops": 1.0}}'


def gives_up(times: int, folder: Path) -> Path:
    """A blkio-bench that waits in vain, so many times."""
    count = folder / "count"
    count.write_text("")
    program = folder / "blkio-bench"
    program.write_text(
        f"""#!/bin/sh
        echo >> {count}
        [ $(wc -l < {count}) -gt {times} ] && echo '{ANSWER}' && exit 0
        echo "Timeout receiving completion event - aborting" >&2
        exit 134
        """
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("stood_still", "tries"), [(0.5, 3), (0.0, 1)], ids=["the-machine-stood-still", "it-did-not"]
)
def test_a_client_that_waits_in_vain_is_asked_again_only_if_the_machine_stood_still(
    stood_still: float, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = gives_up(2, tmp_path)
    monkeypatch.setattr(libblkio, "program", lambda _name: program)
    monkeypatch.setattr(Standstill, "longest", stood_still)
    monkeypatch.setattr(blk_null, "DRIVER_CORE", min(os.sched_getaffinity(0)))
    monkeypatch.setattr(blk_null, "DEVICE_CORE", min(os.sched_getaffinity(0)))
    if stood_still:
        assert blk_null.blkio_bench("socket", 32) == {"kiops": 1.0}
    else:
        with pytest.raises(blk_null.GaveUpError, match="a core stood still for 0 ms"):
            blk_null.blkio_bench("socket", 32)
    assert len((tmp_path / "count").read_text()) == tries
