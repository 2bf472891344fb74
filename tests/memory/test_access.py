"""Reading and writing guest memory: which ranges are allowed, and what buffers are taken."""

import array
import ctypes

import pytest

from xenvirt.errors import GuestAddressError, MemoryTableError, ReadOnlyMemoryError
from xenvirt.memory import FileRegion, GuestMemory

from .conftest import PAGE, MakeMemfd, MakeMemory


def test_what_was_written_is_read(make_memory: MakeMemory) -> None:
    memory = make_memory((0x1000, PAGE))
    assert memory.write(0x1010, b"hello") == 5
    assert memory.read(0x1010, 5) == b"hello"
    buffer = bytearray(7)
    assert memory.readinto(0x100F, buffer) == 7
    assert buffer == b"\0hello\0"


def test_two_mappings_of_a_file_show_the_same_bytes(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    one, other = (GuestMemory([FileRegion(fd, address, PAGE)]) for address in (0, 1 << 40))
    one.write(8, b"seen")
    assert other.read((1 << 40) + 8, 4) == b"seen"


def test_a_range_crosses_adjacent_regions(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE))
    data = bytes(n % 251 for n in range(PAGE + 20))
    memory.write(PAGE - 10, data)
    assert memory.read(PAGE - 10, len(data)) == data
    assert memory.read(2 * PAGE, 10) == data[-10:]


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (PAGE - 4, 8),  # ends in a hole
        (PAGE - 4, 2 * PAGE),  # spans a hole
        (3 * PAGE - 4, 8),  # ends behind the last region
        (PAGE + 4, 8),  # lies in a hole
        (2 * PAGE - 4, 8),  # begins in a hole
        (2**64 - 4, 4),  # lies far outside
        (2**64 - 4, 8),  # wraps
        (0, 2**62),  # larger than can be
    ],
)
def test_a_range_outside_is_refused_before_a_byte_is_copied(
    make_memory: MakeMemory, address: int, size: int
) -> None:
    memory = make_memory((0, PAGE), (2 * PAGE, PAGE))
    with pytest.raises(GuestAddressError, match=r"is not in the memory table \(0x0\.\.\+"):
        memory.read(address, size)
    with pytest.raises(GuestAddressError):
        memory.view(address, size)
    if size <= 2 * PAGE:
        with pytest.raises(GuestAddressError):
            memory.write(address, b"x" * size)
        assert not any(memory.read(0, PAGE) + memory.read(2 * PAGE, PAGE))
        buffer = bytearray(b"y" * size)
        with pytest.raises(GuestAddressError):
            memory.readinto(address, buffer)
        assert buffer == b"y" * size


def test_a_range_does_not_go_on_at_zero(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE), (2**64 - PAGE, PAGE))
    memory.write(2**64 - 1, b"z")
    assert memory.read(2**64 - 1, 1) == b"z"
    with pytest.raises(GuestAddressError):
        memory.read(2**64 - 1, 2)


@pytest.mark.parametrize("address", [0, PAGE, PAGE + 1, 2**64 - 1])
def test_an_empty_range_is_allowed_anywhere(make_memory: MakeMemory, address: int) -> None:
    for memory in (make_memory((0, PAGE)), GuestMemory()):
        assert memory.read(address, 0) == b""
        assert memory.readinto(address, bytearray()) == 0
        assert memory.write(address, b"") == 0
        assert bytes(memory.view(address, 0)) == b""


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_that_is_no_address_or_size_is_an_overflow(make_memory: MakeMemory, number: int) -> None:
    memory = make_memory((0, PAGE))
    with pytest.raises(OverflowError):
        memory.read(number, 1)
    with pytest.raises(OverflowError):
        memory.read(0, number)


@pytest.mark.parametrize(
    "data",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"0123456789")[1:9],
        array.array("I", [0x34333231, 0x38373635]),
        memoryview(bytearray(b"12345678")).cast("B", (2, 4)),
        (ctypes.c_uint16 * 4)(0x3231, 0x3433, 0x3635, 0x3837),
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "array of I", "two dimensions", "ctypes"],
)
def test_any_contiguous_buffer_is_written(
    make_memory: MakeMemory, data: "bytes | bytearray | memoryview | array.array[int]"
) -> None:
    memory = make_memory((0, PAGE))
    assert memory.write(0, data) == 8
    assert memory.read(0, 9) == (b"12345678\0" if bytes(data)[0:1] == b"1" else bytes(data) + b"\0")


