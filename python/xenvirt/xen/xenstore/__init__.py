"""The xenstore: the small tree of values by which Xen's tools, domains and backends tell each other things.

General layout: `wire` (messages), `paths`, `permissions`, `operations` (requests and what is made of replies)
and `protocol` (one connection) do no input or output. `connection` opens it; `store`, `nodes`, `transaction`
and `watch` are blocking, those with ``async_`` are for asyncio; `events` and `replay` are shared by both.

The protocol is in Xen's docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h.
"""

from xenvirt.errors import XenStoreError

from .async_store import AsyncXenStore
from .async_transaction import AsyncTransaction
from .async_watch import AsyncWatch
from .events import WatchEvent
from .permissions import Access, Permission
from .store import XenStore
from .transaction import Transaction
from .watch import Watch

__all__ = [
    "Access",
    "AsyncTransaction",
    "AsyncWatch",
    "AsyncXenStore",
    "Permission",
    "Transaction",
    "Watch",
    "WatchEvent",
    "XenStore",
    "XenStoreError",
]
