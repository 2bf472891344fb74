"""The TOML file that says what serves which device: what it may say, and how it complains."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from xenvirt.errors import MappingError
from xenvirt.virtio.ids import DeviceId
from xenvirt.xen.attach import mapping
from xenvirt.xen.attach.mapping import DaemonCommand, DaemonSocket, Empty, Ignored, Mapping, PythonClass
from xenvirt.xen.virtio_node import VirtioNode
from xenvirt.xen.xenbus import XenbusState


def node(**changes: object) -> VirtioNode:
    values: dict[str, object] = {
        "domid": 3,
        "devid": 0,
        "kind": "virtio",
        "path": "/local/domain/0/backend/virtio/3/0",
        "device_id": DeviceId.ENTROPY,
        "base": 0x2000000,
        "irq": 33,
        "grants": False,
        "state": XenbusState.INITIALISING,
        "online": True,
        "read_only": False,
        "target": None,
        "uuid": "/vm/1",
    }
    return VirtioNode(**{**values, **changes})  # type: ignore[arg-type]


DISK = node(kind="virtio_disk", devid=51712, device_id=DeviceId.BLOCK, target="/disk.img", read_only=True)


def rules(text: str) -> Mapping:
    return mapping.parse(tomllib.loads(text), "attach.toml")


def test_the_example_of_the_module_is_a_mapping(tmp_path: Path) -> None:
    assert mapping.__doc__ is not None
    text = mapping.__doc__.partition("::\n")[2].partition("\nIn texts")[0]
    path = tmp_path / "attach.toml"
    path.write_text(text)
    loaded = mapping.load(path)
    assert len(loaded.rules) == 4
    assert loaded.backend_for(DISK, "web-1") == PythonClass(
        "xenvirt.devices:BlockDevice", {"image": "/disk.img", "read_only": True}
    )
    assert loaded.backend_for(DISK, "mail") == Ignored()
    assert loaded.backend_for(node(device_id=DeviceId.I2C), "mail") == DaemonSocket("/run/i2c-3.sock")
    assert loaded.backend_for(node(device_id=DeviceId.VSOCK), "mail") == DaemonCommand(
        ("vhost-device-vsock", "--socket={socket}", "--guest-cid=3"), "", {"RUST_LOG": "info"}
    )
    assert loaded.backend_for(node(), "mail") == Empty()


def test_the_first_rule_that_fits_counts() -> None:
    made = rules(
        """
        device = [
            { type = "entropy", guest = "a?", empty = true },
            { type = 4, devid = 1, socket = "/one" },
            { type = "entropy", socket = "/all" },
        ]
        """
    )
    assert made.backend_for(node(), "ab") == Empty()
    assert made.backend_for(node(devid=1), "abc") == DaemonSocket("/one")
    assert made.backend_for(node(), "abc") == DaemonSocket("/all")


def test_numbers_and_truths_keep_their_type_where_they_stand_alone() -> None:
    made = rules(
        """
        [[device]]
        class = "m:C"
        arguments = { a = "{domid}", b = "guest {guest} {read_only}", c = 7, d = ["{domid}"], e = "{base}" }
        """
    )
    assert made.backend_for(node(), "g") == PythonClass(
        "m:C", {"a": 3, "b": "guest g False", "c": 7, "d": ["{domid}"], "e": 0x2000000}
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("other = 1", "other: there is nothing but"),
        ("device = 1", r"device is written \[\[device\]\]"),
        ("[[device]]", "rule 1: it wants one of class, command, empty, ignore, socket, and has none of them"),
        ('[[device]]\nsocket="/a"\nempty=true', "has empty, socket"),
        ('[[device]]\nsockets="/a"', "sockets: no such key; there are arguments, class"),
        ('[[device]]\nsocket="/a"\narguments={}', "arguments goes with class, which is not there"),
        ('[[device]]\nsocket="/a"\ntype="toaster"', "one of .*entropy.*; not 'toaster'"),
        ('[[device]]\nsocket="/a"\ntype=true', "not True"),
        ('[[device]]\nsocket="/a"\nkind="vbd"', "kind is one of virtio, virtio_disk, not 'vbd'"),
        ('[[device]]\nsocket="/a"\ndevid="0"', "devid is a number, not '0'"),
        ("[[device]]\nsocket=1", "socket is a text, not 1"),
        ('[[device]]\nclass="EntropyDevice"', "class is 'module:Class'.*not 'EntropyDevice'"),
        (
            '[[device]]\nclass="m:C"\narguments={a="{name}"}',
            r"\{name\} stands for nothing; there are \{domid\}",
        ),
        ('[[device]]\ncommand="rng {socket}"', "command is a list"),
        ("[[device]]\ncommand=[]", "command is a list of texts, the program first"),
        ('[[device]]\ncommand=["rng"]', r"no word of command has \{socket\}"),
        ("[[device]]\nempty=false", "empty is true, or is not there, not False"),
    ],
)
def test_what_is_wrong_is_named(text: str, why: str) -> None:
    with pytest.raises(MappingError, match=why) as caught:
        rules(text)
    assert "attach.toml" in str(caught.value)


def test_what_a_node_does_not_say_is_named() -> None:
    made = rules('[[device]]\nclass="m:C"\narguments={ image = "{target}" }')
    with pytest.raises(MappingError, match=r"rule 1: domain 3, virtio device 0 .* has no target: only disks"):
        made.backend_for(node(), "g")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "attach.toml"
    path.write_text("[[device]\n")
    with pytest.raises(MappingError, match=f"{path} is no TOML: .*line 1"):
        mapping.load(path)
