"""A raw image frees and zeroes ranges, and cannot be written by two."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest

from xenvirt.devices import RawImage, image


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(b"\xaa" * (1 << 20))
    return made


def test_a_discarded_range_reads_as_zeroes_and_is_freed(path: Path) -> None:
    with RawImage(path) as disk:
        before = path.stat().st_blocks
        disk.discard(65536, 65536)
    data = path.read_bytes()
    assert data[65536:131072] == bytes(65536)
    assert data.count(0xAA) == (1 << 20) - 65536
    assert path.stat().st_blocks < before


@pytest.mark.parametrize("unmap", [False, True])
def test_a_zeroed_range_reads_as_zeroes_at_any_byte(path: Path, unmap: bool) -> None:
    with RawImage(path) as disk:
        disk.write_zeroes(1000, 5000, unmap=unmap)
    data = path.read_bytes()
    assert data == b"\xaa" * 1000 + bytes(5000) + b"\xaa" * ((1 << 20) - 6000)


def test_storage_that_cannot_zero_gets_zeroes_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RawImage, "_allocate", lambda *_: False)
    monkeypatch.setattr(image, "ZERO_CHUNK", 1024)
    with RawImage(path) as disk:
        disk.write_zeroes(100, 5000, unmap=True)
        disk.discard(0, 100)
    assert path.read_bytes()[:6000] == b"\xaa" * 100 + bytes(5000) + b"\xaa" * 900


def test_a_failure_of_the_storage_is_told(path: Path) -> None:
    with (
        RawImage(path, read_only=True) as disk,
        pytest.raises(OSError, match="Bad file descriptor") as caught,
    ):
        disk.discard(0, 512)
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == str(path)


def test_two_may_read_and_only_one_may_write(path: Path) -> None:
    with (
        RawImage(path, read_only=True),
        RawImage(path, read_only=True),
        pytest.raises(BlockingIOError, match="is used"),
    ):
        RawImage(path)
    with RawImage(path), pytest.raises(BlockingIOError, match=r"is used by another device.*disk\.raw"):
        RawImage(path, read_only=True)
    RawImage(path).close()


@pytest.mark.parametrize("size", [0, 511])
def test_less_than_a_sector_is_no_disk(path: Path, size: int) -> None:
    os.truncate(path, size)
    with pytest.raises(
        ValueError, match=rf"disk.raw has {size} bytes; a disk has at least one sector of 512"
    ):
        RawImage(path)
    gc.collect()


def test_something_else_than_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="/dev/null is neither a file nor a block device"):
        RawImage("/dev/null")


def test_a_missing_image_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RawImage(tmp_path / "none")


def test_an_image_grows_and_shrinks(path: Path) -> None:
    with RawImage(path) as disk:
        disk.resize(4096)
        assert (disk.size, path.stat().st_size) == (4096, 4096)
