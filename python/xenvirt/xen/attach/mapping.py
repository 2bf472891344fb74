"""Which backend serves which guest's device: the rules of a TOML file, checked when it is read.

::

    [[device]]                                  # the first rule that fits a device serves it
    type = "block"                              # a name or number of xenvirt.virtio.ids.DeviceId
    guest = "web-*"                             # the guest's name; * and ? as in the shell
    class = "xenvirt.devices:BlockDevice"       # a Python class, and what it is made with
    arguments = { image = "{target}", read_only = "{read_only}" }

    [[device]]
    type = "i2c"
    socket = "/run/i2c-{domid}.sock"            # a vhost-user daemon that listens there

    [[device]]
    type = "vsock"
    command = ["vhost-device-vsock", "--socket={socket}", "--guest-cid={domid}"]  # one that is started
    env = { RUST_LOG = "info" }

    [[device]]
    kind = "virtio_disk"                        # or "virtio": which of libxl's nodes
    devid = 51712
    ignore = true                               # somebody else serves it; "empty = true": nobody does

In texts ``{domid} {devid} {guest} {target} {read_only} {base} {irq}`` are what the device's node says; a text
that is one of them alone keeps its type (a number, true or false). ``{socket}`` and ``{dir}`` are the
daemon's, see :class:`xenvirt.Daemon`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from xenvirt.errors import MappingError
from xenvirt.virtio.ids import DeviceId
from xenvirt.xen.virtio_node import KINDS, VirtioNode, type_name

_PLACE = re.compile(r"\{([a-z_]+)\}")
_PLACES = ("domid", "devid", "guest", "target", "read_only", "base", "irq")
_DAEMONS = ("socket", "dir")
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class PythonClass:
    """Serves a device by an instance of a class."""

    name: str
    """``module:Class``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """By keyword."""

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({words})"


@dataclass(frozen=True)
class DaemonSocket:
    """Serves a device by a vhost-user daemon that runs already."""

    path: str

    def __str__(self) -> str:
        return f"the daemon at {self.path}"


@dataclass(frozen=True)
class DaemonCommand:
    """Serves a device by a vhost-user daemon that is started for it."""

    words: tuple[str, ...]
    socket_suffix: str = ""
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"a daemon: {' '.join(self.words)}"


@dataclass(frozen=True)
class Empty:
    """Nothing serves it: the guest finds an empty slot (DeviceID 0) and passes over it."""

    def __str__(self) -> str:
        return "nothing: an empty slot, device id 0"


@dataclass(frozen=True)
class Ignored:
    """Somebody else serves it: it is not touched."""

    def __str__(self) -> str:
        return "somebody else: it is left alone"


Backend: TypeAlias = PythonClass | DaemonSocket | DaemonCommand | Empty | Ignored


@dataclass(frozen=True)
class Rule:
    """One rule: which devices, and what serves them."""

    backend: Backend
    device_id: int | None = None
    kind: str | None = None
    guest: str | None = None
    devid: int | None = None
    place: str = "a rule"
    """Where it stands, for messages."""

    def fits(self, node: VirtioNode, guest: str) -> bool:
        """Whether it is meant for this device of a guest with this name."""
        return (
            self.device_id in (None, node.device_id)
            and self.kind in (None, node.kind)
            and self.devid in (None, node.devid)
            and (self.guest is None or fnmatchcase(guest, self.guest))
        )


@dataclass(frozen=True)
class Mapping:
    """The rules of a file, in their order. Without any, all devices are empty slots."""

    rules: tuple[Rule, ...] = ()

    def backend_for(self, node: VirtioNode, guest: str) -> Backend:
        """What serves a device, with what its node says put into the texts.

        Raises:
            MappingError: a text wants what the node does not say: the target of a device that is no disk.
        """
        rule = next((rule for rule in self.rules if rule.fits(node, guest)), None)
        if rule is None:
            return Empty()
        filler = _Filler(node, guest, rule.place)
        match rule.backend:
            case PythonClass(name, arguments):
                return PythonClass(name, {key: filler.fill(value) for key, value in arguments.items()})
            case DaemonSocket(path):
                return DaemonSocket(filler.text(path))
            case DaemonCommand(words, suffix, env):
                return DaemonCommand(
                    tuple(map(filler.text, words)),
                    suffix,
                    {name: filler.text(value) for name, value in env.items()},
                )
            case _:
                return rule.backend


