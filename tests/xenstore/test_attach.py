"""Attaching: which order things happen in, what becomes of failures, daemons that die, guests that go."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from xenvirt import Device, DeviceId, RemoteDevice, VirtQueue
from xenvirt.xen.attach import Attacher
from xenvirt.xen.attach.backend import Served, StartedDaemon, check
from xenvirt.xen.attach.mapping import DaemonCommand, DaemonSocket, Mapping, PythonClass, parse
from xenvirt.xen.virtio_node import VirtioNode
from xenvirt.xen.xenstore import XenStore

from .fake_xenstored import FakeXenstored
from .toolstack import Toolstack

HAPPENED: list[str] = []
"""What happened, in order, in the words of slots and devices."""
LISTEN = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); sys.stdin.read(); import time; time.sleep(1000)"  # noqa: E501


class Random(Device):
    """A device that says when it is made and closed."""

    device_id = DeviceId.ENTROPY
    queue_sizes = (8,)

    def __init__(self, word: str = "") -> None:
        if word == "raise":
            raise OSError("no entropy today")
        HAPPENED.append(f"made {word}".strip())

    def process(self, queue: VirtQueue) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        HAPPENED.append("closed")


class Slots:
    """Opens slots, and plays their guests' drivers."""

    def __init__(self, tools: Toolstack) -> None:
        self.tools = tools
        self.opened: dict[str, Served | None] = {}
        self.drivers: dict[str, Callable[[], None]] = {}
        self.changed = threading.Condition()
        self.refused = -1

    def __call__(self, node: VirtioNode, device: Served | None, ready: Callable[[], None]) -> Slot:
        if node.devid == self.refused:
            raise OSError("the hypervisor refuses")
        with self.changed:
            HAPPENED.append(f"slot {self.tools.state(node.path)}")
            self.opened[node.path] = device
            self.drivers[node.path] = ready
            self.changed.notify_all()
        return Slot(self, node)

    def wait_for(self, *paths: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: set(self.opened) == set(paths), 30), self.opened


class Slot:
    def __init__(self, slots: Slots, node: VirtioNode) -> None:
        self.slots, self.node = slots, node

    def close(self) -> None:
        with self.slots.changed:
            HAPPENED.append(f"free {self.slots.tools.store.get(f'{self.node.path}/state')}")
            del self.slots.opened[self.node.path]
            self.slots.changed.notify_all()

    def leave(self) -> None:
        with self.slots.changed:
            HAPPENED.append("left")
            del self.slots.opened[self.node.path]
            self.slots.changed.notify_all()


@pytest.fixture
def tools(daemon: FakeXenstored) -> Iterator[Toolstack]:
    HAPPENED.clear()
    daemon.write("/local/domain/0/domid", "0")
    with XenStore(daemon.path) as store:
        toolstack = Toolstack(store)
        toolstack.make_domain(3)
        store.write("/local/domain/3/name", "guest")
        yield toolstack


@pytest.fixture
def slots(tools: Toolstack) -> Slots:
    return Slots(tools)


def rules(text: str) -> Mapping:
    return parse(tomllib.loads(text))


RANDOM = rules(f'[[device]]\nclass = "{__name__}:Random"\narguments = {{ word = "{{guest}}" }}')


@contextmanager
def attaching(
    store: XenStore, mapping: Mapping, slots: Slots, domid: int | None = None
) -> Iterator[Attacher]:
    with Attacher(store, mapping, slots, domid) as attacher:
        thread = threading.Thread(target=attacher.run)
        thread.start()
        try:
            yield attacher
        finally:
            attacher.stop()
            thread.join()


def wait_for_state(tools: Toolstack, path: str, state: int) -> None:
    with tools.store.watch(f"{path}/state") as watch:
        deadline = time.monotonic() + 30
        while tools.state(path) != state:
            assert watch.wait(deadline - time.monotonic()), tools.state(path)


def test_the_slot_is_taken_before_the_toolstack_is_told_and_freed_before_it_destroys(
    tools: Toolstack, store: XenStore, slots: Slots
) -> None:
    with attaching(store, RANDOM, slots) as attacher:
        path = tools.add(3)
        wait_for_state(tools, path, 2)
        assert isinstance(slots.opened[path], Random)
        assert [node.path for node in attacher.attached] == [path]
        slots.drivers[path]()
        wait_for_state(tools, path, 4)
        tools.take_away(path)
        wait_for_state(tools, path, 6)
    assert HAPPENED == ["made guest", "slot 1", "free 5", "closed"]


