"""What hangs on the buses of `hardware`: targets that answer so that a test can tell every byte."""

import errno
import struct
from collections.abc import Sequence

from .hardware import Ioctl

I2C_FUNCS, I2C_SLAVE, I2C_RDWR = 0x0705, 0x0703, 0x0707
I2C_FUNC_I2C = 1


class I2cMemory:
    """An EEPROM of 256 bytes that count down. A write sets the place and stores the rest; a read goes on."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.content = bytearray(255 - place for place in range(256))
        self._place = 0

    def __call__(self, asked: Ioctl) -> Sequence[bytes] | int:
        if asked.number == I2C_FUNCS:
            return [struct.pack("=Q", I2C_FUNC_I2C)]
        if asked.number == I2C_SLAVE:
            return 0
        if asked.number != I2C_RDWR:
            return -errno.ENOTTY
        answer = []
        for part in asked.parts:
            if part.address != self.address:
                return -errno.ENXIO
            if part.is_read:
                answer.append(bytes(self._next() for _ in part.data))
            else:
                self._place = part.data[0]
                for value in part.data[1:]:
                    self.content[self._place] = value
                    self._place = (self._place + 1) % 256
        return answer

    def _next(self) -> int:
        value = self.content[self._place]
        self._place = (self._place + 1) % 256
        return value


class SpiInverter:
    """An SPI target that answers each byte with its complement, and counts up where nothing is sent.

    The controller takes 8 bits a word, modes 0 to 3, and no more than `max_speed` Hz.
    """

    max_speed = 25_000_000
    _MESSAGE, _MODE, _BITS, _SPEED, _MODE32 = 0, 1, 3, 4, 5

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        """What came with each transfer."""
        self._settings = {self._MODE: b"\0", self._BITS: b"\x08", self._SPEED: b"", self._MODE32: bytes(4)}
        self._settings[self._SPEED] = struct.pack("=I", self.max_speed)

    def __call__(self, asked: Ioctl) -> Sequence[bytes] | int:
        kind = asked.number & 0xFF
        if kind == self._MESSAGE:
            return self._transfer(asked)
        if kind not in self._settings:
            return -errno.ENOTTY
        (part,) = asked.parts
        if part.is_read:
            return [self._settings[kind]]
        if kind == self._BITS and part.data not in (b"\0", b"\x08"):
            return -errno.EINVAL
        self._settings[kind] = part.data
        if kind == self._MODE32:  # Linux drops what the controller cannot, such as two or four data lines
            self._settings[kind] = bytes([part.data[0] & 3, 0, 0, 0])
        if kind == self._SPEED:
            (speed,) = struct.unpack("=I", part.data)
            self._settings[kind] = struct.pack("=I", min(speed or self.max_speed, self.max_speed))
        return 0

    def _transfer(self, asked: Ioctl) -> Sequence[bytes]:
        sent = {part.address: part.data for part in asked.parts if not part.is_read}
        self.sent += sent.values()
        return [
            bytes(~value & 0xFF for value in sent[part.address])
            if part.address in sent
            else bytes(place % 256 for place in range(len(part.data)))
            for part in asked.parts
            if part.is_read
        ]


class Keyboard:
    """An input device: a name, an identity, and the keys that it has."""

    name = b"keyboard of the tests\0"
    identity = (0x03, 0x1234, 0x5678, 0x0111)
    """Bus, vendor, product, version."""
    events = 1 << 0 | 1 << 1
    """EV_SYN and EV_KEY."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = sum(1 << key for key in keys)

    def __call__(self, asked: Ioctl) -> Sequence[bytes] | int:
        (part,) = asked.parts
        answers = {
            0x01: struct.pack("=i", 0x010001),  # EVIOCGVERSION
            0x02: struct.pack("=4H", *self.identity),  # EVIOCGID
            0x06: self.name,  # EVIOCGNAME
            0x07: b"\0",  # EVIOCGPHYS
            0x08: b"\0",  # EVIOCGUNIQ
            0x09: bytes(1),  # EVIOCGPROP
            0x20: self.events.to_bytes(4, "little"),  # EVIOCGBIT(0)
            0x21: self.keys.to_bytes(96, "little"),  # EVIOCGBIT(EV_KEY)
        }
        answer = answers.get(asked.number & 0xFF)
        return -errno.ENOTTY if answer is None else [answer[: len(part.data)]]
