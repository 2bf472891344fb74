"""``xenvirt inspect`` tells what a backend offers, what it does not tell, and where it stopped answering."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt import Server, VhostUserSocket, connect
from xenvirt.cli import main
from xenvirt.devices import BlockDevice, EntropyDevice
from xenvirt.drivers import EntropyDriver
from xenvirt.errors import DisconnectedError
from xenvirt.vhost_user import Inspection, ProtocolFeature, inspect
from xenvirt.virtio import DeviceId, Feature
from xenvirt.virtio.block import BlockConfig, BlockFeature
from xenvirt.virtio.features import DeviceStatus

from ..vhost_user.fake_backend import (
    CONFIG,
    GET_CONFIG,
    GET_FEATURES,
    GET_MAX_MEM_SLOTS,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_STATUS,
    MQ,
    PROTOCOL_FEATURES,
    REPLY_ACK,
    SET_BACKEND_REQ_FD,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_PROTOCOL_FEATURES,
    STATUS,
    VERSION_1,
    XEN_MMAP,
    FakeBackend,
    number_reply,
    reply,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def disk(tmp_path: Path, path: Path) -> Iterator[Path]:
    """Our block device with two queues, served."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with BlockDevice(image, queues=2) as device, Server() as server:
        server.add(device, VhostUserSocket(path))
        yield path


def asked(backend: FakeBackend) -> set[int]:
    return {message.request for message in backend.received}


def test_our_block_device_is_told_with_its_configuration(disk: Path) -> None:
    found = inspect(disk, DeviceId.BLOCK)
    assert found.failure is None
    assert {"FLUSH", "MQ", "EVENT_IDX", "PROTOCOL_FEATURES", "VERSION_1"} <= set(found.feature_names)
    assert {"MQ", "CONFIG", "STATUS"} <= set(found.protocol_feature_names)
    assert found.queues == 2
    assert found.memory_slots is not None
    assert found.memory_slots >= 8
    assert found.status == DeviceStatus(0)
    assert isinstance(found.config_space, BlockConfig)
    assert found.config_fields["capacity"] == 2048
    assert found.config_fields["num_queues"] == 2
    assert set(found.untold) == {"device type", "ring sizes"}


def test_without_a_device_type_its_features_are_numbers_and_its_configuration_is_not_asked_for(
    disk: Path,
) -> None:
    found = inspect(disk)
    assert found.features is not None
    assert found.features & BlockFeature.FLUSH
    assert "bit 9" in found.feature_names
    assert "VERSION_1" in found.feature_names
    assert found.config is None
    assert "which was not given" in found.untold["configuration space"]
    assert not any("GET_CONFIG" in line for line in found.wire_log)


def test_the_backend_serves_on(path: Path) -> None:
    with Server() as server:
        server.add(EntropyDevice(), VhostUserSocket(path))
        for _ in range(3):
            assert inspect(path, DeviceId.ENTROPY).queues == 1
        with connect(path) as link, EntropyDriver(link) as rng:
            assert len(rng.read(8)) == 8


def test_the_text_has_a_line_for_each_part(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(disk), "--device=blk"]) == 0
    text = capsys.readouterr().out
    lines = {line[:21].strip(): line[21:] for line in text.splitlines()}
    assert lines["device type"] == "untold: vhost-user does not tell it; taken to be BLOCK, as you say"
    assert lines["queues"] == "2"
    assert lines["ring sizes"].startswith("untold: vhost-user does not tell them")
    assert lines["status"] == "0: reset"
    assert lines["capacity"] == "2048"
    assert "size_max" not in lines  # its feature is not offered, so it does not count


def test_json_has_the_same(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(disk), "--device=block", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device_type"] == "BLOCK"
    assert "FLUSH" in found["features"]["names"]
    assert int(found["features"]["bits"], 16) & Feature.VERSION_1
    assert (found["queues"], found["ring_sizes"], found["status"]) == (2, None, 0)
    assert found["config"]["fields"]["capacity"] == 2048
    assert BlockConfig.from_bytes(bytes.fromhex(found["config"]["bytes"])).capacity == 2048
    assert set(found["untold"]) == {"device type", "ring sizes"}
    assert found["failure"] is None


def test_what_was_said_is_shown_on_request(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(disk), "--log"]) == 0
    assert "-> GET_PROTOCOL_FEATURES" in capsys.readouterr().err


