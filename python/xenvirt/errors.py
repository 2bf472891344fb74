"""Everything that xenvirt raises: one tree under :class:`XenvirtError`.

Where a builtin exception fits it is a base too, so that code which knows nothing of xenvirt handles it
rightly (``except TimeoutError``, ``except OSError``). A wrong argument is a plain ``TypeError`` or
``ValueError``, as everywhere in Python; the tree is for what the other side or the machine did.

::

    XenvirtError
    ├── GuestMemoryError
    │   ├── GuestAddressError       also IndexError
    │   ├── GuestMemoryFault        also OSError (EFAULT)
    │   ├── ReadOnlyMemoryError     also PermissionError (EACCES)
    │   ├── MemoryTableError        also ValueError
    │   ├── MapError                also OSError
    │   │   ├── ForeignMapError
    │   │   └── GrantMapError
    │   └── GrantCopyError          also OSError
    ├── QueueError
    │   ├── RingError
    │   ├── StaleChainError
    │   ├── QueueStoppedError
    │   └── QueueFullError
    ├── PeerError
    │   ├── ProtocolError
    │   ├── NegotiationError
    │   ├── RequestRefusedError
    │   ├── DisconnectedError       also ConnectionError
    │   └── LinkTimeoutError        also TimeoutError
    ├── DeviceFailedError
    ├── RequestError
    │   ├── RequestFailedError      also OSError (EIO)
    │   │   └── CheckConditionError
    │   ├── RequestUnsupportedError also OSError (EOPNOTSUPP)
    │   └── ResponseError
    ├── XenCallError                also OSError
    ├── DaemonError
    ├── LabError
    ├── XenStoreError               also OSError
    ├── VirtioNodeError             also ValueError
    ├── MappingError                also ValueError
    ├── BackendError
    └── ForkError                   also RuntimeError

Every constructor takes the message first and the attributes after it, by position, in the order in which the
class lists them; the attributes have defaults. ``str(error)`` is the message alone. Errors can be pickled.
"""

from __future__ import annotations

import errno as _errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xenvirt._native import CopyFailure, FrameFailure, GrantFailure


