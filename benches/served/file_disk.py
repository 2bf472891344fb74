"""An image as a disk: `file_disk.py SOCKET IMAGE (python|native)`."""

import sys

from xenvirt import VhostUserSocket, serve
from xenvirt.devices import BlockDevice, NativeBlockDevice

if __name__ == "__main__":
    make = NativeBlockDevice if sys.argv[3] == "native" else BlockDevice
    with make(sys.argv[2]) as disk:
        serve(disk, VhostUserSocket(sys.argv[1]))
