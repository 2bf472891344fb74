"""Virtio devices in the xenstore: what is read of a node, and what is made of changes."""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator

import pytest

from xenvirt.errors import VirtioNodeError
from xenvirt.virtio.ids import DeviceId
from xenvirt.xen.hotplug import HotplugWatch, Plugged, Unplugged
from xenvirt.xen.virtio_node import read_node, virtio_nodes
from xenvirt.xen.xenbus import XenbusState, advance
from xenvirt.xen.xenstore import XenStore

from .fake_xenstored import FakeXenstored
from .toolstack import Toolstack


@pytest.fixture
def tools(daemon: FakeXenstored) -> Iterator[Toolstack]:
    """Another client, as xl is."""
    daemon.write("/local/domain/0/domid", "0")
    with XenStore(daemon.path) as store:
        toolstack = Toolstack(store)
        toolstack.make_domain(3)
        yield toolstack


@pytest.fixture
def devices(store: XenStore) -> Iterator[HotplugWatch]:
    with HotplugWatch(store) as watch:
        yield watch


def said(devices: HotplugWatch) -> list[str]:
    """All that there is to say, in short. Nothing more comes: the daemon has answered after its events."""
    devices._store.read("/")
    words = []
    while (event := devices.poll()) is not None:
        words.append(f"{'+' if isinstance(event, Plugged) else '-'}{event.node.domid}/{event.node.devid}")
    return words


# ---- one node


def test_a_device_of_virtio_in_xl_cfg(tools: Toolstack, store: XenStore) -> None:
    path = tools.add(3, 1, type="virtio,device22", base="0x2000200", irq="34", grant_usage="1")
    node = read_node(store, path)
    assert node is not None
    assert (node.domid, node.devid, node.kind, node.path) == (3, 1, "virtio", path)
    assert (node.device_id, node.base, node.irq, node.grants) == (DeviceId.I2C, 0x2000200, 34, True)
    assert (node.state, node.online, node.uuid) == (XenbusState.INITIALISING, True, "/vm/uuid-1")
    assert node.name == "domain 3, virtio device 1 (i2c at 0x2000200, interrupt 34)"


def test_a_disk_with_specification_virtio(tools: Toolstack, store: XenStore) -> None:
    node = read_node(store, tools.add_disk(3, mode="r"))
    assert node is not None
    assert (node.kind, node.device_id, node.base, node.irq) == ("virtio_disk", DeviceId.BLOCK, 0x2000000, 33)
    assert (node.target, node.read_only, node.grants) == ("/disk.img", True, False)


def test_all_devices_are_found_or_those_of_one_guest(tools: Toolstack, store: XenStore) -> None:
    assert list(virtio_nodes(store)) == []
    paths = {tools.add(3, 0), tools.add(3, 1), tools.add(4, 0), tools.add_disk(4)}
    store.write("/local/domain/0/backend/virtio/not-a-domain/0/state", "1")
    assert {node.path for node in virtio_nodes(store)} == paths
    assert {node.domid for node in virtio_nodes(store, 4)} == {4}


def test_a_type_may_name_no_device(tools: Toolstack, store: XenStore) -> None:
    node = read_node(store, tools.add(3, type="virtio,device"))
    assert node is not None
    assert node.device_id is None
    assert "of any type" in node.name


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("base", None, "base is None, not a number"),
        ("base", "", "base is '', not a number"),
        ("base", "here", "'here', not a number"),
        ("base", "-1", "not a number of 0"),
        ("base", "0x10000000000000000", "not a number of 0"),
        ("irq", "9999", "not a number of 0 to 0x3fb"),
        ("transport", "pci", "'pci'; 'mmio' is all"),
        ("transport", None, "None; 'mmio' is all"),
        ("type", "virtio,deviceXX", "hexadecimal digits"),
        ("type", None, "hexadecimal digits"),
    ],
)
def test_what_is_missing_or_impossible_is_named(
    tools: Toolstack, store: XenStore, key: str, value: str | None, why: str
) -> None:
    path = tools.add(3, 0, **{key: value})
    with pytest.raises(VirtioNodeError, match=why) as caught:
        read_node(store, path)
    assert caught.value.path == path
    assert f"{path}/{key}" in str(caught.value)


# ---- the backend's state


def test_the_state_is_walked_and_never_backwards(tools: Toolstack, store: XenStore) -> None:
    path = tools.add(3)
    assert not advance(store, path, XenbusState.CONNECTED)
    for state in (XenbusState.INIT_WAIT, XenbusState.CONNECTED):
        assert advance(store, path, state)
        assert advance(store, path, state)
        assert tools.state(path) == state
    assert not advance(store, path, XenbusState.INIT_WAIT)
    tools.take_away(path)
    assert not advance(store, path, XenbusState.CONNECTED)
    assert advance(store, path, XenbusState.CLOSED)
    assert tools.state(path) == XenbusState.CLOSED


def test_a_node_that_is_gone_is_not_made_again(tools: Toolstack, store: XenStore) -> None:
    path = tools.add(3)
    tools.remove(path)
    assert not advance(store, path, XenbusState.INIT_WAIT)
    assert not advance(store, path, XenbusState.CLOSED)
    assert store.get(path) is None


@pytest.mark.parametrize("text", [None, "", "9", "four", "-1"])
def test_nonsense_is_no_state(text: str | None) -> None:
    assert XenbusState.parse(text) == XenbusState.UNKNOWN


# ---- coming and going