def test_nothing_is_asked_that_is_not_offered_and_nothing_is_set_up(path: Path) -> None:
    with FakeBackend(path, protocol_features=0) as backend:
        found = inspect(path, DeviceId.CONSOLE)
        assert found.failure is None
        assert (found.queues, found.config, found.status, found.memory_slots) == (None, None, None, None)
        assert found.untold["queues"] == "the backend does not offer MQ"
        assert found.untold["configuration space"] == "the backend does not offer CONFIG"
        assert not asked(backend) & {GET_QUEUE_NUM, GET_CONFIG, GET_STATUS, SET_MEM_TABLE, SET_FEATURES}


def test_a_backend_without_protocol_features_is_not_asked_for_them(path: Path) -> None:
    with FakeBackend(path, features=VERSION_1) as backend:
        found = inspect(path)
        assert (found.features, found.protocol_features, found.failure) == (VERSION_1, 0, None)
        assert GET_PROTOCOL_FEATURES not in asked(backend)


def test_only_what_something_is_asked_with_is_agreed_on(path: Path) -> None:
    slots = {GET_MAX_MEM_SLOTS: lambda message: number_reply(message, 8)}
    with FakeBackend(path, protocol_features=(1 << 23) - 1, reactions=slots) as backend:
        found = inspect(path)
        assert (found.protocol_features, found.memory_slots) == ((1 << 23) - 1, 8)
        (message,) = backend.of(SET_PROTOCOL_FEATURES)
        assert not message.number & ProtocolFeature.BACKEND_REQ
        assert SET_BACKEND_REQ_FD not in asked(backend)


def test_unknown_bits_are_numbers(path: Path) -> None:
    features = PROTOCOL_FEATURES | VERSION_1 | 1 << 3 | 1 << 60
    with FakeBackend(path, features=features, protocol_features=MQ | 1 << 45):
        found = inspect(path, DeviceId.ENTROPY)
        assert found.feature_names == ["bit 3", "PROTOCOL_FEATURES", "VERSION_1", "bit 60"]
        assert found.protocol_feature_names == ["MQ", "bit 45"]


def test_a_daemon_built_for_xen_gets_its_xen_mmap(path: Path) -> None:
    with FakeBackend(path, protocol_features=MQ | XEN_MMAP) as backend:
        assert inspect(path).failure is None
        (message,) = backend.of(SET_PROTOCOL_FEATURES)
        assert message.number == MQ | XEN_MMAP


def test_the_status_is_asked_where_it_can_be(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeBackend(path, protocol_features=STATUS):
        assert main(["inspect", str(path)]) == 0
    assert "0xf: ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "features", "length"),
    [
        (DeviceId.BLOCK, 0, 8),
        (DeviceId.BLOCK, BlockFeature.WRITE_ZEROES, 60),
        (DeviceId.CONSOLE, 1 << 1, 8),
        (DeviceId.VSOCK, 0, 8),
        (DeviceId.SPI, 0, 32),
    ],
)
def test_the_configuration_is_asked_for_no_further_than_the_features_speak_of_it(
    path: Path, device: DeviceId, features: int, length: int
) -> None:
    with FakeBackend(path, features=PROTOCOL_FEATURES | VERSION_1 | features, config=bytes(256)) as backend:
        found = inspect(path, device)
        assert found.config == bytes(length)
        (message,) = backend.of(GET_CONFIG)
        assert int.from_bytes(message.payload[4:8], "little") == length


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (DeviceId.CONSOLE, "without the features that it has fields for it is empty"),
        (DeviceId.ENTROPY, "ENTROPY has none that is known here"),
    ],
)
def test_a_configuration_that_has_nothing_to_tell_is_not_asked_for(
    path: Path, device: DeviceId, why: str
) -> None:
    with FakeBackend(path) as backend:
        assert why in inspect(path, device).untold["configuration space"]
        assert GET_CONFIG not in asked(backend)


