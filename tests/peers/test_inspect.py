"""``inspect`` finds of other people's backends what is known of them, and they serve on afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from xenvirt import Daemon, connect
from xenvirt.drivers import BlockDriver
from xenvirt.vhost_user import inspect
from xenvirt.virtio import DeviceId

from . import crates, rust_vmm
from .buses import I2cMemory, Keyboard, SpiInverter
from .conftest import need
from .hardware import Hardware
from .workloads import MiB, new_image

ALL = {"EVENT_IDX", "PROTOCOL_FEATURES", "VERSION_1"}
COMMON = ALL | {"INDIRECT_DESC", "NOTIFY_ON_EMPTY"}
ACKING = {"MQ", "REPLY_ACK", "CONFIG"}


@dataclass(frozen=True)
class Surroundings:
    """What a daemon may want of the host."""

    hardware: Callable[..., Hardware]
    image: Path
    port: int


@dataclass(frozen=True)
class Known:
    """A daemon, and what it is known to offer."""

    device: DeviceId
    start: Callable[[Surroundings], Daemon]
    features: set[str]
    protocol_features: set[str]
    queues: int
    config: Mapping[str, object] = field(default_factory=dict)
    quits: bool = False
    """It ends when its first client goes."""


def _can(around: Surroundings) -> Daemon:
    return rust_vmm.can(around.hardware())[0]


def _input(around: Surroundings) -> Daemon:
    return rust_vmm.input_device(around.hardware(Keyboard([30, 48])))[0]


def _spi(around: Surroundings) -> Daemon:
    return rust_vmm.spi(around.hardware(SpiInverter()))


def _i2c(around: Surroundings) -> Daemon:
    return rust_vmm.i2c(around.hardware(I2cMemory(0x20)), address=0x20)


def _console(crate: crates.Crate) -> Callable[[Surroundings], Daemon]:
    return lambda around: rust_vmm.console(crate, tcp_port=around.port)


def _consoles(crate: crates.Crate, protocol_features: set[str]) -> Known:
    features, config = COMMON | {"MULTIPORT"}, {"max_nr_ports": 1}
    return Known(DeviceId.CONSOLE, _console(crate), features, protocol_features, 4, config)


def _vsock(crate: crates.Crate, protocol_features: set[str]) -> Known:
    features = ALL | {"NOTIFY_ON_EMPTY"}
    start = lambda _: rust_vmm.vsock(crate)  # noqa: E731
    return Known(DeviceId.VSOCK, start, features, protocol_features, 3, {"guest_cid": 3})


KNOWN = {
    "rng": Known(DeviceId.ENTROPY, lambda _: rust_vmm.rng(), COMMON, {"MQ"}, 1),
    "rng-xen": Known(DeviceId.ENTROPY, lambda _: rust_vmm.rng(crates.RNG_XEN), COMMON, {"MQ", "XEN_MMAP"}, 1),
    "i2c": Known(DeviceId.I2C, _i2c, COMMON | {"ZERO_LENGTH_REQUEST"}, {"MQ"}, 1),
    "vsock": _vsock(crates.VSOCK, ACKING),
    "vsock-xen": _vsock(crates.VSOCK_XEN, ACKING | {"XEN_MMAP"}),
    "console": _consoles(crates.CONSOLE, ACKING),
    "console-xen": _consoles(crates.CONSOLE_XEN, ACKING | {"XEN_MMAP"}),
    "sound": Known(
        DeviceId.SOUND,
        lambda _: rust_vmm.sound(),
        COMMON,
        ACKING,
        4,
        {"jacks": 0, "streams": 2, "chmaps": 1},
    ),
    "spi": Known(
        DeviceId.SPI, _spi, COMMON, ACKING, 1, {"cs_max_number": 1, "max_freq_hz": SpiInverter.max_speed}
    ),
    "can": Known(DeviceId.CAN, _can, COMMON | {"CAN_CLASSIC", "CAN_FD"}, ACKING, 3, {"status": 0}),
    "scsi": Known(
        DeviceId.SCSI,
        lambda around: rust_vmm.scsi(around.image, read_only=True),
        ALL | {"INDIRECT_DESC", "HOTPLUG"},
        {"MQ", "CONFIG"},
        3,
        {"num_queues": 1, "sense_size": 96, "cdb_size": 32},
        quits=True,
    ),
    "input": Known(
        DeviceId.INPUT, _input, ALL | {"INDIRECT_DESC"}, {"MQ", "CONFIG"}, 2, {"select": 0, "length": 0}
    ),
}


@pytest.fixture
def around(hardware: Callable[..., Hardware], tmp_path: Path, tcp_port: int) -> Surroundings:
    return Surroundings(hardware, new_image(tmp_path / "disk", MiB), tcp_port)


@pytest.fixture(params=KNOWN)
def known(request: pytest.FixtureRequest) -> Known:
    for crate in crates.CRATES:
        need(crate.program.exists(), f"{crate.name} {crate.version}")
    name = request.param
    assert isinstance(name, str)
    return KNOWN[name]


@pytest.fixture
def daemon(known: Known, around: Surroundings) -> Iterator[Daemon]:
    with known.start(around) as daemon:
        yield daemon


def test_a_daemon_of_rust_vmm_is_found_to_offer_what_is_known_of_it_and_serves_on(
    known: Known, daemon: Daemon
) -> None:
    for _ in range(1 if known.quits else 3):
        found = inspect(daemon.socket, known.device, timeout=20.0)
        assert found.failure is None, found.wire_log
        assert set(found.feature_names) == known.features
        assert set(found.protocol_feature_names) == known.protocol_features
        assert found.queues == known.queues
        assert {name: found.config_fields.get(name) for name in known.config} == known.config
        assert found.untold["memory slots"] == "the backend does not offer CONFIGURE_MEM_SLOTS"
        assert found.untold["status"] == "the backend does not offer STATUS"
        if "CONFIG" not in known.protocol_features:
            assert found.untold["configuration space"] == "the backend does not offer CONFIG"
    if known.quits:
        daemon.wait()


def test_the_command_tells_of_qemus_storage_daemon(
    storage_daemon: Callable[..., Daemon], around: Surroundings
) -> None:
    backend = storage_daemon(around.image, queues=2)
    command = [sys.executable, "-m", "xenvirt", "inspect", backend.socket, "--device", "block"]
    for _ in range(2):
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        lines = {line[:21].strip(): line[21:] for line in said.splitlines()}
        assert lines["queues"] == "2"
        assert lines["capacity"] == str(MiB // 512)
        assert lines["memory slots"].isdigit()
        assert lines["status"] == "untold: the backend does not offer STATUS"
    found = inspect(backend.socket, DeviceId.BLOCK)
    assert {"SEG_MAX", "BLK_SIZE", "TOPOLOGY", "MQ", "DISCARD", "WRITE_ZEROES"} <= set(found.feature_names)
    assert {"BACKEND_REQ", "CONFIGURE_MEM_SLOTS", *ACKING} <= set(found.protocol_feature_names)
    assert found.config_fields["num_queues"] == 2


def test_a_client_that_is_being_served_is_not_disturbed(
    storage_daemon: Callable[..., Daemon], around: Surroundings
) -> None:
    """One that listens on, and lets the next client wait without an answer."""
    backend = storage_daemon(around.image)
    with connect(backend.socket) as link, BlockDriver(link) as disk:
        found = inspect(backend.socket, timeout=0.2)
        assert found.failure is not None
        assert found.features is None
        assert disk.read(0, 512) == bytes(512)
