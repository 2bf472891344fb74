"""Other people's daemons as devices: through the relay, and behind a transport that speaks no vhost-user."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.sharing_link import linked
from xenvirt import Daemon, DeviceId, RemoteDevice, Server, VhostUserSocket, connect
from xenvirt.drivers import BlockDriver, EntropyDriver
from xenvirt.errors import NegotiationError
from xenvirt.xen.remote import need_xen_mmap

from . import crates
from .crates import Crate
from .workloads import MiB, new_image


def test_rust_vmms_entropy_comes_through_the_relay_again_and_again(
    daemon_program: Callable[[Crate], Path], tmp_path: Path
) -> None:
    socket = tmp_path / "relayed.sock"
    with (
        Daemon(daemon_program(crates.RNG), "--socket-path={socket}", socket_suffix="0") as daemon,
        Server() as server,
    ):
        relayed = server.add(RemoteDevice(daemon.socket, count=True), VhostUserSocket(socket))
        # It takes its socket away while it serves, and the next frontend has to wait for it.
        for number in range(1, 4):
            with connect(socket) as link, EntropyDriver(link) as rng:
                assert len(rng.read(64)) == 64
            assert relayed.counters.kicks >= number


def test_qemus_storage_daemon_keeps_what_is_written_through_the_relay(
    storage_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    image, socket = new_image(tmp_path / "disk", 4 * MiB), tmp_path / "relayed.sock"
    written = os.urandom(MiB)
    with Server() as server:
        server.add(RemoteDevice(storage_daemon(image).socket), VhostUserSocket(socket))
        with connect(socket) as link, BlockDriver(link) as disk:
            disk.write(0, written)
            disk.flush()
            assert disk.read(0, MiB) == written
    assert image.read_bytes()[:MiB] == written


def test_qemus_storage_daemon_is_a_device_of_any_transport(
    storage_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    image = new_image(tmp_path / "disk", 4 * MiB)
    written = os.urandom(MiB)
    with linked(storage_daemon(image).socket, DeviceId.BLOCK) as link, BlockDriver(link) as disk:
        assert disk.capacity == 4 * MiB // 512
        disk.write(0, written)
        disk.flush()
        assert disk.read(0, MiB) == written
    assert image.read_bytes()[:MiB] == written


def test_a_daemon_for_xen_is_taken_for_a_guest_and_another_is_refused(
    daemon_program: Callable[[Crate], Path],
) -> None:
    for crate in (crates.RNG, crates.RNG_XEN):
        with Daemon(daemon_program(crate), "--socket-path={socket}", socket_suffix="0") as daemon:
            if crate is crates.RNG:
                with pytest.raises(NegotiationError, match="--features xen"):
                    linked(daemon.socket, DeviceId.ENTROPY, check=need_xen_mmap)
                continue
            # Without Xen: memory of flags 0 is a file to it.
            with (
                linked(daemon.socket, DeviceId.ENTROPY, check=need_xen_mmap) as link,
                EntropyDriver(link) as rng,
            ):
                assert len(rng.read(64)) == 64