def test_a_device_that_is_unplugged_leaves_an_empty_slot_until_its_guest_is_gone(
    daemon: FakeXenstored, tools: Toolstack, store: XenStore, slots: Slots
) -> None:
    """Its driver does not know, and would die of touching a slot that nobody has."""
    with attaching(store, RANDOM, slots):
        path = tools.add(3)
        wait_for_state(tools, path, 2)
        tools.take_away(path, force=False)
        wait_for_state(tools, path, 6)
        assert slots.opened == {path: None}
        tools.remove(path)
        tools.add(3)
        wait_for_state(tools, path, 2)
        assert isinstance(slots.opened[path], Random)
        tools.take_away(path, force=False)
        wait_for_state(tools, path, 6)
        assert slots.opened == {path: None}
        daemon.remove("/local/domain/3")
        daemon.fire("@releaseDomain")
        slots.wait_for()


def test_a_device_that_no_rule_fits_is_an_empty_slot(tools: Toolstack, store: XenStore, slots: Slots) -> None:
    with attaching(store, Mapping(), slots):
        path = tools.add(3)
        wait_for_state(tools, path, 2)
        assert slots.opened == {path: None}


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (f'class = "{__name__}:Random"\narguments = {{ word = "raise" }}', "OSError: no entropy today"),
        (f'class = "{__name__}:Random"\narguments = {{ size = 1 }}', "unexpected keyword argument 'size'"),
        ('class = "no.such.module:Random"', "no.such.module cannot be imported: No module named 'no'"),
        (f'class = "{__name__}:NoClass"', "has no NoClass"),
        (f'class = "{__name__}:Slots"', "is no xenvirt.Device"),
        ('class = "xenvirt.devices:NetDevice"', "cannot be made"),
        ('command = ["no-such-daemon", "{socket}"]', "no-such-daemon is not in the PATH"),
        (f'command = ["{sys.executable}", "-c", "raise SystemExit(3)", "{{socket}}"]', "ended with status 3"),
        (f'class = "{__name__}:Random"\narguments = {{ word = "{{target}}" }}', "has no target"),
    ],
)
def test_a_backend_that_cannot_be_made_leaves_an_empty_slot_and_says_why(
    tools: Toolstack,
    store: XenStore,
    slots: Slots,
    caplog: pytest.LogCaptureFixture,
    rule: str,
    why: str,
) -> None:
    with caplog.at_level(logging.WARNING), attaching(store, rules(f"[[device]]\n{rule}"), slots):
        path = tools.add(3)
        wait_for_state(tools, path, 2)
        assert slots.opened == {path: None}
    assert why in caplog.text


def test_a_device_of_another_type_than_the_guest_was_told_is_not_served(
    tools: Toolstack, store: XenStore, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), attaching(store, RANDOM, slots):
        path = tools.add(3, type="virtio,device1")
        wait_for_state(tools, path, 2)
        assert slots.opened == {path: None}
    assert "is of type entropy, and the guest has been told net" in caplog.text
    assert HAPPENED == ["made guest", "closed", "slot 1", "left"]


def test_what_somebody_else_serves_is_left_alone(tools: Toolstack, store: XenStore, slots: Slots) -> None:
    with attaching(store, rules('[[device]]\ntype = "net"\nignore = true'), slots):
        ignored = tools.add(3, 0, type="virtio,device1")
        served = tools.add(3, 1)
        wait_for_state(tools, served, 2)
        tools.take_away(served)
        wait_for_state(tools, served, 6)
        assert tools.state(ignored) == 1


