"""Serving the virtio devices of Xen guests as the toolstack announces them: what ``xenvirt attach`` does.

General layout: `mapping` reads which backend serves which device; `backend` makes one (a Python class, a
daemon's socket, a daemon that is started); `attachment` is one served device, on a thread of its own;
`attacher` follows the xenstore and makes and ends attachments.
"""

from .attacher import Attacher
from .attachment import Attachment, Slot
from .mapping import Mapping, Rule

__all__ = ["Attacher", "Attachment", "Mapping", "Rule", "Slot"]
