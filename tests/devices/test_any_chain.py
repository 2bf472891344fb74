"""Whatever a driver puts in its queues, a console or a network card neither fails nor stops."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenvirt import Device, Feature, connect
from xenvirt.devices import ConsoleDevice, NetDevice, Port, cable
from xenvirt.drivers.request import Request
from xenvirt.errors import QueueFullError
from xenvirt.virtio.console import ConsoleFeature
from xenvirt.virtio.net import NetFeature

QUEUES = 7
SMALL = st.binary(min_size=1, max_size=40)
# Control messages and commands are short, with small numbers in them.
LIKELY = st.lists(st.integers(0, 9), min_size=1, max_size=24).map(bytes)
CHAINS = st.lists(
    st.tuples(
        st.integers(0, QUEUES - 1),
        st.lists(SMALL | LIKELY, max_size=3),
        st.lists(st.integers(1, 3000), max_size=3),
    ).filter(lambda chain: bool(chain[1] or chain[2])),
    max_size=40,
)


def console(near: socket.socket) -> Device:
    fd = near.fileno()
    return ConsoleDevice(Port(fd, fd), Port(None, None, name="second", console=False))


def card(near: socket.socket) -> Device:  # noqa: ARG001 - a console wants it
    ends = cable(pairs=3)
    ends[0].other = ends[0]  # what it sends comes back
    return NetDevice(ends[0])


@pytest.mark.parametrize("make", [console, card])
@given(chains=CHAINS, typed=st.binary(max_size=100))
@settings(max_examples=60, deadline=None)
def test_any_chain_is_dealt_with(
    make: Callable[[socket.socket], Device],
    chains: list[tuple[int, list[bytes], list[int]]],
    typed: bytes,
) -> None:
    far, near = socket.socketpair()
    wanted = int(Feature.VERSION_1 | ConsoleFeature.MULTIPORT | ConsoleFeature.SIZE)
    if make is card:
        wanted = int(Feature.VERSION_1) | NetFeature.MRG_RXBUF | NetFeature.CTRL_VQ | NetFeature.MQ
    with far, near, connect(make(near)) as link:
        far.setblocking(False)
        link.start(wanted, (64,) * link.queue_count)
        far.send(typed)
        for queue, readable, writable in chains:
            request = Request(queue % link.queue_count, readable, writable, lambda _: None, "anything")
            with suppress(QueueFullError):
                link.submit_now(request)
            link.attend(0)
            link.collect()
            with suppress(BlockingIOError):
                far.recv(65536)
