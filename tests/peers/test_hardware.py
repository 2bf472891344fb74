"""The shim, with a Python process in the place of the daemon."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from .hardware import Hardware, Ioctl

SPI_IOC_RD_MAX_SPEED_HZ = 0x80046B04


def run(hardware: Hardware, program: str) -> str:
    """What the program prints."""
    environment = {**os.environ, **hardware.environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_an_ioctl_is_recorded_and_answered(hardware: Callable[..., Hardware]) -> None:
    def answer(_: Ioctl) -> Sequence[bytes]:
        return [b"\x11\x22\x33\x44"]

    played = hardware(answer)
    played.file("/dev/spidev7.3")
    said = run(
        played,
        f"""
import fcntl
buffer = bytearray(b"\\xa5" * 4)
with open("/dev/spidev7.3", "r+b") as device:
    fcntl.ioctl(device, {SPI_IOC_RD_MAX_SPEED_HZ}, buffer)
print(buffer.hex())
""",
    )
    assert said == "11223344"
    (asked,) = played.ioctls
    assert asked.number == SPI_IOC_RD_MAX_SPEED_HZ
    assert [(part.is_read, part.data) for part in asked.parts] == [(True, b"\xa5" * 4)]


def test_messages_of_i2c_are_taken_apart(hardware: Callable[..., Hardware]) -> None:
    played = hardware(lambda asked: [b"xyz"] if len(asked.parts) == 2 else -5)
    played.file("/dev/i2c-9")
    said = run(
        played,
        """
import ctypes, fcntl
class Message(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint16) for name in ("addr", "flags", "len")] + [("buf", ctypes.c_void_p)]
class Transfer(ctypes.Structure):
    _fields_ = [("messages", ctypes.POINTER(Message)), ("count", ctypes.c_uint32)]
register, answer = ctypes.create_string_buffer(b"r", 1), ctypes.create_string_buffer(b"???", 3)
messages = (Message * 2)(
    Message(0x50, 0, 1, ctypes.addressof(register)), Message(0x50, 1, 3, ctypes.addressof(answer))
)
with open("/dev/i2c-9", "r+b", buffering=0) as device:
    fcntl.ioctl(device, 0x0707, Transfer(messages, 2))
    print(answer.raw)
    try:
        fcntl.ioctl(device, 0x0707, Transfer(messages, 1))
    except OSError as error:
        print(error.errno)
""",
    )
    assert said.split() == ["b'xyz'", "5"]
    assert [(part.address, part.is_read, part.data) for part in played.ioctls[0].parts] == [
        (0x50, False, b"r"),
        (0x50, True, b"???"),
    ]


def test_a_stream_goes_both_ways(hardware: Callable[..., Hardware]) -> None:
    played = hardware()
    stream, can = played.stream("/dev/input/event3"), played.stream("can")
    program = """
import os, socket
fd = os.open("/dev/input/event3", os.O_RDWR)
os.write(fd, b"led")
print(os.read(fd, 100).decode())
with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as bus:
    bus.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
    bus.bind(("lo",))
    bus.send(b"frame")
"""
    environment = {**os.environ, **played.environment}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE
    ) as process:
        stream.send(b"key")
        assert process.communicate(timeout=30)[0] == b"key\n"
    assert process.returncode == 0
    assert stream.wait_for(1) == [b"led"]
    assert can.wait_for(1) == [b"frame"]
