"""A disk that reads as zeroes and forgets what is written: `null_disk.py SOCKET POLL`."""

import sys

from xenvirt import Device, DeviceId, VhostUserSocket, VirtQueue, serve
from xenvirt.virtio.block import BlockConfig, BlockFeature, RequestHeader, RequestType, Status


class NullDisk(Device):
    """1 GiB of nothing."""

    device_id = DeviceId.BLOCK
    queue_sizes = (256,)
    features = BlockFeature.SEG_MAX | BlockFeature.FLUSH
    config = BlockConfig(capacity=(1 << 30) // 512, seg_max=126)

    def process(self, queue: VirtQueue) -> None:
        """Answers each request by its type."""
        while batch := queue.pop_batch(header=RequestHeader, trailer=1):
            for kind, requests in batch.group_by("type"):
                match kind:
                    case RequestType.IN:
                        requests.write_zeroes()
                        requests.write_trailer(Status.OK)
                    case RequestType.OUT | RequestType.FLUSH:
                        requests.write_trailer(Status.OK)
                    case _:
                        requests.write_trailer(Status.UNSUPP)
            batch.complete()


if __name__ == "__main__":
    serve(NullDisk(), VhostUserSocket(sys.argv[1]), poll=float(sys.argv[2]))
