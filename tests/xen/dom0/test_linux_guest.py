"""A Linux domU boots in the lab, says so, and is gone: what the tests of virtio devices are built on."""

from __future__ import annotations

import pytest

from .linux_guest import LinuxGuest, xl

pytestmark = pytest.mark.dom0("aarch64")


def test_a_guest_runs_its_script_and_powers_off() -> None:
    script = """
        echo "this is $(uname -s), $(cat /sys/hypervisor/type)"
        read line < /dev/hvc0
        echo "read $line"
    """
    with LinuxGuest(script) as guest:
        guest.unpause()
        guest.wait_for("this is Linux, xen")
        guest.send("a line")
        guest.wait_for("read a line")
        with pytest.raises(EOFError):
            guest.wait_for("nothing of the kind")


def test_a_guest_has_grants_and_no_device_that_it_was_not_given() -> None:
    with LinuxGuest("ls /proc/device-tree/passthrough; ls /sys/bus/virtio/devices; echo end") as guest:
        guest.unpause()
        said = guest.wait_for("(?s).*\nend").group()
        assert "xen_iommu" in said
        assert "virtio" not in said


def test_a_guest_that_ends_its_block_is_destroyed() -> None:
    with LinuxGuest("sleep 1000") as guest:
        guest.unpause()
        assert guest.name in xl("list")
    assert guest.name not in xl("list")
