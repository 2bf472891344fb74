"""Where devices are served, and how serving ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xenvirt import Device, Server, VhostUserSocket, connect, serve

from .conftest import echo, started
from .devices import AsyncEcho, Echo

SERVE = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.server.devices import Echo
from xenvirt import VhostUserSocket, serve
device = Echo()
serve(device, VhostUserSocket(sys.argv[1]), ready_fd=1)
print(*device.happened)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_serve_cleanly(number: signal.Signals, path: str) -> None:
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, path, root], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"  # ready
        with started(path) as link:
            assert echo(link) == b"hello"
            process.send_signal(number)
            assert process.stdout.read() == "activate reset\n"
        assert process.wait(10) == 0
    assert not Path(path).exists()


def test_serve_gives_the_signal_handlers_back(path: str) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    serve(Echo(), VhostUserSocket(path))
    timer.join()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_serve_on_another_thread_leaves_the_signals_alone(path: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    read, write = os.pipe()
    server = Server()
    with server:
        server.add(Echo(), VhostUserSocket(path))
        waiting = threading.Thread(target=server.wait)
        waiting.start()
        assert signal.getsignal(signal.SIGINT) == before
        server.stop()
        waiting.join(10)
        assert not waiting.is_alive()
    os.close(read)
    os.close(write)


def test_wait_gives_up_after_its_timeout(server: Server) -> None:
    assert server.wait(timeout=0.01) is False
    server.stop()
    assert server.wait(timeout=0.01) is True


def test_readiness_is_told_to_a_service_manager(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        serve(Echo(), VhostUserSocket(path))
        assert manager.recv(100) == b"READY=1"


def test_the_socket_has_the_mode_and_owner_asked_for(server: Server, path: str) -> None:
    server.add(Echo(), VhostUserSocket(path, mode=0o640, owner=(os.getuid(), os.getgid())))
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640


def test_a_stale_socket_is_replaced(server: Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(path)
    server.add(Echo(), VhostUserSocket(path))
    with started(path) as link:
        assert echo(link) == b"hello"


def test_a_socket_that_is_served_already_is_left_alone(server: Server, path: str) -> None:
    server.add(Echo(), VhostUserSocket(path))
    device = Echo()
    with pytest.raises(OSError, match="somebody listens there"):
        server.add(device, VhostUserSocket(path))
    server.add(device, VhostUserSocket(path + "2"))  # it is free to be served elsewhere
    for each in (path, path + "2"):
        with started(each) as link:
            assert echo(link) == b"hello"


def test_a_file_in_the_way_is_left_alone(server: Server, path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(FileExistsError, match="something else than a socket"):
        server.add(Echo(), VhostUserSocket(path))
    assert Path(path).read_text() == "precious"


def test_an_inherited_listening_socket_is_served(server: Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        server.add(Echo(), VhostUserSocket.from_fd(listener.fileno()))
        for _ in range(2):
            with started(path) as link:
                assert echo(link) == b"hello"
    assert Path(path).exists()  # it is not ours


def test_an_inherited_connection_is_served(server: Server) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        device = Echo()
        server.add(device, VhostUserSocket.from_fd(theirs.fileno()))
    from xenvirt import Frontend, _native  # the way of who has a socket and no path

    with ours:
        protocol = _native.Frontend.from_fd(ours.fileno(), timeout=10.0)
    with Frontend(protocol, 10.0) as link:
        link.start(link.offered_features, [16])
        assert echo(link) == b"hello"


def test_something_else_than_a_socket_is_refused() -> None:
    with Path("/dev/null").open() as file, pytest.raises(ValueError, match="is not a socket"):
        VhostUserSocket.from_fd(file.fileno())
    with socket.socket(socket.AF_INET) as tcp, pytest.raises(ValueError, match="wants a Unix stream socket"):
        VhostUserSocket.from_fd(tcp.fileno())


def test_a_device_that_connects_finds_the_frontend_again(server: Server, path: str) -> None:
    """QEMU's `-chardev socket,server=on`: the frontend listens."""
    from xenvirt import Frontend, _native

    server.add(Echo(), VhostUserSocket(path, connect=True))  # nobody is there yet
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(10)
        for _ in range(2):
            connection, _address = listener.accept()
            with connection:
                protocol = _native.Frontend.from_fd(connection.fileno(), timeout=10.0)
            with Frontend(protocol, 10.0) as link:
                link.start(link.offered_features, [16])
                assert echo(link) == b"hello"


def test_a_device_is_served_once_at_a_time(server: Server, path: str) -> None:
    device = Echo()
    server.add(device, VhostUserSocket(path))
    with pytest.raises(ValueError, match="is being served already"):
        connect(device)


@pytest.mark.parametrize("sizes", [(), (3,), (0,), (65536,), (16,) * 257])
def test_impossible_queues_are_refused(sizes: tuple[int, ...], server: Server, path: str) -> None:
    device = Echo()
    device.queue_sizes = sizes
    with pytest.raises(ValueError, match="queue_sizes"):
        server.add(device, VhostUserSocket(path))
    assert not Path(path).exists()


def test_an_async_device_is_sent_to_serve_async(server: Server, path: str) -> None:
    device: Device = AsyncEcho()  # type: ignore[assignment]  # what a program without types does
    with pytest.raises(TypeError, match="serve it with serve_async"):
        server.add(device, VhostUserSocket(path))
    with pytest.raises(TypeError, match="connect_async"):
        connect(device)


def test_a_stopped_server_takes_nothing_more(path: str) -> None:
    server = Server()
    server.close()
    with pytest.raises(ValueError, match="was stopped"):
        server.add(Echo(), VhostUserSocket(path))