def test_what_is_there_first_and_then_what_changes(tools: Toolstack, devices: HotplugWatch) -> None:
    assert said(devices) == []
    tools.add(3)
    tools.add_disk(3)
    assert said(devices) == ["+3/0", "+3/51712"]
    assert len(devices.nodes) == 2
    with HotplugWatch(tools.store) as later:
        assert set(said(later)) == {"+3/0", "+3/51712"}


def test_one_guest_alone(tools: Toolstack, store: XenStore) -> None:
    tools.make_domain(4)
    with HotplugWatch(store, 4) as devices:
        tools.add(3)
        tools.add(4)
        assert said(devices) == ["+4/0"]


def test_a_device_is_unplugged_and_closed_when_it_was_let_go(tools: Toolstack, devices: HotplugWatch) -> None:
    path = tools.add(3)
    plugged = devices.wait(5)
    assert isinstance(plugged, Plugged)
    assert not plugged.again
    assert devices.advance(plugged.node, XenbusState.INIT_WAIT)
    assert devices.advance(plugged.node, XenbusState.CONNECTED)
    assert said(devices) == []
    tools.take_away(path)
    unplugged = devices.wait(5)
    assert isinstance(unplugged, Unplugged)
    assert "takes it away" in unplugged.reason
    assert said(devices) == []
    assert tools.state(path) == XenbusState.CLOSING  # who serves it says when it is closed
    assert devices.advance(unplugged.node, XenbusState.CLOSED)
    assert said(devices) == []
    tools.remove(path)
    assert said(devices) == []
    tools.add(3)
    assert said(devices) == ["+3/0"]


def test_a_device_that_nobody_served_is_closed_for_the_toolstack(
    tools: Toolstack, devices: HotplugWatch
) -> None:
    path = tools.add(3, base="nonsense")
    assert said(devices) == []
    tools.store.write(f"{path}/base", "0x2000000")
    tools.take_away(path)
    assert said(devices) == []
    assert tools.state(path) == XenbusState.CLOSED


def test_a_node_that_is_written_piece_by_piece_is_plugged_when_it_is_whole(
    tools: Toolstack, devices: HotplugWatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/local/domain/0/backend/virtio/3/0"
    for name, value in [("type", "virtio,device4"), ("base", "0x2000000"), ("transport", "mmio")]:
        tools.store.write(f"{path}/{name}", value)
        assert said(devices) == []
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        tools.store.write(f"{path}/state", "1")
        assert said(devices) == []
        tools.store.write(f"{path}/unrelated", "1")
        assert said(devices) == []
    assert [record.message for record in caplog.records] == [
        f"a virtio device cannot be served: {path}/irq is None, not a number of 0 to 0x3fb"
    ]
    tools.store.write(f"{path}/irq", "33")
    assert said(devices) == ["+3/0"]


def test_a_removed_guest_takes_its_devices_along(tools: Toolstack, devices: HotplugWatch) -> None:
    tools.add(3, 0)
    tools.add(3, 1)
    assert said(devices) == ["+3/0", "+3/1"]
    tools.remove("/local/domain/0/backend/virtio/3")
    assert said(devices) == ["-3/0", "-3/1"]


def test_a_domain_that_is_gone_takes_its_devices_along_and_its_nodes_are_left(
    daemon: FakeXenstored, tools: Toolstack, devices: HotplugWatch
) -> None:
    tools.add(3)
    assert said(devices) == ["+3/0"]
    daemon.remove("/local/domain/3")
    daemon.fire("@releaseDomain")
    assert said(devices) == ["-3/0"]
    with HotplugWatch(tools.store) as later:
        assert said(later) == []
    tools.make_domain(3, "uuid-2")
    daemon.fire("@introduceDomain")
    assert said(devices) == ["+3/0"]


def test_a_domain_id_that_is_used_again_is_another_device(tools: Toolstack, devices: HotplugWatch) -> None:
    tools.add(3)
    event = devices.wait(5)
    assert isinstance(event, Plugged)
    tools.make_domain(3, "uuid-2")
    tools.add(3)
    assert said(devices) == ["-3/0", "+3/0"]


def test_a_device_that_is_made_anew_is_another_one(tools: Toolstack, devices: HotplugWatch) -> None:
    """The same guest, the same place: only its state tells."""
    tools.add(3)
    event = devices.wait(5)
    assert isinstance(event, Plugged)
    assert devices.advance(event.node, XenbusState.INIT_WAIT)
    tools.add(3)
    assert said(devices) == ["-3/0", "+3/0"]


def test_a_device_that_moves_is_another_one(tools: Toolstack, devices: HotplugWatch) -> None:
    path = tools.add(3)
    assert said(devices) == ["+3/0"]
    tools.store.write(f"{path}/base", "0x2000400")
    assert said(devices) == ["-3/0", "+3/0"]


def test_what_another_process_has_begun_is_plugged_again(tools: Toolstack, store: XenStore) -> None:
    for state in ("2", "4", "6"):
        tools.add(3, state=state)
        with HotplugWatch(store) as devices:
            event = devices.wait(5)
            assert isinstance(event, Plugged)
            assert event.again


def test_it_can_be_selected(tools: Toolstack, devices: HotplugWatch) -> None:
    assert said(devices) == []
    assert select.select([devices], [], [], 0)[0] == []
    tools.add(3)
    assert select.select([devices], [], [], 5)[0] == [devices]
    assert devices.poll() is not None
    assert said(devices) == []
    assert devices.wait(0) is None
