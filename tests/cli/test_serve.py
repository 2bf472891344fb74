"""``xenvirt serve`` as a user starts it: another process, a socket, a driver."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from xenvirt import Daemon, connect
from xenvirt.cli import main
from xenvirt.drivers import BlockDriver, ConsoleDriver, EntropyDriver, NetDriver
from xenvirt.errors import RequestFailedError

XENVIRT = (sys.executable, "-m", "xenvirt")


def xenvirt(*args: str) -> Daemon:
    return Daemon(XENVIRT[0], *XENVIRT[1:], *args)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(bytes(1 << 20))
    return made


def test_entropy_is_served() -> None:
    with (
        xenvirt("serve", "entropy", "--socket={socket}") as daemon,
        connect(daemon.socket) as link,
        EntropyDriver(link) as rng,
    ):
        assert len(rng.read(100)) == 100


@pytest.mark.parametrize("native", [(), ("--native",)])
def test_a_disk_is_served_with_its_options(image: Path, native: tuple[str, ...]) -> None:
    command = (
        "serve",
        "blk",
        str(image),
        "--socket={socket}",
        "--queues=3",
        "--serial=number-1",
        "--threads",
        *native,
    )
    with xenvirt(*command) as daemon, connect(daemon.socket) as link, BlockDriver(link) as disk:
        assert (disk.queues, disk.capacity, disk.get_id()) == (3, 2048, "number-1")
        for queue in range(3):
            disk.write(queue * 4096, b"queue %d" % queue, queue=queue)
    assert image.read_bytes()[8192:8199] == b"queue 2"


def test_a_read_only_disk_refuses_writes(image: Path) -> None:
    command = ("serve", "blk", str(image), "--socket={socket}", "--read-only")
    with xenvirt(*command) as daemon, connect(daemon.socket) as link, BlockDriver(link) as disk:
        assert disk.read_only
        with pytest.raises(RequestFailedError):
            disk.write(0, bytes(512))


def test_a_driver_that_comes_back_finds_the_device_again(image: Path) -> None:
    with xenvirt("serve", "blk", str(image), "--socket={socket}") as daemon:
        for number in range(3):
            with connect(daemon.socket) as link, BlockDriver(link) as disk:
                assert disk.read(0, 1) == bytes([number])
                disk.write(0, bytes([number + 1]))


def test_the_socket_has_the_mode_that_was_asked_for() -> None:
    mine = f"{os.getuid()}:{os.getgid()}"
    with xenvirt(
        "serve", "entropy", "--socket={socket}", "--socket-mode=600", f"--socket-owner={mine}"
    ) as daemon:
        assert Path(daemon.socket).stat().st_mode & 0o777 == 0o600


def test_a_console_is_served_at_a_pty() -> None:
    with (
        xenvirt("serve", "console", "--socket={socket}", "--pty") as daemon,
        connect(daemon.socket) as link,
        ConsoleDriver(link) as console,
    ):
        path = re.search(r"the console is (/dev/pts/\d+)", daemon.output())
        assert path
        terminal = os.open(path[1], os.O_RDWR | os.O_NOCTTY)
        try:
            console.write(b"login: ")
            assert os.read(terminal, 100) == b"login: "
            os.write(terminal, b"root\r")
            assert console.read_exactly(5) == b"root\r"
            assert console.next_size() == (80, 25)
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
            os.write(terminal, b"x")
            assert console.read() == b"x"
            assert console.next_size() == (100, 40)
        finally:
            os.close(terminal)


def test_a_console_is_served_at_standard_input_and_output(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [*XENVIRT, "serve", "console", f"--socket={path}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with connect(str(path)) as link, ConsoleDriver(link) as console:
            console.write(b"out")
            assert os.read(process.stdout.fileno(), 10) == b"out"
            os.write(process.stdin.fileno(), b"in")
            assert console.read() == b"in"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_terminal_is_left_by_ctrl_bracket_and_passes_its_size_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 70, 0, 0))
        before = termios.tcgetattr(slave)
        command = [*XENVIRT, "serve", "console", f"--socket={path}", "--stdio"]
        with (
            subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process,
            connect(str(path)) as link,
            ConsoleDriver(link) as console,
        ):
            assert console.next_size() == (70, 24)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 50, 90, 0, 0))
            process.send_signal(signal.SIGWINCH)  # it is not the terminal's foreground process here
            assert console.next_size() == (90, 50)
            os.write(master, b"\x03")
            assert console.read() == b"\x03"
            os.write(master, b"\x1d")
            assert process.wait(10) == 0
        assert b"Ctrl-] ends it" in os.read(master, 1000)
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_a_sink_says_what_it_counted() -> None:
    command = ("serve", "net", "--sink", "--socket={socket}", "--mac=52:54:00:00:00:09", "--poll=0.001")
    with xenvirt(*command) as daemon:
        with connect(daemon.socket) as link, NetDriver(link) as net:
            assert net.mac.hex(":") == "52:54:00:00:00:09"
            net.send_all([bytes(60)] * 500)
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.wait() == 0
        assert "500 frames, 30000 bytes" in daemon.output()


def test_a_pair_is_served_at_two_sockets(tmp_path: Path) -> None:
    second = tmp_path / "second"
    with (
        xenvirt("serve", "net", f"--pair={second}", "--socket={socket}", "--queues=2", "--threads") as daemon,
        connect(daemon.socket) as one_link,
        connect(str(second)) as other_link,
        NetDriver(one_link) as one,
        NetDriver(other_link) as other,
    ):
        assert one.mac != other.mac
        one.send(other.mac + one.mac + bytes(9000))
        assert other.receive() == other.mac + one.mac + bytes(9000)
        one.set_pairs(2)
        other.set_pairs(2)
        other.send(one.mac + other.mac + b"second pair", pair=1)
        assert one.receive(pair=1) == one.mac + other.mac + b"second pair"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with xenvirt("serve", "entropy", "--socket={socket}") as daemon:
        os.kill(daemon.pid, number)
        assert daemon.wait() == 0
        assert not Path(daemon.socket).exists()
        assert "Traceback" not in daemon.output()


def test_an_inherited_socket_is_served_and_readiness_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    ready, tell = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        fds = (listener.fileno(), tell)
        process = subprocess.Popen(
            [*XENVIRT, "serve", "entropy", f"--fd={fds[0]}", f"--ready-fd={tell}"], pass_fds=fds
        )
    os.close(tell)
    try:
        assert os.read(ready, 10) == b"\n"
        with connect(str(path)) as link, EntropyDriver(link) as rng:
            assert len(rng.read(10)) == 10
    finally:
        os.close(ready)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blk", "/no/such/image", "--socket=/tmp/x"], "xenvirt serve: .*No such file.*'/no/such/image'"),
        (
            ["blk", "/dev/null", "--socket=/tmp/x"],
            "xenvirt serve: /dev/null is neither a file nor a block device",
        ),
        (
            ["entropy", "--socket=/no/such/directory/s"],
            "xenvirt serve: .*cannot make the socket.*/no/such/directory/s",
        ),
        (["entropy", f"--socket=/tmp/{'x' * 120}"], "cannot make the socket: AF_UNIX path too long"),
        (["entropy", "--fd=0"], "xenvirt serve: descriptor 0 is not a"),
        (
            ["net", "--sink", "--mac=01:00:00:00:00:00", "--socket=/tmp/x"],
            "'01:00:00:00:00:00' is no address of an interface",
        ),
        (["net", "--tap=an-interface-name-that-is-too-long", "--socket=/tmp/x"], "cannot be an interface"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["entropy"], "one of the arguments --socket --fd is required"),
        (["entropy", "--socket=a", "--fd=3"], "not allowed with argument"),
        (["entropy", "--socket=a", "--poll=nan"], "nan is not between 0 and 60 seconds"),
        (["entropy", "--socket=a", "--poll=often"], "'often' is not a number of seconds"),
        (["entropy", "--socket=a", "--socket-mode=9"], "'9' is not an octal number"),
        (["entropy", "--socket=a", "--socket-owner=no-such-user"], "no-such-user"),
        (["blk", "x", "--socket=a", "--queues=0"], "0 is not between 1 and 256"),
        (["blk", "x", "--socket=a", "--queues=many"], "'many' is not a number"),
        (["toaster"], "invalid choice: 'toaster'"),
        (["console", "--socket=a", "--pty", "--stdio"], "not allowed with argument"),
        (["net", "--socket=a"], "one of the arguments --tap --sink --pair is required"),
        (["net", "--socket=a", "--sink", "--queues=128"], "128 is not between 1 and 127"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
