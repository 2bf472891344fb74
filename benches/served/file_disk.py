"""An image as a disk: `file_disk.py SOCKET IMAGE python|native`."""

import sys

from xenvirt import VhostUserSocket, serve
from xenvirt.devices import BlockDevice, NativeBlockDevice

DISKS: dict[str, type[BlockDevice]] = {"python": BlockDevice, "native": NativeBlockDevice}

if __name__ == "__main__":
    with DISKS[sys.argv[3]](sys.argv[2]) as disk:
        serve(disk, VhostUserSocket(sys.argv[1]))
