"""What a program is told where there is no Xen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirt.xen import (
    DeviceModel,
    EventChannels,
    ForeignMemory,
    GrantAllocator,
    GrantTable,
    IoreqServer,
    XenGuest,
)


@pytest.mark.skipif(Path("/dev/xen/privcmd").exists(), reason="this is a Xen domain")
@pytest.mark.parametrize(
    ("make", "device"),
    [
        (ForeignMemory, "privcmd"),
        (GrantTable, "gntdev"),
        (GrantAllocator, "gntalloc"),
        (EventChannels, "evtchn"),
        (lambda: DeviceModel(1), "privcmd"),
        (lambda: IoreqServer(1), "privcmd"),
    ],
)
def test_a_missing_device_is_named_with_what_to_do(make: Callable[[], object], device: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no Xen domain, or xen-{device} is not loaded") as caught:
        make()
    assert caught.value.filename == f"/dev/xen/{device}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domid": -1}, "domid -1 is no guest's: those are 0 to 32751"),
        ({"domid": 0x7FF0}, "domid 32752 is no guest's"),
        ({"domid": 1, "memory": "grant"}, "memory='grant' is none of 'any', 'foreign', 'grants'"),
        ({"domid": 1, "irq": 33}, "irq=33 without base"),
    ],
)
def test_an_impossible_guest_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XenGuest(**arguments)  # type: ignore[arg-type]
