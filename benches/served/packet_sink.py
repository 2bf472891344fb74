"""A network device that counts packets and drops them: `packet_sink.py SOCKET POLL`.

It says how many there were when the driver leaves.
"""

import sys

from xenvirt import Device, DeviceId, VhostUserSocket, VirtQueue, serve
from xenvirt.virtio.net import NetConfig, NetFeature


class PacketSink(Device):
    """Takes what the driver transmits, and gives it nothing to receive."""

    device_id = DeviceId.NET
    queue_sizes = (256, 256)
    features = NetFeature.MAC | NetFeature.MRG_RXBUF
    config = NetConfig(mac=bytes.fromhex("525400000001"))

    def __init__(self) -> None:
        self.packets = 0

    def reset(self) -> None:
        """The driver is gone."""
        print(f"packets: {self.packets}", flush=True)

    def process(self, queue: VirtQueue) -> None:
        """Counts by the batch."""
        if queue.index == 0:
            return  # buffers to receive into; we leave them
        while batch := queue.pop_batch():
            self.packets += len(batch)
            batch.complete()


if __name__ == "__main__":
    serve(PacketSink(), VhostUserSocket(sys.argv[1]), poll=float(sys.argv[2]))
