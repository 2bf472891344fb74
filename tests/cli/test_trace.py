"""``xenvirt trace`` as a user starts it: between a driver and a daemon, both other processes' or ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from xenvirt import RelayCounters, Server, VhostUserSocket, connect
from xenvirt.cli import main
from xenvirt.devices import BlockDevice
from xenvirt.drivers import BlockDriver
from xenvirt.errors import DisconnectedError

from .tracer import Tracer

REQUESTS = 25


@pytest.fixture
def tracer(tmp_path: Path) -> Iterator[Callable[..., Tracer]]:
    """Traces what goes to a disk of ours: `tracer("--json")`."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    started: list[Tracer] = []

    def start(*options: str) -> Tracer:
        started.append(Tracer(tmp_path / "daemon.sock", tmp_path / "traced.sock", *options))
        return started[-1]

    with BlockDevice(image) as disk, Server() as server:
        server.add(disk, VhostUserSocket(tmp_path / "daemon.sock"), poll=0)
        yield start
        for each in started:
            each.kill()


def write_some(socket: str) -> None:
    """One request after the other, each kicked for."""
    with connect(socket) as link, BlockDriver(link) as disk:
        for number in range(REQUESTS):
            disk.write(number * 512, bytes(512))


def test_text_has_each_message_and_the_counters(tracer: Callable[..., Tracer]) -> None:
    tracing = tracer("--count")
    write_some(tracing.socket)
    out, log = tracing.end()
    lines = out.splitlines()
    said = [line.split(maxsplit=1)[1] for line in lines[:-2]]
    assert said[0] == "-> SET_OWNER"
    assert "-> GET_FEATURES" in said
    assert any(line.startswith("-> SET_MEM_TABLE 1 regions; guest 0x40000000") for line in said)
    assert any(line.startswith("<- GET_CONFIG: at 0 ") for line in said)
    assert lines[-2].split() == ["queue", *RelayCounters._fields]
    queue, kicks, chains, calls, errors = map(int, lines[-1].split())
    assert (queue, kicks, chains, errors) == (0, REQUESTS, REQUESTS, 0)
    assert calls == REQUESTS
    assert "listening on" in log
    assert "a frontend is connected" in log


def test_json_has_an_object_a_line(tracer: Callable[..., Tracer]) -> None:
    tracing = tracer("--json", "--count")
    write_some(tracing.socket)
    *messages, last = map(json.loads, tracing.end()[0].splitlines())
    features = [message for message in messages if message["request"] == "GET_FEATURES"]
    assert [(message["from"], message["reply"]) for message in features[:2]] == [
        ("frontend", False),
        ("daemon", True),
    ]
    assert len(bytes.fromhex(features[1]["payload"])) == 8
    assert last["counters"][0] | {"calls": 0} == {
        "queue": 0,
        "kicks": REQUESTS,
        "chains": REQUESTS,
        "calls": 0,
        "errors": 0,
    }


def test_nothing_is_counted_that_was_not_asked_for(tracer: Callable[..., Tracer]) -> None:
    tracing = tracer("--json")
    write_some(tracing.socket)
    messages = [json.loads(line) for line in tracing.end()[0].splitlines()]
    assert all("request" in message for message in messages)


def test_perfettos_trace_has_slices_signals_and_counters(
    tracer: Callable[..., Tracer], tmp_path: Path
) -> None:
    file = tmp_path / "trace.json"
    tracing = tracer("--count", "--perfetto", str(file))
    write_some(tracing.socket)
    tracing.end()
    events = json.loads(file.read_text())
    # Chrome's trace event format: each event has a phase, a process, a thread and a time in microseconds.
    assert all({"ph", "pid", "tid", "ts", "name"} <= event.keys() for event in events)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(names.values()) == {"main channel", "reverse channel", "queue 0"}
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["args"]["answer"] for event in slices)
    assert {"GET_FEATURES", "GET_CONFIG", "SET_MEM_TABLE"} <= {event["name"] for event in slices}
    ends = [(event["ts"], event["ts"] + event["dur"]) for event in slices if names[event["tid"]][0] == "m"]
    assert all(end <= begin + 0.01 for (_, end), (begin, _) in pairwise(ends))
    kicks = [event for event in events if event["ph"] == "i" and event["name"] == "kick"]
    assert sum(event["args"]["times"] for event in kicks) == REQUESTS
    chains = [event["args"]["chains"] for event in events if event["ph"] == "C"]
    assert chains == sorted(chains)
    assert chains[-1] == REQUESTS


def test_a_daemon_that_is_not_there_is_told(tmp_path: Path) -> None:
    tracing = Tracer(tmp_path / "daemon.sock", tmp_path / "traced.sock", "--timeout=0.05")
    with pytest.raises(DisconnectedError):
        connect(tracing.socket)
    log = tracing.end()[1]
    assert "the daemon is not there: cannot connect to" in log
    assert str(tmp_path / "daemon.sock") in log


def test_the_daemons_own_socket_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    socket = str(tmp_path / "daemon.sock")
    assert main(["trace", socket, "--listen", socket]) == 1
    assert "listen somewhere else" in capsys.readouterr().err
