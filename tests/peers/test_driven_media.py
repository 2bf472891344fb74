"""Our drivers of SCSI and sound, with rust-vmm's daemons.

Each does its one useful thing, and so does a second client.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from xenvirt import connect, connect_async
from xenvirt.drivers import AsyncScsiDriver, AsyncSoundDriver, ScsiDriver, SoundDriver
from xenvirt.drivers.sound import formats_of, is_playback, rates_of
from xenvirt.errors import (
    CheckConditionError,
    RequestFailedError,
)
from xenvirt.virtio.sense import SenseKey
from xenvirt.virtio.sound import Format, Rate

from . import crates, rust_vmm
from .conftest import need
from .workloads import MiB, new_image

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _built() -> None:
    for crate in (crates.SCSI, crates.SOUND):
        need(crate.program.exists(), f"{crate.name} {crate.version}")


# ---- SCSI


def test_the_scsi_driver_reads_and_writes_a_disk(tmp_path: Path) -> None:
    image = new_image(tmp_path / "disk", 4 * MiB)
    content = os.urandom(MiB + 512)
    with rust_vmm.scsi(image) as daemon:
        with connect(daemon.socket, timeout=PATIENCE) as link, ScsiDriver(link) as scsi:
            scsi.test_unit_ready()
            said = scsi.inquiry()
            assert (said.device_type, said.vendor) == (0, "rust-vmm")
            assert scsi.read_capacity().size == 4 * MiB
            scsi.write(3, content)
            scsi.synchronize_cache()
            assert scsi.read(3, len(content) // 512) == content
            with pytest.raises(CheckConditionError, match="logical block address out of range") as caught:
                scsi.read(4 * MiB // 512, 1)
            assert caught.value.key == SenseKey.ILLEGAL_REQUEST
            with pytest.raises(CheckConditionError, match="invalid command operation code"):
                scsi.read(1 << 32, 1)  # READ(16), which it does not know
            with pytest.raises(RequestFailedError, match=r"target 1, unit 0.*BAD_TARGET"):
                scsi.test_unit_ready(target=1)
        assert daemon.wait() == 0, "it serves one client and quits"
    assert image.read_bytes()[3 * 512 :][: len(content)] == content
    with (
        rust_vmm.scsi(image, read_only=True) as daemon,
        connect(daemon.socket, timeout=PATIENCE) as link,
        ScsiDriver(link) as scsi,
    ):
        assert scsi.read(3, 8) == content[:4096], "a second client"


# ---- sound


def test_the_sound_driver_plays_on_a_device_that_nobody_hears() -> None:
    with rust_vmm.sound() as daemon:
        for _ in range(2):
            with connect(daemon.socket, timeout=PATIENCE) as link, SoundDriver(link) as sound:
                out, back = sound.streams()
                assert (is_playback(out), is_playback(back)) == (True, False)
                assert Format.S16 in formats_of(out)
                assert Rate.HZ_48000 in rates_of(out)
                sound.play(0, bytes(range(256)) * 1024, rate=Rate.HZ_48000, format=Format.S16, channels=2)
                with pytest.raises(RequestFailedError, match=r"PCM_START of stream 2: .*BAD_MSG"):
                    sound.start(2)


# ---- asyncio
def test_asyncio_uses_a_disk_and_plays_sound(tmp_path: Path) -> None:
    content = os.urandom(MiB)

    async def disk(socket: str) -> None:
        async with await connect_async(socket, timeout=PATIENCE) as link, AsyncScsiDriver(link) as scsi:
            await scsi.write(8, content)
            assert await scsi.read(8, MiB // 512) == content

    async def play(socket: str) -> None:
        async with await connect_async(socket, timeout=PATIENCE) as link, AsyncSoundDriver(link) as sound:
            assert len(await sound.streams()) == 2
            await sound.play(0, bytes(MiB), rate=Rate.HZ_44100, format=Format.S16, channels=2)

    with rust_vmm.scsi(new_image(tmp_path / "disk", 4 * MiB)) as daemon:
        asyncio.run(disk(daemon.socket))
        assert daemon.wait() == 0
    with rust_vmm.sound() as daemon:
        asyncio.run(play(daemon.socket))
