"""``xenvirt acpi``: the table by which an HVM guest finds virtio-mmio devices."""

from __future__ import annotations

import argparse
from pathlib import Path

from xenvirt.errors import XenvirtError
from xenvirt.xen.acpi import acpi_table

EXAMPLE = """\
In the guest's xl configuration, beside type = "hvm":

    acpi_firmware = "/etc/xen/virtio.aml"

Then, while the guest is paused (xl create -p), serve the device where the table says that it is:

    xenvirt attach --domid N --base 0xfeb00000 --irq 42 --class xenvirt.devices:EntropyDevice
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "acpi",
        help="write the ACPI table by which an HVM guest (x86) finds virtio-mmio devices",
        description="Writes an ACPI table (SSDT) with virtio-mmio devices, for xl to give to an "
        "HVM guest on x86. Addresses from 0xfeb00000 on are free there, interrupts are 16 to 47.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "devices", nargs="+", type=_device, metavar="BASE:IRQ", help="a device: 0xfeb00000:42, 0xfeb00200:43"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="where to")
    parser.set_defaults(run=run)


def _device(text: str) -> tuple[int, int]:
    base, colon, irq = text.partition(":")
    try:
        if colon:
            return int(base, 0), int(irq, 0)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: BASE:IRQ is wanted, as 0xfeb00000:42")


def run(arguments: argparse.Namespace) -> int:
    """Writes the table."""
    try:
        table = acpi_table(arguments.devices)
    except ValueError as error:
        raise XenvirtError(str(error)) from error
    arguments.output.write_bytes(table)
    return 0