def test_wide_and_shaped_buffers_are_filled(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    memory.write(0, b"12345678")
    words = array.array("I", [0, 0])
    assert memory.readinto(0, words) == 8
    assert list(words) == [0x34333231, 0x38373635]
    numbers = (ctypes.c_uint16 * 4)()
    assert memory.readinto(0, numbers) == 8
    assert list(numbers) == [0x3231, 0x3433, 0x3635, 0x3837]


def test_memory_is_copied_within_itself_through_a_view(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    memory.write(0, bytes(range(100)))
    memory.write(10, memory.view(0, 90))
    assert memory.read(10, 90) == bytes(range(90)), "as if by a copy in between"


def test_a_buffer_that_cannot_be_filled_says_why(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    with pytest.raises(
        TypeError, match=r"a writable bytes-like object .* is required, not 'bytes', which is read-only"
    ):
        memory.readinto(0, b"12345678")
    with pytest.raises(TypeError, match="read-only"):
        memory.readinto(0, memoryview(bytearray(8)).toreadonly())
    with pytest.raises(TypeError, match="not 'int', which is none"):
        memory.readinto(0, 8)  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="side by side"):
        memory.readinto(0, memoryview(bytearray(8))[::2])


def test_a_buffer_that_cannot_be_written_says_why(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    with pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"):
        memory.write(0, "text")  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="side by side"):
        memory.write(0, memoryview(b"12345678")[::2])


def test_a_buffer_of_python_objects_is_refused(make_memory: MakeMemory) -> None:
    """A guest's bytes must not become references."""
    memory = make_memory((0, PAGE))
    objects = (ctypes.py_object * 2)()

    class Fields(ctypes.Structure):
        _fields_ = (("number", ctypes.c_int64), ("thing", ctypes.py_object))

    for holder in (objects, Fields()):
        assert "O" in memoryview(holder).format
        with pytest.raises(TypeError, match="which holds Python objects"):
            memory.readinto(0, holder)
        with pytest.raises(TypeError, match="which holds Python objects"):
            memory.write(0, holder)


def test_a_field_whose_name_has_an_o_is_no_object(make_memory: MakeMemory) -> None:
    class Fields(ctypes.Structure):
        _fields_ = (("O", ctypes.c_uint8), ("TO", ctypes.c_uint8))

    memory = make_memory((0, PAGE))
    memory.write(0, b"\1\2")
    fields = Fields()
    assert "O" in memoryview(fields).format
    assert memory.readinto(0, fields) == 2
    assert fields.TO == 2


def test_a_read_only_region_is_read_and_not_written(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    memory = GuestMemory([FileRegion(fd, 0, PAGE), FileRegion(fd, PAGE, PAGE, writable=False)])
    memory.write(0, b"text")
    assert memory.read(PAGE, 4) == b"text"
    with pytest.raises(ReadOnlyMemoryError, match="is read-only"):
        memory.write(PAGE - 2, b"12345")
    assert memory.read(PAGE - 2, 2) == b"\0\0", "all or nothing"
    assert memory.view(PAGE, 4).readonly
    with pytest.raises(TypeError, match="read-only"):
        memoryview(memory.view(PAGE, 4))[0] = 1
    with pytest.raises(ReadOnlyMemoryError):
        memory.view(PAGE, 4, writable=True)
    assert memory.view(0, 4, writable=False).readonly


def test_regions_say_what_they_are(memfd: MakeMemfd) -> None:
    fd = memfd(PAGE)
    high = FileRegion(fd, 1 << 32, PAGE, user_address=0x7F0000000000, writable=False)
    low = FileRegion(fd, 0x4000, PAGE)
    memory = GuestMemory([high, low])
    first, second = memory.regions
    assert (first.guest_address, first.size, first.user_address) == (0x4000, PAGE, 0x4000)
    assert (second.guest_address, second.user_address) == (1 << 32, 0x7F0000000000)
    assert (first.writable, second.writable, first.kind) == (True, False, "file")
    assert repr(second) == (
        f"<FileRegion of {PAGE:#x} bytes at guest 0x100000000, user 0x7f0000000000, file, read-only>"
    )
    assert memory.user_to_guest(0x7F0000000010) == (1 << 32) + 0x10
    with pytest.raises(GuestAddressError, match="user address 0x10 is in no region"):
        memory.user_to_guest(0x10)


def test_regions_that_overlap_or_wrap_are_refused(memfd: MakeMemfd) -> None:
    fd = memfd(2 * PAGE)
    with pytest.raises(MemoryTableError, match="overlap"):
        GuestMemory([FileRegion(fd, 0, 2 * PAGE), FileRegion(fd, PAGE, PAGE)])
    with pytest.raises(MemoryTableError, match="wraps"):
        GuestMemory([FileRegion(fd, 2**64 - PAGE + 1, PAGE)])
    memory = GuestMemory([FileRegion(fd, 0, PAGE)])
    with pytest.raises(MemoryTableError):
        memory.replace([FileRegion(fd, 0, PAGE), FileRegion(fd, 1, PAGE)])
    assert memory.regions[0].size == PAGE, "the old table stays"
    with pytest.raises(TypeError):
        memory.replace([b"no region"])  # type: ignore[list-item]


def test_closed_memory_refuses_everything(make_memory: MakeMemory) -> None:
    memory = make_memory((0, PAGE))
    memory.close()
    memory.close()
    assert memory.closed
    for use in (
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b""),
        lambda: memory.readinto(0, bytearray(1)),
        lambda: memory.view(0, 1),
        lambda: memory.regions,
        lambda: memory.replace([]),
        lambda: memory.user_to_guest(0),
    ):
        with pytest.raises(ValueError, match="guest memory is closed"):
            use()