def load(path: Path) -> Mapping:
    """Reads a file.

    Raises:
        MappingError: it is no TOML, or a rule is not as it should be; the message names the rule and the key.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            table = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise MappingError(f"{path} is no TOML: {error}", str(path)) from error
    return parse(table, str(path))


def parse(table: Table[str, Any], name: str = "the mapping") -> Mapping:
    """Rules from a table as TOML gives it; raises as :func:`load`."""
    if unknown := set(table) - {"device"}:
        raise MappingError(f"{name}: {_listed(unknown)}: there is nothing but [[device]]", name)
    devices = table.get("device", [])
    if not (isinstance(devices, list) and all(isinstance(one, dict) for one in devices)):
        raise MappingError(f"{name}: device is written [[device]], once for each rule", name)
    return Mapping(tuple(_rule(one, f"{name}, rule {number}") for number, one in enumerate(devices, 1)))


_BACKENDS = ("class", "socket", "command", "ignore", "empty")
_ONLY_WITH = {"arguments": "class", "env": "command", "socket_suffix": "command"}
_KEYS = {"type", "kind", "guest", "devid", *_BACKENDS, *_ONLY_WITH}


def _rule(table: Table[str, Any], place: str) -> Rule:
    if unknown := set(table) - _KEYS:
        raise MappingError(f"{place}: {_listed(unknown)}: no such key; there are {_listed(_KEYS)}", place)
    chosen = [key for key in _BACKENDS if key in table]
    if len(chosen) != 1:
        found = _listed(chosen) if chosen else "none of them"
        raise MappingError(f"{place}: it wants one of {_listed(_BACKENDS)}, and has {found}", place)
    for key, other in _ONLY_WITH.items():
        if key in table and other not in table:
            raise MappingError(f"{place}: {key} goes with {other}, which is not there", place)
    kind = _value(table, "kind", str, place)
    if kind not in (None, *KINDS):
        raise MappingError(f"{place}: kind is one of {_listed(KINDS)}, not {kind!r}", place)
    return Rule(
        _backend(table, chosen[0], place),
        device_id(table.get("type"), place),
        kind,
        _value(table, "guest", str, place),
        _value(table, "devid", int, place),
        place,
    )


def _backend(table: Table[str, Any], chosen: str, place: str) -> Backend:
    match chosen:
        case "class":
            name = _value(table, "class", str, place)
            if not _CLASS.fullmatch(name):
                raise MappingError(
                    f"{place}: class is 'module:Class', as in 'xenvirt.devices:EntropyDevice', not {name!r}",
                    place,
                )
            arguments = _value(table, "arguments", dict, place) or {}
            for value in arguments.values():
                _checked_places(value, _PLACES, place)
            return PythonClass(name, arguments)
        case "socket":
            path = _value(table, "socket", str, place)
            _checked_places(path, _PLACES, place)
            return DaemonSocket(path)
        case "command":
            words = _value(table, "command", list, place)
            env = _value(table, "env", dict, place) or {}
            if not words or not all(isinstance(word, str) for word in (*words, *env.values())):
                raise MappingError(
                    f"{place}: command is a list of texts, the program first, and env a table of texts", place
                )
            for word in (*words, *env.values()):
                _checked_places(word, (*_PLACES, *_DAEMONS), place)
            if not any("{socket}" in word or "{dir}" in word for word in (*words, *env.values())):
                raise MappingError(
                    f"{place}: no word of command has {{socket}}: the daemon would not know where to listen; "
                    "write for instance '--socket-path={socket}'",
                    place,
                )
            return DaemonCommand(tuple(words), _value(table, "socket_suffix", str, place) or "", env)
        case _:
            if table[chosen] is not True:
                raise MappingError(
                    f"{place}: {chosen} is true, or is not there, not {table[chosen]!r}", place
                )
            return Ignored() if chosen == "ignore" else Empty()


def device_id(value: object, place: str) -> int | None:
    """The number of a device type from its name or number, also as text; None for None.

    Raises:
        MappingError: there is no such type.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str):
        if value.isascii() and value.isdigit() and int(value) > 0:
            return int(value)
        for one in DeviceId:
            if type_name(one) == value:
                return one
    raise MappingError(
        f"{place}: type is the number of a device type or one of {_listed(map(type_name, DeviceId))}; not "
        f"{value!r}",
        place,
    )


def _value(table: Table[str, Any], key: str, wanted: type, place: str) -> Any:
    value = table.get(key)
    if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
        words = {str: "a text", int: "a number", list: "a list", dict: "a table"}
        raise MappingError(f"{place}: {key} is {words[wanted]}, not {value!r}", place)
    return value


def _checked_places(value: object, allowed: tuple[str, ...], place: str) -> None:
    if isinstance(value, str):
        for name in _PLACE.findall(value):
            if name not in allowed:
                raise MappingError(
                    f"{place}: {{{name}}} stands for nothing; there are "
                    f"{' '.join(f'{{{one}}}' for one in allowed)}",
                    place,
                )


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


class _Filler:
    """Puts what a node says into texts."""

    def __init__(self, node: VirtioNode, guest: str, place: str) -> None:
        self._place = place
        self._node = node
        self._values: dict[str, int | str | bool | None] = {
            "domid": node.domid,
            "devid": node.devid,
            "guest": guest,
            "target": node.target,
            "read_only": node.read_only,
            "base": node.base,
            "irq": node.irq,
        }

    def fill(self, value: Any) -> Any:
        """A text that is one place alone becomes its value; other texts stay texts, and the rest as it is."""
        if not isinstance(value, str):
            return value
        alone = _PLACE.fullmatch(value)
        return self._value(alone[1]) if alone else self.text(value)

    def text(self, value: str) -> str:
        """A text with the places filled; those of a daemon are left."""
        return _PLACE.sub(
            lambda found: str(self._value(found[1])) if found[1] in self._values else found[0], value
        )

    def _value(self, name: str) -> int | str | bool:
        value = self._values[name]
        if value is None:
            raise MappingError(
                f"{self._place}: {self._node.name} has no {name}: only disks have", self._place
            )
        return value