class XenvirtError(Exception):
    """The root of the tree: ``except XenvirtError`` catches all that xenvirt raises of its own.

    You do not get it for a wrong argument (``TypeError``, ``ValueError``), for a view that is still in use
    (``BufferError``), nor for a file or socket of yours that cannot be opened (``OSError``).
    """

    def __init__(self, message: str = "", *attributes: object) -> None:
        super().__init__(message)
        self._arguments = (message, *attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments, self.__dict__


# ---- guest memory


class GuestMemoryError(XenvirtError):
    """An access to guest memory, or a change of its table, could not be done. Raised as a subclass."""


class GuestAddressError(GuestMemoryError, IndexError):
    """The range does not lie in the memory table: it begins or ends outside, spans a hole, or wraps.

    Nothing of the range was read or written. You do not get it for an address that a driver put in a ring:
    that is a :class:`RingError`, because it is the driver's fault and stops its queue.
    """


class GuestMemoryFault(GuestMemoryError, OSError):  # noqa: N818
    """Memory that was mapped is gone: a memfd was truncated under us, a foreign page or its domain went away.

    The process lives, and the region is poisoned: it stays mapped, reads as zeroes, and every further access
    through xenvirt raises this again. Inside a memoryview or a NumPy array nothing can be raised: there you
    get zeroes, and this error from the end of the view. ``errno`` is EFAULT.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.errno = _errno.EFAULT


class ReadOnlyMemoryError(GuestMemoryError, PermissionError):
    """A write to memory that is mapped read-only. Nothing was written. ``errno`` is EACCES.

    You do not get it for a write into a chain's readable part; a chain only writes to its writable part.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.errno = _errno.EACCES


class MemoryTableError(GuestMemoryError, ValueError):
    """A memory table was refused: a region is empty, wraps, or overlaps another. The old one stays in force.

    Over vhost-user you get :class:`ProtocolError` instead, which closes the connection that sent the table.
    """


class MapError(GuestMemoryError, OSError):
    """The kernel refused to map something. Nothing stays mapped.

    Attributes:
        errno: why, as an ``errno`` number; 0 when it was refused before the kernel was asked (an impossible
            length).
    """

    def __init__(self, message: str = "", errno: int = 0) -> None:
        super().__init__(message, errno)
        self.errno = errno


class ForeignMapError(MapError):
    """Frames of another Xen domain could not be mapped. Nothing of the request stays mapped.

    You do not get it with ``partial=True`` for single frames: then the mapping has them as ``failures``.

    Attributes:
        errno: why; where single frames failed, why the first of them did.
        failures: every frame that failed, with ``index``, ``frame``, ``errno`` and ``reason``; empty where
            the call as a whole was refused.
    """

    def __init__(self, message: str = "", errno: int = 0, failures: tuple[FrameFailure, ...] = ()) -> None:
        super().__init__(message, errno)
        self._arguments = (message, errno, failures)
        self.failures = failures


class GrantMapError(MapError):
    """Pages that another Xen domain granted could not be mapped. Nothing of the request stays mapped.

    Attributes:
        errno: why; where single grants are bad, what the kernel says of the first of them. It says EINVAL for
            all that can be wrong with one: a reference that is not in use or granted to another domain, a
            domain that is not there, a page that is granted for reading and was to be written.
        failures: every bad grant, with ``index``, ``domid``, ``reference``, ``errno`` and ``reason``; empty
            where the request as a whole was refused.
    """

    def __init__(self, message: str = "", errno: int = 0, failures: tuple[GrantFailure, ...] = ()) -> None:
        super().__init__(message, errno)
        self._arguments = (message, errno, failures)
        self.failures = failures


class GrantCopyError(GuestMemoryError, OSError):
    """The hypervisor did not copy to or from pages that another domain granted. What lies in the pages that
    are not named may have been copied.

    Attributes:
        errno: the number that comes nearest to the status of the first page that was refused; the kernel's
            own where it refused the whole.
        failures: every page that was refused, with ``index``, ``domid``, ``reference``, ``status`` (GNTST_*,
            xen/include/public/grant_table.h), ``errno`` and ``reason``.
    """

    def __init__(self, message: str = "", errno: int = 0, failures: tuple[CopyFailure, ...] = ()) -> None:
        super().__init__(message, errno, failures)
        self.errno = errno
        self.failures = failures


# ---- queues


class QueueError(XenvirtError):
    """A queue could not do what was asked. Raised as one of its subclasses."""


class RingError(QueueError):
    """The other side broke a rule of the ring (virtio 1.3, section 2.7 for split rings).

    On the device side the queue is in its error state from then on, the driver is told by VRING_ERR where it
    listens, and each further ``pop`` raises this again until the queue is reset; other queues run on. On the
    driver side it says that the device wrote a used ring that cannot be.

    You do not get it for a request that is well-formed in the ring and wrong by the device's own rules (a
    sector beyond the end of the disk): that is the device's to answer. A chain that is too short for the
    header and trailer of ``pop_batch`` is a RingError, as in QEMU.

    Attributes:
        rule: the stable name of the broken rule, for instance ``"chain-length"``.
        queue: the index of the queue, or None where it is not known.
    """

    def __init__(self, message: str = "", rule: str = "", queue: int | None = None) -> None:
        super().__init__(message, rule, queue)
        self.rule = rule
        self.queue = queue


class StaleChainError(QueueError):
    """The chain belongs to a run of the queue that has ended: the driver reset it, or went away.

    Its buffers are not the device's any more, and nothing was written. A device that keeps chains drops them
    in ``reset``; one that completes them from another thread expects this error and forgets the chain.

    You do not get it for a chain that was completed before: that is a ``ValueError``, a mistake of the
    program.
    """


class QueueStoppedError(QueueError):
    """The queue does not run: it was never started, was stopped, or its link is closed.

    You do not get it from the device side's ``pop``, which finds nothing in a stopped queue and says so by
    ``None``.
    """


class QueueFullError(QueueError):
    """The driver's ring, or the memory of its buffers, has no room for one more request at this moment.

    Wait for a completion, then submit again. ``run`` never raises it: it waits. You get a ``ValueError``
    instead for a request that would not fit into the empty ring either.
    """


# ---- the peer


class PeerError(XenvirtError):
    """The program at the other end of the socket did, or left undone, something. Raised as one of its
    subclasses.
    """


class ProtocolError(PeerError):
    """The peer sent a message that is malformed or comes at the wrong time. That connection is closed, no
    other.

    In a server you find it in the log, not raised: the server waits for the next connection. You do not get
    it when the peer hangs up (:class:`DisconnectedError`), also not in the middle of a message.

    Attributes:
        request: the name of the message, for instance ``"SET_VRING_NUM"``; None where there was none to name.
    """

    def __init__(self, message: str = "", request: str | None = None) -> None:
        super().__init__(message, request)
        self.request = request


class NegotiationError(PeerError):
    """Both sides keep to the protocol, and cannot work together: one lacks a feature, a queue or a ring size
    that the other one needs. The message names it. Raised before anything runs."""


class RequestRefusedError(PeerError):
    """The peer understood a request and refused it: it answered REPLY_ACK with something other than 0.

    Without REPLY_ACK a peer can only hang up, and you get :class:`DisconnectedError`.

    Attributes:
        request: the name of the refused request.
        code: what the peer answered.
    """

    def __init__(self, message: str = "", request: str | None = None, code: int = 0) -> None:
        super().__init__(message, request, code)
        self.request = request
        self.code = code


class DisconnectedError(PeerError, ConnectionError):
    """The peer hung up while something was asked of it, or never let us connect.

    You do not get it when you closed the link yourself: a closed link raises :class:`QueueStoppedError`. Many
    backends hang up instead of answering what they do not like; the message names the request that was sent
    last.
    """


class LinkTimeoutError(PeerError, TimeoutError):
    """The peer did not answer within the link's timeout (``connect(..., timeout=...)``, in seconds).

    The peer lives, as far as one can see. What was asked may still happen: after a timed-out write the
    sectors may be written or not.
    """


# ---- device and driver


class DeviceFailedError(XenvirtError):
    """The device at the other end stopped working: its ``process`` raised, or it signalled VRING_ERR or
    NEEDS_RESET.

    In process the device's own exception is the ``__cause__``. You do not get it for a request that the
    device answers with an error status (:class:`RequestError`).

    Attributes:
        queue: the index of the queue that stopped, or None for the whole device.
    """

    def __init__(self, message: str = "", queue: int | None = None) -> None:
        super().__init__(message, queue)
        self.queue = queue


class RequestError(XenvirtError):
    """A driver's request came back from the device, and not with success. Raised as one of its subclasses.

    Attributes:
        status: the status that the device gave, in the device type's own numbers; -1 where it gave none.
    """

    def __init__(self, message: str = "", status: int = -1) -> None:
        super().__init__(message, status)
        self.status = int(status)


class RequestFailedError(RequestError, OSError):
    """The device tried, and reports an error (for a block device VIRTIO_BLK_S_IOERR). ``errno`` is EIO."""

    def __init__(self, message: str = "", status: int = -1) -> None:
        super().__init__(message, status)
        self.errno = _errno.EIO


class CheckConditionError(RequestFailedError):
    """A SCSI unit answered CHECK CONDITION: the command reached it, and it says what is wrong by sense data.

    You do not get it when the host did not get as far as the unit (no such target, for instance): that is a
    plain :class:`RequestFailedError` with the host's own status.

    Attributes:
        key: the sense key, a :class:`~xenvirt.virtio.sense.SenseKey`; -1 where the unit gave no sense data.
        asc: the additional sense code.
        ascq: its qualifier.
    """

    def __init__(
        self, message: str = "", status: int = -1, key: int = -1, asc: int = 0, ascq: int = 0
    ) -> None:
        super().__init__(message, status)
        self._arguments = (message, status, key, asc, ascq)
        self.key, self.asc, self.ascq = key, asc, ascq


class RequestUnsupportedError(RequestError, OSError):
    """The device does not know this request (for a block device VIRTIO_BLK_S_UNSUPP). ``errno`` is
    EOPNOTSUPP.

    A driver raises it also without asking the device, when the feature that the request needs was not
    negotiated.
    """

    def __init__(self, message: str = "", status: int = -1) -> None:
        super().__init__(message, status)
        self.errno = _errno.EOPNOTSUPP


class ResponseError(RequestError):
    """The device's answer makes no sense: too short, too long, or a status that the specification does not
    have.
    """


# ---- Xen


class XenCallError(XenvirtError, OSError):
    """Xen, or the kernel on the way to it, refused a call: an event channel, a device model operation, a
    buffer for hypercalls. The message says what was asked for, of which domain. Nothing was done.

    You do not get it for a device under /dev/xen that cannot be opened (a plain ``OSError``), nor for frames
    that cannot be mapped (:class:`ForeignMapError`).

    Attributes:
        errno: why, as an ``errno`` number: ESRCH for a domain that is not there, EPERM for one that is not
            ours, EOPNOTSUPP for what this Xen or kernel does not have.
    """

    def __init__(self, message: str = "", errno: int = 0) -> None:
        super().__init__(message, errno)
        self.errno = errno


# ----------------------------------------------------------------------------------------------------- the re


class DaemonError(XenvirtError):
    """A daemon that :class:`xenvirt.Daemon` started cannot be used: not found, dead, or without its socket.

    The message ends with the last lines that the daemon printed. You do not get it from a link whose daemon
    dies (:class:`DisconnectedError`); leaving the ``with`` block of the daemon adds what it printed to that
    error.

    Attributes:
        output: all that is kept of the daemon's output (standard output and error), decoded.
        exit_status: its exit status, negative for a signal as in :mod:`subprocess`; None while it runs.
    """

    def __init__(self, message: str = "", output: str = "", exit_status: int | None = None) -> None:
        super().__init__(message, output, exit_status)
        self.output = output
        self.exit_status = exit_status


class LabError(XenvirtError):
    """The Xen lab (:mod:`xenvirt.lab`) cannot be built, booted or spoken to.

    The message says what is missing and what to do about it. You do not get it for a command in dom0 that
    fails: that has an exit status.

    Attributes:
        console: all that Xen and dom0 have printed, where they were booted.
    """

    def __init__(self, message: str = "", console: str = "") -> None:
        super().__init__(message, console)
        self.console = console


class XenStoreError(XenvirtError, OSError):
    """The xenstore refused an operation, did not answer in time, or cannot be reached.

    You do not get it for what is refused without asking: a path that cannot be one, or a value that has no
    room in a message, is a ``ValueError``.

    Attributes:
        errno: why: ENOENT (no such node), EACCES, EAGAIN (a transaction met a conflict), ENOSPC (a quota) and
            so on as the xenstore says it; ETIMEDOUT, ECONNRESET (the daemon is gone, and this connection with
            it), EPROTO (it answered nonsense) as we do.
        path: the node, or whatever else the operation was about; None where there was none.
    """

    def __init__(self, message: str = "", errno: int = 0, path: str | None = None) -> None:
        super().__init__(message, errno)
        self._arguments = (message, errno, path)
        self.errno = errno
        self.path = path


class VirtioNodeError(XenvirtError, ValueError):
    """A xenstore node that should announce a virtio device has something missing or impossible in it.

    You do not get it for a node that is not there (yet), nor for one of another kind of device.

    Attributes:
        path: the backend's node.
    """

    def __init__(self, message: str = "", path: str | None = None) -> None:
        super().__init__(message, path)
        self.path = path


class MappingError(XenvirtError, ValueError):
    """The file that says which backend serves which device (:mod:`xenvirt.xen.attach.mapping`) is of no use.

    You do not get it for a file that is not there (``OSError``), nor for a backend that cannot be started.

    Attributes:
        place: the file and the rule.
    """

    def __init__(self, message: str = "", place: str | None = None) -> None:
        super().__init__(message, place)
        self.place = place


class BackendError(XenvirtError):
    """What shall serve a guest's device (:mod:`xenvirt.xen.attach`) cannot be made: a class that is not
    there, is no device, raises, or is of another type of device than the guest has been told.

    You do not get it for a daemon that cannot be started (:class:`DaemonError`).
    """


class ForkError(XenvirtError, RuntimeError):
    """An object that belongs to the parent process was used in a child after ``fork``. Mappings are not
    inherited.

    Make memory, links and servers in the process that uses them.
    """
