"""How rust-vmm's daemons are started, each with what it wants of the host."""

from collections.abc import Mapping
from pathlib import Path

from xenvirt import Daemon

from . import crates
from .crates import Crate
from .hardware import Hardware, Stream


def rng(crate: Crate = crates.RNG) -> Daemon:
    """Entropy; `crates.RNG_XEN` for the one with XEN_MMAP."""
    return _numbered(crate, "--socket-path={socket}")


def vsock(crate: Crate = crates.VSOCK, *, guest_cid: int = 3) -> Daemon:
    """Streams between the driver and Unix sockets: the host's end is `daemon.dir + "/vm.vsock"`."""
    return Daemon(crate.program, "--vm", f"guest-cid={guest_cid},socket={{socket}},uds-path={{dir}}/vm.vsock")


def console(crate: Crate = crates.CONSOLE, *, tcp_port: int) -> Daemon:
    """A console whose other end is a TCP connection to `tcp_port` of 127.0.0.1."""
    return _numbered(crate, "--socket-path={socket}", "--backend=network", f"--tcp-port={tcp_port}")


def scsi(image: Path, *, read_only: bool = False) -> Daemon:
    """A disk on a SCSI bus. It quits when its frontend goes."""
    options = ["--read-only"] if read_only else []
    return Daemon(crates.SCSI.program, *options, "--socket-path={socket}", image)


def sound() -> Daemon:
    """Sound that nobody hears."""
    return Daemon(crates.SOUND.program, "--socket={socket}", "--backend=null")


def i2c(hardware: Hardware, *, address: int) -> Daemon:
    """One target of an I2C bus; hardware is for instance `I2cMemory(address)`."""
    hardware.file("/sys/bus/i2c/devices/i2c-0/name", "played by a test\n")
    hardware.file("/dev/i2c-0")
    target = f"--device-list=played by a test:{address}"
    return _numbered(crates.I2C, "--socket-path={socket}", target, env=hardware.environment)


def spi(hardware: Hardware) -> Daemon:
    """One SPI target; hardware is for instance `SpiInverter()`."""
    hardware.file("/dev/spidev0.0")
    options = ["--socket-path={socket}", "--device=/dev/spidev0.0"]
    return _numbered(crates.SPI, *options, env=hardware.environment)


def can(hardware: Hardware) -> tuple[Daemon, Stream]:
    """A CAN bus, and the frames on it (struct can_frame and canfd_frame of linux/can.h)."""
    bus = hardware.stream("can")
    options = ["--socket-path={socket}", "--can-devices=lo"]  # any interface that is there
    return _numbered(crates.CAN, *options, env=hardware.environment), bus


def input_device(hardware: Hardware) -> tuple[Daemon, Stream]:
    """An input device, and its events (struct input_event of linux/input.h); hardware: say, `Keyboard()`."""
    events = hardware.stream("/dev/input/event0")
    options = ["--socket-path={socket}", "--event-list=/dev/input/event0"]
    return _numbered(crates.INPUT, *options, env=hardware.environment), events


def _numbered(crate: Crate, *options: str, env: Mapping[str, str] | None = None) -> Daemon:
    return Daemon(crate.program, *options, socket_suffix="0", env=env)
