"""Packets of 64 bytes from DPDK's virtio-user, counted and dropped by the batch: against DPDK's vhost."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.peers.dpdk import Testpmd
from xenvirt import Daemon

from .rig import DEVICE_CORE, DRIVER_CORE, Row, served, take_turns

AIM = 0.5
POLL = 0.01
"""For how long our thread looks on after the last packet, in seconds; DPDK looks for ever."""


def _rate(driver: Testpmd, seconds: float) -> float:
    """Millions of packets a second that the driver gets rid of."""
    driver.command("start")
    try:
        time.sleep(seconds / 4)  # until it has got going
        begin, before = time.monotonic(), driver.packets("TX")
        time.sleep(seconds)
        after, end = driver.packets("TX"), time.monotonic()
    finally:
        driver.command("stop")
    return (after - before) / (end - begin) / 1e6


def run(name: str, quick: bool) -> Iterator[Row]:
    """One row: millions of packets a second."""
    seconds = 0.1 if quick else 1.0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xenvirt-bench-")))

        def testpmd(role: str, port: str, core: int) -> Testpmd:
            own = folder / role
            own.mkdir()
            return Testpmd(port, own, core=core)

        sink = stack.enter_context(Daemon(*served("packet_sink.py", "{socket}", str(POLL))))
        vhost = stack.enter_context(
            testpmd("vhost", f"net_vhost0,iface={folder}/vhost.sock,queues=1", DEVICE_CORE)
        )
        vhost.command("set fwd rxonly")
        user = "net_virtio_user0,queues=1,queue_size=256"
        with (
            testpmd("to-sink", f"{user},path={sink.socket}", DRIVER_CORE) as to_sink,
            testpmd("to-vhost", f"{user},path={folder}/vhost.sock", DRIVER_CORE) as to_vhost,
        ):
            to_sink.command("set fwd txonly")
            to_vhost.command("set fwd txonly")

            def theirs() -> float:
                # It polls as long as it is started, which would be beside us.
                vhost.command("start")
                try:
                    return _rate(to_vhost, seconds)
                finally:
                    vhost.command("stop")

            mine, other = take_turns(1 if quick else 7, lambda: _rate(to_sink, seconds), theirs)
            sent = to_sink.packets("TX")
        counted = sink.wait_for_output(r"packets: (\d+), bytes: \d+")[1]
        assert int(counted) == sent, f"{counted} packets counted, {sent} sent"
        yield Row(name, mine, other, "Mpps", "higher", AIM)