def test_a_length_of_ones_own_is_asked_for_whatever_the_type(path: Path) -> None:
    with FakeBackend(path, config=b"somebody's own") as backend:
        found = inspect(path, config_size=14)
        assert (found.config, found.config_space, found.config_fields) == (b"somebody's own", None, {})
        assert len(backend.of(GET_CONFIG)) == 1


def test_a_refused_configuration_is_no_failure(path: Path) -> None:
    refuse = {GET_CONFIG: lambda message: reply(message, bytes(12))}
    with FakeBackend(path, reactions=refuse):
        found = inspect(path, DeviceId.VSOCK)
    assert found.failure is None
    assert "refused GET_CONFIG" in found.untold["configuration space"]


@pytest.mark.parametrize(
    ("request_number", "known", "unknown"),
    [
        (GET_FEATURES, set(), {"features", "protocol features", "queues", "status"}),
        (GET_PROTOCOL_FEATURES, {"features"}, {"protocol features", "queues", "status"}),
        (GET_QUEUE_NUM, {"features", "protocol_features"}, {"queues", "status"}),
        (GET_STATUS, {"features", "protocol_features", "queues"}, {"status", "configuration space"}),
        (GET_CONFIG, {"features", "protocol_features", "queues", "status"}, {"configuration space"}),
    ],
)
def test_a_backend_that_hangs_up_is_told_as_far_as_it_answered(
    path: Path,
    request_number: int,
    known: set[str],
    unknown: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    offered = MQ | REPLY_ACK | CONFIG | STATUS
    with FakeBackend(path, protocol_features=offered, hang_up_on=request_number):
        found = inspect(path, DeviceId.VSOCK)
    assert found.failure is not None
    assert "closed the connection" in found.failure
    for name in known:
        assert getattr(found, name) is not None, name
    assert unknown <= set(found.untold)
    assert not {name.replace("_", " ") for name in known} & set(found.untold)
    path.unlink()
    with FakeBackend(path, protocol_features=offered, hang_up_on=request_number):
        assert main(["inspect", str(path), "--device=vsock"]) == 1
    printed = capsys.readouterr()
    assert "queues" in printed.out
    assert "xenvirt inspect: the peer closed the connection" in printed.err


def test_a_backend_that_is_silent_does_not_keep_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeBackend(path, reactions={GET_FEATURES: lambda _: b""}):
        assert main(["inspect", str(path), "--timeout=0.1"]) == 1
    error = capsys.readouterr().err
    assert "no answer to GET_FEATURES" in error
    assert "does it serve another client at the moment?" in error


def test_an_answer_that_breaks_the_protocol_is_a_failure(path: Path) -> None:
    nonsense = {GET_QUEUE_NUM: lambda message: reply(message, b"123")}
    with FakeBackend(path, reactions=nonsense):
        found = inspect(path)
    assert found.failure is not None
    assert "GET_QUEUE_NUM" in found.failure
    assert found.features == PROTOCOL_FEATURES | VERSION_1


def test_a_socket_that_appears_while_one_waits_is_asked(path: Path) -> None:
    """rust-vmm's daemons take their socket away while they serve somebody."""
    found: list[Inspection] = []
    waiting = threading.Thread(target=lambda: found.append(inspect(path, timeout=30.0)))
    waiting.start()
    with FakeBackend(path, reactions={GET_QUEUE_NUM: lambda message: number_reply(message, 7)}):
        waiting.join()
    assert found[0].queues == 7


def test_nobody_at_the_socket_is_one_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DisconnectedError, match="cannot connect"):
        inspect(path, timeout=0.05)
    assert main(["inspect", str(path), "--timeout=0.05"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xenvirt inspect: cannot connect to {path}")
    assert line.endswith("while it serves another client")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device=toaster"], "'toaster' is none of net, block, console"),
        (["--config-size=many"], "'many' is not a number"),
        (["--config-size=0"], "0 is not between 1 and 256"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", "/tmp/s", *arguments])  # noqa: S108 - nothing is opened
    assert message in capsys.readouterr().err
