"""The two ends of the port to dom0, here over a socket."""

from __future__ import annotations

import io
import os
import select
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirt.errors import LabError
from xenvirt.lab import agent
from xenvirt.lab.agent import Agent, Lines
from xenvirt.lab.channel import Channel


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    """A channel to an agent that runs in a thread, as if it were in dom0."""
    monkeypatch.setattr(agent, "LAB", tmp_path)
    monkeypatch.setattr(agent, "_PACKAGES", tmp_path / "packages")
    with tarfile.open(tmp_path / "package", "w") as tar:
        tar.addfile(tarfile.TarInfo("module.py"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "port"))
        listener.listen()

        def serve() -> None:
            port, _ = listener.accept()
            with port:
                port.setblocking(False)
                Agent(port.fileno(), once=True).serve()

        thread = threading.Thread(target=serve)
        thread.start()
        made = Channel(tmp_path / "port", lambda: None, timeout=60)
        yield made
        made.close()
        thread.join()


@pytest.fixture
def run(channel: Channel, tmp_path: Path) -> Callable[..., tuple[int, bytes, bytes]]:
    """Runs a command; gives its status and what it wrote to its two streams."""

    def outcome(*argv: str) -> tuple[int, bytes, bytes]:
        stdout, stderr = io.BytesIO(), io.BytesIO()
        status = channel.run(
            argv,
            package="package",
            cwd=str(tmp_path),
            env={"WORD": "hello"},
            stdout=stdout,
            stderr=stderr,
            timeout=60,
        )
        return status, stdout.getvalue(), stderr.getvalue()

    return outcome


def test_a_command_gives_status_streams_and_sees_its_environment(
    run: Callable[..., tuple[int, bytes, bytes]], tmp_path: Path
) -> None:
    script = "pwd; echo $WORD $PYTHONPATH >&2; exit 3"
    said = f"hello {tmp_path}/packages/package\n".encode()
    assert run("sh", "-c", script) == (3, os.fsencode(tmp_path) + b"\n", said)
    assert (tmp_path / "packages" / "package" / "module.py").exists()


def test_much_output_arrives_whole_before_the_status(run: Callable[..., tuple[int, bytes, bytes]]) -> None:
    status, stdout, _ = run("head", "-c", "3000000", "/dev/zero")
    assert (status, stdout) == (0, bytes(3_000_000))


def test_a_child_that_keeps_the_streams_does_not_keep_the_command(
    run: Callable[..., tuple[int, bytes, bytes]],
) -> None:
    status, stdout, _ = run("sh", "-c", "sleep 1000 & echo $!")
    os.kill(int(stdout), 9)
    assert status == 0


def test_commands_follow_each_other(run: Callable[..., tuple[int, bytes, bytes]]) -> None:
    assert [run("false")[0], run("nonesuch")[0], run("/")[0], run("true")[0]] == [1, 127, 126, 0]


def test_a_command_ends_with_its_client(channel: Channel, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="dom0 took too long"):
        channel.run(
            ["sh", "-c", "echo $$ > pid; exec sleep 1000"],
            package="package",
            cwd=str(tmp_path),
            env={},
            stdout=io.BytesIO(),
            stderr=io.BytesIO(),
            timeout=5,  # in which the shell has to have begun
        )
    end = os.pidfd_open(int((tmp_path / "pid").read_text()))
    channel.close()
    assert select.select([end], [], [], 60)[0]
    os.close(end)


def test_a_client_ends_the_command_of_one_that_went_away_unseen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(agent, "unpack", lambda _: tmp_path)
    ours, port = socket.socketpair()
    with ours, port, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "port"))
        listener.listen()
        port.setblocking(False)
        served = threading.Thread(target=Agent(port.fileno(), once=True).serve)
        served.start()
        clients = threading.Thread(target=pass_on, args=(listener, ours, 2))
        clients.start()

        first = Channel(tmp_path / "port", lambda: None, timeout=60)
        command = ["sh", "-c", "echo $$ > pid; exec sleep 1000"]
        first._send(Lines.message("run", id=1, argv=command, cwd=str(tmp_path), env={}, package="package"))
        while not (tmp_path / "pid").exists() or not (text := (tmp_path / "pid").read_text()):
            pass
        running = os.pidfd_open(int(text))
        first.close()
        second = Channel(tmp_path / "port", lambda: None, timeout=60)
        assert select.select([running], [], [], 0)[0]
        os.close(running)
        second.halt()
        served.join()
        second.close()
        clients.join()


def pass_on(listener: socket.socket, port: socket.socket, clients: int) -> None:
    """Lets one client after the other speak to the port, which does not see that they change."""
    for _ in range(clients):
        client, _ = listener.accept()
        with client:
            while True:
                ready, _, _ = select.select([client, port], [], [])
                if port in ready:
                    client.sendall(port.recv(1 << 16))
                if client in ready:
                    if not (data := client.recv(1 << 16)):
                        break
                    port.sendall(data)


def test_lines_are_put_together_and_what_is_no_message_is_left_out() -> None:
    lines = Lines()
    whole = b'e": 1}\n' + Lines.message("a", n=1) + b"[1]\n" + Lines.message("b")
    assert [message for byte in whole for message in lines.feed(bytes([byte]))] == [
        {"kind": "a", "n": 1},
        {"kind": "b"},
    ]
