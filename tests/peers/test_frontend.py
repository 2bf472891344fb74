"""Our frontend against everybody's backends: what they offer, how far they let us go, and how they say no."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from xenvirt import Daemon
from xenvirt._native import Frontend, SharedRegion
from xenvirt.errors import DisconnectedError, NegotiationError, RequestRefusedError

from . import crates, rust_vmm
from .conftest import need
from .workloads import MiB, new_image

PATIENCE = 20.0

GET_QUEUE_NUM = 17
SET_PROTOCOL_FEATURES = 16
GET_PROTOCOL_FEATURES = 15
GET_FEATURES = 1
SET_OWNER = 3

MQ = 1 << 0
REPLY_ACK = 1 << 3
BACKEND_REQ = 1 << 5
CONFIG = 1 << 9
CONFIGURE_MEM_SLOTS = 1 << 15
XEN_MMAP = 1 << 17
VERSION_1 = 1 << 32


@dataclass(frozen=True)
class Peer:
    """A daemon, and what is known of it."""

    start: Callable[[Path, int], Daemon]
    protocol_features: int
    queues: int
    config_size: int
    largest_ring: int
    outlives_errors: bool = True


def _console(crate: crates.Crate) -> Callable[[Path, int], Daemon]:
    return lambda _image, port: rust_vmm.console(crate, tcp_port=port)


PEERS = {
    "rng": Peer(lambda *_: rust_vmm.rng(), MQ, 1, 0, 1024),
    "rng-xen": Peer(lambda *_: rust_vmm.rng(crates.RNG_XEN), MQ | XEN_MMAP, 1, 0, 1024),
    "vsock": Peer(lambda *_: rust_vmm.vsock(), MQ | REPLY_ACK | CONFIG, 3, 8, 1024),
    "vsock-xen": Peer(
        lambda *_: rust_vmm.vsock(crates.VSOCK_XEN), MQ | REPLY_ACK | CONFIG | XEN_MMAP, 3, 8, 1024
    ),
    "console": Peer(_console(crates.CONSOLE), MQ | REPLY_ACK | CONFIG, 4, 12, 128, False),
    "console-xen": Peer(_console(crates.CONSOLE_XEN), MQ | REPLY_ACK | CONFIG | XEN_MMAP, 4, 12, 128, False),
    "scsi": Peer(lambda image, _: rust_vmm.scsi(image, read_only=True), MQ | CONFIG, 3, 36, 128, False),
    "sound": Peer(lambda *_: rust_vmm.sound(), MQ | REPLY_ACK | CONFIG, 4, 12, 64, False),
}


@pytest.fixture(autouse=True)
def _built() -> None:
    for crate in crates.CRATES:
        need(crate.program.exists(), f"{crate.name} {crate.version}")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return new_image(tmp_path / "disk", MiB)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    name = request.param
    assert isinstance(name, str)
    return PEERS[name]


@pytest.fixture
def daemon(peer: Peer, image: Path, tcp_port: int) -> Iterator[Daemon]:
    with peer.start(image, tcp_port) as daemon:
        yield daemon


def set_up(frontend: Frontend, index: int, size: int) -> None:
    """Memory, features and one ring, enabled."""
    with closing(os.fdopen(os.memfd_create("guest"), "r+b")) as guest:
        guest.truncate(MiB)
        frontend.set_memory([SharedRegion(guest.fileno(), 0, MiB)])
    frontend.set_features(VERSION_1)
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        frontend.set_queue(
            index, size, descriptors=0, available=0x8000, used=0xC000, kick=event, call=event, err=event
        )
        frontend.enable_queue(index)
    finally:
        os.close(event)


def test_each_offers_what_is_known_of_it_and_lets_a_ring_run(peer: Peer, daemon: Daemon) -> None:
    with Frontend(daemon.socket, timeout=PATIENCE) as frontend:
        assert frontend.protocol_features == peer.protocol_features
        assert frontend.queue_count == peer.queues
        assert frontend.offered_features & VERSION_1
        if peer.config_size:
            assert len(frontend.config(0, peer.config_size)) == peer.config_size
        else:
            with pytest.raises(NegotiationError, match="CONFIG"):
                frontend.config(0, 1)
        set_up(frontend, peer.queues - 1, peer.largest_ring)
        assert frontend.stop_queue(peer.queues - 1) == 0


def test_a_ring_that_is_too_large_is_an_error_that_names_the_request(peer: Peer, daemon: Daemon) -> None:
    with Frontend(daemon.socket, timeout=PATIENCE) as frontend:
        with pytest.raises((DisconnectedError, RequestRefusedError), match="SET_VRING_NUM"):
            set_up(frontend, 0, 2 * peer.largest_ring)
        assert any("-> SET_VRING_NUM queue 0:" in line for line in frontend.wire_log)
    if not peer.outlives_errors:
        daemon.wait()


@pytest.mark.parametrize("peer", [PEERS["rng"]], ids=["rng"])
def test_the_queues_may_not_be_asked_for_before_mq_is_acked(daemon: Daemon) -> None:
    with Frontend(daemon.socket, timeout=PATIENCE, negotiate=False) as frontend:
        frontend.raw(SET_OWNER, reply=False)
        frontend.raw(GET_FEATURES)
        assert not frontend.closed_within(0)
        with pytest.raises(DisconnectedError, match="GET_QUEUE_NUM"):
            frontend.raw(GET_QUEUE_NUM)
    with Frontend(daemon.socket, timeout=PATIENCE) as frontend:
        assert frontend.queue_count == 1


XEN = [name for name in PEERS if name.endswith("-xen")]


@pytest.mark.parametrize("peer", [PEERS[name] for name in XEN], ids=XEN)
def test_a_daemon_for_xen_ends_the_connection_without_xen_mmap_and_we_say_so_before(
    peer: Peer, daemon: Daemon
) -> None:
    without = peer.protocol_features & ~XEN_MMAP
    with pytest.raises(NegotiationError, match="XEN_MMAP"):
        Frontend(daemon.socket, timeout=PATIENCE, protocol_features=without)
    # It is alive, so the mistake was not sent; and it would have died of it.
    with Frontend(daemon.socket, timeout=PATIENCE, negotiate=False) as frontend:
        frontend.raw(SET_OWNER, reply=False)
        frontend.raw(GET_FEATURES)
        frontend.raw(GET_PROTOCOL_FEATURES)
        frontend.raw(SET_PROTOCOL_FEATURES, without.to_bytes(8, "little"), reply=False)
        assert frontend.closed_within(PATIENCE)
    if not peer.outlives_errors:
        daemon.wait()


@pytest.mark.parametrize("peer", [PEERS["rng"], PEERS["vsock"]], ids=["rng", "vsock"])
def test_one_client_after_the_other_is_served(daemon: Daemon) -> None:
    for _ in range(5):
        with Frontend(daemon.socket, timeout=PATIENCE) as frontend:
            set_up(frontend, 0, 64)
            assert frontend.stop_queue(0) == 0


def test_qemus_storage_daemon_lets_a_ring_run(storage_daemon: Callable[..., Daemon], image: Path) -> None:
    daemon = storage_daemon(image, queues=2)
    with Frontend(daemon.socket, timeout=PATIENCE) as frontend:
        assert frontend.protocol_features == MQ | REPLY_ACK | BACKEND_REQ | CONFIG | CONFIGURE_MEM_SLOTS
        assert frontend.queue_count == 2
        assert int.from_bytes(frontend.config(0, 8), "little") == MiB // 512
        assert frontend.config(20, 4) == frontend.config(0, 60)[20:24]
        assert frontend.max_memory_slots >= 8
        assert frontend.config_change_fd is not None
        set_up(frontend, 1, 128)
        assert frontend.stop_queue(1) == 0
