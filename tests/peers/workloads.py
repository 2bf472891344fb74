"""What guests do to a disk, as scripts; and what the host then finds in its image."""

import hashlib
import subprocess
from pathlib import Path

from .guests import Outcome
from .initramfs import find_program

MiB = 1 << 20

FEATURES = """
for device in /sys/bus/virtio/devices/*; do
    result features-$(printf %d $(cat $device/device)) $(cat $device/features)
done
"""
"""Says the negotiated features of each virtio device, by its device id: `outcome.features("features-2")`."""

FILESYSTEM = """
await /dev/vda
/programs/mke2fs -q -F -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom bs=64k count=1024 2>/dev/null | tee /mnt/data | sha256sum > /tmp/sum
result written $(cut -d ' ' -f 1 /tmp/sum)
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vda /mnt
result size $(stat -c %s /mnt/data)
result read $(sha256sum /mnt/data | cut -d ' ' -f 1)
umount /mnt
"""
"""Makes ext4 and writes 64 MiB of random bytes there; wants the program mke2fs and `FILESYSTEM_MODULES`."""

FILESYSTEM_MODULES = ("virtio_blk", "ext4", "crc32c_generic")


def check_filesystem(outcome: Outcome, image: Path) -> None:
    """Asserts that the image has what `FILESYSTEM` wrote: the same bytes, the file system without a fault."""
    assert int(outcome.one("size")) == 64 * MiB
    assert outcome.one("read") == outcome.one("written")
    check = subprocess.run(
        [find_program("e2fsck"), "-fn", image], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr
    copy = image.with_suffix(".data")
    dump = [str(find_program("debugfs")), "-R", f"dump /data {copy}", str(image)]
    subprocess.run(dump, check=True, capture_output=True)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == outcome.one("written")


def new_image(path: Path, size: int) -> Path:
    """Makes a raw image of zeroes, without holding the space."""
    with path.open("wb") as image:
        image.truncate(size)
    return path