def test_where_the_slot_cannot_be_taken_the_toolstack_is_not_told_that_all_is_well(
    tools: Toolstack, store: XenStore, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    slots.refused = 0
    with caplog.at_level(logging.WARNING), attaching(store, RANDOM, slots):
        failed = tools.add(3, 0)
        path = tools.add(3, 1)
        wait_for_state(tools, path, 2)
    assert tools.state(failed) == 1
    assert "the hypervisor refuses" in caplog.text


def test_one_process_ends_and_the_next_takes_the_devices_up(
    daemon: FakeXenstored, tools: Toolstack, store: XenStore, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    path = tools.add(3)
    with attaching(store, RANDOM, slots):
        wait_for_state(tools, path, 2)
        slots.drivers[path]()
        wait_for_state(tools, path, 4)
    assert tools.state(path) == 4
    assert slots.opened == {}
    caplog.set_level(logging.INFO)
    with XenStore(daemon.path) as second, attaching(second, RANDOM, slots):
        slots.wait_for(path)
        assert tools.state(path) == 4
        tools.take_away(path)
        wait_for_state(tools, path, 6)
    assert "taken up again from another process" in caplog.text


def test_a_device_that_comes_again_waits_for_the_end_of_the_one_before(
    tools: Toolstack, store: XenStore, slots: Slots
) -> None:
    with attaching(store, RANDOM, slots):
        path = tools.add(3)
        wait_for_state(tools, path, 2)
        tools.add(3)
        wait_for_state(tools, path, 2)
        assert HAPPENED == ["made guest", "slot 1", "free 1", "closed", "made guest", "slot 1"]


def test_one_guest_alone_ends_with_it(
    daemon: FakeXenstored, tools: Toolstack, store: XenStore, slots: Slots
) -> None:
    path = tools.add(3)
    with Attacher(store, RANDOM, slots, 3) as attacher:
        thread = threading.Thread(target=attacher.run)
        thread.start()
        wait_for_state(tools, path, 2)
        daemon.remove("/local/domain/3")
        daemon.fire("@releaseDomain")
        thread.join(30)
        assert not thread.is_alive()


def test_a_dead_xenstored_ends_it_and_all_is_closed(
    daemon: FakeXenstored, tools: Toolstack, store: XenStore, slots: Slots
) -> None:
    path = tools.add(3)
    failure: list[BaseException] = []
    with Attacher(store, RANDOM, slots) as attacher:

        def run() -> None:
            try:
                attacher.run()
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_for_state(tools, path, 2)
        daemon.kill()
        thread.join(30)
        assert not thread.is_alive()
    assert "lost" in str(failure[0])
    assert HAPPENED[-1] == "closed"


# ---- daemons


def test_a_daemon_is_started_for_a_device_and_ended_with_it(
    tools: Toolstack, store: XenStore, slots: Slots
) -> None:
    mapping = Mapping(parse({"device": [{"command": [sys.executable, "-c", LISTEN, "{socket}"]}]}).rules)
    with attaching(store, mapping, slots):
        path = tools.add(3)
        wait_for_state(tools, path, 2)
        device = slots.opened[path]
        assert isinstance(device, RemoteDevice)
        assert device.device_id == DeviceId.ENTROPY
        socket = os.path.realpath(device.socket)
        assert os.path.exists(socket)  # noqa: PTH110
    assert not os.path.exists(socket)  # noqa: PTH110


def test_a_daemon_that_dies_is_started_again_at_the_same_place(
    tools: Toolstack, store: XenStore, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    mapping = parse({"device": [{"command": [sys.executable, "-c", LISTEN, "{socket}"]}]})
    again = threading.Event()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "started again" in record.getMessage():
                again.set()

    handler = Seen()
    logging.getLogger("xenvirt").addHandler(handler)
    try:
        with attaching(store, mapping, slots) as attacher:
            path = tools.add(3)
            wait_for_state(tools, path, 2)
            device = slots.opened[path]
            assert isinstance(device, RemoteDevice)
            first = os.path.realpath(device.socket)
            os.kill(daemon_of(attacher, path), signal.SIGKILL)
            assert again.wait(30)
            assert os.path.realpath(device.socket) != first
            assert os.path.exists(device.socket)  # noqa: PTH110
    finally:
        logging.getLogger("xenvirt").removeHandler(handler)
    assert "was killed by SIGKILL" in caplog.text


def daemon_of(_attacher: Attacher, _path: str) -> int:
    """The process that has the slot's socket: our child that runs the program."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):  # noqa: PTH208
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                words = file.read().split(b"\0")
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == os.getpid() and LISTEN.encode() in words:
            return pid
    raise AssertionError("no daemon runs")


def test_a_started_daemon_leaves_nothing_behind() -> None:
    with StartedDaemon(DaemonCommand((sys.executable, "-c", LISTEN, "{socket}"))) as daemon:
        assert daemon.fileno() == -1
        daemon.start()
        assert daemon.fileno() >= 0
        folder = os.path.dirname(daemon.path)  # noqa: PTH120
    assert not os.path.exists(folder)  # noqa: PTH110


# ---- before anything is made


def test_what_can_be_seen_beforehand_is_said() -> None:
    assert check(PythonClass("xenvirt.devices:EntropyDevice")) is None
    assert "cannot be imported" in (check(PythonClass("nothing.here:Device")) or "")
    assert "no socket at /nothing" in (check(DaemonSocket("/nothing")) or "")
    assert "not in the PATH" in (check(DaemonCommand(("no-such-daemon", "{socket}"))) or "")
    assert check(DaemonCommand((sys.executable, "{socket}"))) is None
