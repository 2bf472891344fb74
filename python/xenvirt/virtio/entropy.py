"""The entropy device (virtio 1.3, section 5.4; Linux: virtio_rng.h).

It has no features, no configuration space and one queue, whose buffers are all written by the device: the
used length says how many random bytes a buffer got, at least one.
"""

from typing import Final

REQUEST_QUEUE: Final = 0
"""The only queue."""
