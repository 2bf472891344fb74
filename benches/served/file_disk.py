"""An image as a disk: `file_disk.py SOCKET IMAGE`."""

import sys

from xenvirt import VhostUserSocket, serve
from xenvirt.devices.block import BlockDevice

if __name__ == "__main__":
    with BlockDevice(sys.argv[2]) as disk:
        serve(disk, VhostUserSocket(sys.argv[1]))
