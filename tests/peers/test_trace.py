"""``xenvirt trace`` between guests and QEMU's storage daemon: nobody notices, and the counts are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tracer import Tracer
from xenvirt import Daemon
from xenvirt.lab.kernel import module_content

from .guests import Outcome, QemuGuest, UmlGuest
from .workloads import FEATURES, FILESYSTEM, FILESYSTEM_MODULES, MiB, check_filesystem, new_image

BLOCK = 2

STATISTICS = """
result statistics $(cat /sys/block/vda/stat)
"""

COUNT_KICKS = """
mount -t tracefs trace /sys/kernel/tracing
echo "p:kick vp_notify" > /sys/kernel/tracing/kprobe_events
echo 1 > /sys/kernel/tracing/events/kprobes/kick/enable
insmod /virtio_blk.ko
"""
"""Has the guest's kernel count how often its driver notifies, from before the driver is there."""

TELL_KICKS = """
result kicks $(cat /sys/kernel/tracing/kprobe_profile)
result interrupts $(grep 'virtio[0-9]*-req.0' /proc/interrupts)
"""


@pytest.fixture
def tracer(tmp_path: Path) -> Iterator[Callable[..., Tracer]]:
    """Traces what goes to a daemon: `tracer(daemon, "--count")`."""
    with ExitStack() as stack:

        def start(daemon: Daemon, *options: str) -> Tracer:
            tracing = Tracer(Path(daemon.socket), tmp_path / "traced.sock", "--json", *options)
            stack.callback(tracing.kill)
            return tracing

        yield start


def requests(outcome: Outcome) -> int:
    """How many requests the guest's block layer saw answered (Linux, Documentation/block/stat.rst)."""
    numbers = [int(word) for word in outcome.one("statistics").split()]
    reads, writes, discards, flushes = (numbers[index] for index in (0, 4, 11, 15))
    return reads + writes + discards + flushes


def bases(messages: list[dict[str, Any]]) -> list[int]:
    """Where the ring stopped each time, as the daemon said: fewer than 65536 requests each time."""
    replies = [message for message in messages if message["request"] == "GET_VRING_BASE" and message["reply"]]
    return [int.from_bytes(bytes.fromhex(reply["payload"])[4:], "little") for reply in replies]


def end(tracing: Tracer) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Ends it; gives the messages, and the counters of its one queue."""
    *messages, last = map(json.loads, tracing.end()[0].splitlines())
    (counters,) = last["counters"]
    return messages, counters


def test_a_guest_of_qemu_notices_nothing_and_counts_the_same(
    qemu: Callable[..., QemuGuest],
    storage_daemon: Callable[..., Daemon],
    tracer: Callable[..., Tracer],
    tmp_path: Path,
) -> None:
    image = new_image(tmp_path / "disk", 128 * MiB)
    perfetto = tmp_path / "trace.json"
    tracing = tracer(storage_daemon(image), "--count", "--perfetto", str(perfetto))
    guest = qemu(
        script=COUNT_KICKS + FEATURES + FILESYSTEM + STATISTICS + TELL_KICKS,
        modules=[module for module in FILESYSTEM_MODULES if module != "virtio_blk"],
        programs=["mke2fs"],
        devices=[(Path(tracing.socket), "vhost-user-blk-pci,num-queues=1")],
        vcpus=1,
    )
    guest.files = {"/virtio_blk.ko": module_content(guest.kernel.modules_for(["virtio_blk"])[-1])}
    outcome = guest.run()
    messages, counters = end(tracing)
    check_filesystem(outcome, image)
    firmware, guests = bases(messages)
    assert guests == requests(outcome) > 500
    assert firmware == 1  # SeaBIOS reads the first sector
    assert counters["chains"] == firmware + guests
    began = next(message for message in reversed(messages) if message["request"] == "SET_VRING_KICK")
    signals = [event for event in json.loads(perfetto.read_text()) if event["cat"] == "signal"]
    kicked = [event for event in signals if event["name"] == "kick"]
    since = sum(event["args"]["times"] for event in kicked if event["ts"] >= began["time"] * 1e6)
    name, kicks, _missed = outcome.one("kicks").split()
    assert (name, int(kicks) + 1) == ("kick", since)  # QEMU itself kicks once as the ring starts
    _, interrupts, *_ = outcome.one("interrupts").split()
    assert 0 < int(interrupts) <= counters["calls"]  # the daemon calls once as it gets the eventfd, too
    assert sum(event["args"]["times"] for event in kicked) == counters["kicks"]
    assert counters["errors"] == 0


def test_user_mode_linux_notices_nothing_and_counts_the_same(
    uml: Callable[..., UmlGuest],
    storage_daemon: Callable[..., Daemon],
    tracer: Callable[..., Tracer],
    tmp_path: Path,
) -> None:
    image = new_image(tmp_path / "disk", 128 * MiB)
    tracing = tracer(storage_daemon(image), "--count")
    guest = uml(
        script=FEATURES + FILESYSTEM + STATISTICS,
        modules=FILESYSTEM_MODULES,
        programs=["mke2fs"],
        devices=[(Path(tracing.socket), BLOCK)],
    )
    outcome = guest.run()
    messages, counters = end(tracing)
    check_filesystem(outcome, image)
    assert counters["chains"] == requests(outcome) > 500
    assert 0 < counters["kicks"] <= counters["chains"]
    assert 0 < counters["calls"] <= counters["chains"]
    assert counters["errors"] == 0
    # UML sends room for two regions whatever their number; it passes as it came.
    table = next(message for message in messages if message["request"] == "SET_MEM_TABLE")
    assert (table["files"], len(bytes.fromhex(table["payload"]))) == (1, 72)
    assert "malformed" not in table["text"]


def test_a_guest_runs_on_where_nothing_is_counted(
    uml: Callable[..., UmlGuest],
    storage_daemon: Callable[..., Daemon],
    tracer: Callable[..., Tracer],
    tmp_path: Path,
) -> None:
    image = new_image(tmp_path / "disk", 128 * MiB)
    tracing = tracer(storage_daemon(image))
    guest = uml(
        script=FILESYSTEM,
        modules=FILESYSTEM_MODULES,
        programs=["mke2fs"],
        devices=[(Path(tracing.socket), BLOCK)],
    )
    check_filesystem(guest.run(), image)
    assert any('"SET_VRING_KICK"' in line for line in tracing.end()[0].splitlines())
