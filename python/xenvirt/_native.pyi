"""The native core. What is public is re-exported by ``xenvirt``; import it from there."""

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Literal, Self, final

from typing_extensions import Buffer, disjoint_base

from xenvirt._arguments import FileLike, HeaderLayout, Offsets
from xenvirt._buffer import BytesLike

# ---- guest memory

@final
class FileRegion:
    """One region of guest memory, mapped from a shared file: a memfd, a file on hugetlbfs, a plain file.

    Args:
        fd: the file, open for reading, and for writing unless ``writable`` is false. It is not kept: close it
            whenever you like.
        guest_address: guest physical address of the first byte.
        size: length in bytes.
        offset: where in the file the region begins, in bytes; it need not be the begin of a page.
        user_address: address of the first byte in the frontend's own address space, in which vhost-user names
            the parts of a ring; the guest address if left out.
        writable: false maps it read-only.

    It stays mapped as long as this object, a table with it or a view of it lives. A child after fork does not
    have it.

    Raises:
        MapError: the file is shorter than ``offset + size``, the size is 0, or the kernel refused.
        OSError: ``fd`` is not open.
    """

    def __new__(
        cls,
        fd: int,
        guest_address: int,
        size: int,
        *,
        offset: int = 0,
        user_address: int | None = None,
        writable: bool = True,
    ) -> Self: ...
    @property
    def guest_address(self) -> int:
        """Guest physical address of the first byte."""
    @property
    def size(self) -> int:
        """Length in bytes."""
    @property
    def user_address(self) -> int:
        """Address of the first byte in the frontend's own address space."""
    @property
    def writable(self) -> bool:
        """Can it be written?"""
    @property
    def kind(self) -> str:
        """What backs it: "file"."""

@disjoint_base
class GuestMemory:
    """The memory of a guest: a table of regions, through which its physical addresses are reached.

    The table can be replaced while others use it: each call sees the one or the other, never a mixture. How
    ranges are understood that cross regions, end outside, wrap or are empty is said in :mod:`xenvirt.memory`.
    Copies of more than 16 KiB release the GIL.

    What every access can raise:

    - ``GuestAddressError``: the range is not in the table.
    - ``ReadOnlyMemoryError``: a write to a region that is mapped read-only.
    - ``GuestMemoryFault``: what backs a region was truncated or taken away, now or earlier.
    - ``ForkError``: in a child of the process that made it.
    - ``ValueError``: it was closed.

    Raises:
        MemoryTableError: the regions overlap, or wrap.
    """

    def __new__(cls, regions: Iterable[FileRegion] | None = None) -> Self: ...
    @property
    def regions(self) -> tuple[FileRegion, ...]:
        """The regions of this moment, sorted by guest address."""
    @property
    def closed(self) -> bool:
        """Was it closed?"""
    def read(self, address: int, size: int) -> bytes:
        """The ``size`` bytes at guest address ``address``."""
    def readinto(self, address: int, buffer: BytesLike) -> int:
        """Fills all of ``buffer`` from ``address`` on; gives its length in bytes.

        Raises:
            TypeError: ``buffer`` is none, is read-only, or holds Python objects.
            BufferError: its bytes do not lie side by side.
        """
    def write(self, address: int, data: BytesLike) -> int:
        """Writes all of ``data`` from ``address`` on; gives its length in bytes. Raises as ``readinto``."""
    def view(self, address: int, size: int, *, writable: bool | None = None) -> MemoryView:
        """The bytes themselves, without a copy. The range must lie in one region.

        A view is writable where its region is, unless asked for otherwise. It keeps its region mapped, also
        when the table is replaced and the region is in it no more.
        """
    def user_to_guest(self, user_address: int) -> int:
        """The guest address of an address in the frontend's own address space; GuestAddressError if none."""
    def replace(self, regions: Iterable[FileRegion]) -> None:
        """Puts another table in the place of this one, at once.

        A region that is in it no more is unmapped when the last view of it, and the last access that is
        running, are done.

        Raises:
            MemoryTableError: the regions overlap, or wrap; the old table stays.
            ValueError: it is the memory of a session, whose transport replaces it.
        """
    def close(self) -> None:
        """Lets go of the table. Closing twice is allowed.

        Raises:
            BufferError: views of it live; nothing is changed.
            ValueError: it is the memory of a session, whose transport closes it.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Closes it. While an exception is in flight live views are no error: the last of them unmaps."""

@final
class MemoryView:
    """Guest memory as a buffer: ``memoryview(view)`` gives it without a copy, and NumPy takes that.

    The guest can change the bytes at any time: copy first what you decide by. What backs the memory may be
    taken away (a truncated memfd): then the bytes turn into zeroes, and ``release`` says so. A child after
    fork must not touch a buffer of it: it is killed by SIGSEGV.
    """

    def __len__(self) -> int: ...
    @property
    def readonly(self) -> bool:
        """Are its buffers read-only?"""
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...
    def release(self) -> None:
        """Gives the memory back before the garbage collector does. Releasing twice is allowed.

        Raises:
            BufferError: buffers of it are still in use; nothing is changed.
            GuestMemoryFault: the memory went away, what was read there since are zeroes. It is released.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Releases it. While an exception is in flight nothing is raised: the last buffer gives it back."""

# ---- endpoint: the event loop of one device, private to xenvirt

@disjoint_base
class Event:
    """What a device has to deal with; one of the classes inside. A kick is given as its VirtQueue instead."""

    @final
    class Activate(Event):
        """The driver is ready."""

        __match_args__ = ()
        def __new__(cls) -> Self: ...

    @final
    class ConfigWritten(Event):
        """The driver wrote to the config space."""

        __match_args__ = ("offset", "data")
        def __new__(cls, offset: int, data: bytes) -> Self: ...
        @property
        def offset(self) -> int: ...
        @property
        def data(self) -> bytes: ...

    @final
    class Reset(Event):
        """The driver reset the device, or is gone."""

        __match_args__ = ()
        def __new__(cls) -> Self: ...

    @final
    class QueueStopped(Event):
        """The driver stopped a queue that was handed over, and waits until the next event is asked for."""

        __match_args__ = ("index",)
        def __new__(cls, index: int) -> Self: ...
        @property
        def index(self) -> int: ...

    @final
    class Watch(Event):
        """A watched descriptor is ready."""

        __match_args__ = ("number",)
        def __new__(cls, number: int) -> Self: ...
        @property
        def number(self) -> int: ...

    @final
    class Connected(Event):
        """A relay's frontend came, and the daemon took it."""

        __match_args__ = ()
        def __new__(cls) -> Self: ...

    @final
    class Disconnected(Event):
        """The connection ended; the reason is None unless it was the frontend's fault."""

        __match_args__ = ("reason",)
        def __new__(cls, reason: str | None) -> Self: ...
        @property
        def reason(self) -> str | None: ...

    @final
    class Notice(Event):
        """Something for the log."""

        __match_args__ = ("text",)
        def __new__(cls, text: str) -> Self: ...
        @property
        def text(self) -> str: ...

    @final
    class Stopped(Event):
        """The endpoint was stopped; nothing comes after it."""

        __match_args__ = ()
        def __new__(cls) -> Self: ...

    @final
    class TimedOut(Event):
        """The time of the wait ran out."""

        __match_args__ = ()
        def __new__(cls) -> Self: ...

@final
class Endpoint:
    """The event loop of one device behind one transport."""

    def __new__(
        cls,
        features: int,
        queue_sizes: Sequence[int],
        config: bytes,
        *,
        patience: float = 0.0,
        in_process: bool = False,
    ) -> Self: ...
    def listen(self, fd: int) -> None:
        """Frontends come to this listening socket from now on; the descriptor is duplicated."""
    def adopt(self, fd: int) -> None:
        """Takes a connected socket; the descriptor is duplicated."""
    def attach_guest(
        self,
        bus: GuestBus,
        device_id: int,
        base: int,
        *,
        interrupt: tuple[Literal["spi", "gsi"], int] | None = None,
        memory: Literal["any", "foreign", "grants"] = "any",
        kernel_kicks: bool = False,
        record: int | None = None,
        in_turn: bool = False,
    ) -> None:
        """The device is one of a Xen guest from now on: with registers at `base`, and an interrupt: an SPI
        (Arm), or an input of the I/O APIC (x86, which only an HVM guest has).

        `kernel_kicks` has the kernel take kicks, where it can (not on a PV dom0); it is to be left alone in a
        process that may be killed, because the kernel then crashes at the next kick.

        `record` is a file in which its registers are put down whenever the driver has changed them, so that
        the device outlives this process: with what another has left there it goes on for the same driver,
        where the used rings stand. `in_turn` has chains be given back in the order in which they were made
        available, without which nobody can say where that is. The descriptor is duplicated."""
    def describe_guest(self) -> str | None:
        """How kicks and interrupts of a guest's device go, in words; None without a guest."""
    def wait(self, timeout: float | None = None) -> Event | VirtQueue:
        """The next event; says that the device is done with the one before. The GIL is released."""
    def poll(self) -> Event | VirtQueue | None:
        """The next event if there is one; the caller says `processed` itself."""
    def processed(self, index: int) -> bool:
        """Says that the device is done with the kick of a queue: true if it has to look again."""
    @property
    def timeout(self) -> float | None:
        """Seconds until `poll` is to be called again though nothing is ready."""
    def worker(self, index: int) -> QueueWorker:
        """Lets a thread of its own serve this queue."""
    def start(self, features: int, memory: GuestMemory, rings: Sequence[DriverQueue]) -> None:
        """An in-process driver is ready: its features, memory, and a ring for each queue that it uses."""
    def reset(self) -> None:
        """An in-process driver resets the device."""
    @property
    def config_changes(self) -> int:
        """How often an in-process device changed its config space."""
    @property
    def queues(self) -> tuple[VirtQueue, ...]:
        """All queues."""
    @property
    def memory(self) -> GuestMemory:
        """The driver's memory, whose table follows the transport; empty without a driver."""
    @property
    def offered_features(self) -> int:
        """The virtio features that the device offers."""
    @property
    def negotiated_features(self) -> int:
        """The virtio features that the present driver agreed to; 0 without a driver."""
    @property
    def negotiated_protocol_features(self) -> int:
        """The vhost-user protocol features of the present connection; 0 without one."""
    @property
    def config(self) -> bytes:
        """The config space as it is now."""
    def update_config(self, config: bytes) -> None:
        """Replaces the config space and has the driver told."""
    def write_config(self, offset: int, data: bytes) -> bool:
        """The driver's write to the config space; false if it does not lie inside."""
    def watch(self, fd: int) -> int:
        """Watches a descriptor, of which a duplicate is taken, for input; gives the watch's number."""
    def unwatch(self, number: int) -> None:
        """Ends a watch."""
    def hand_over(self, index: int) -> HandedOver | None:
        """Lets somebody else serve a running queue until the session ends: no chain of it is taken here. None
        if it does not run."""
    def fail_queue(self, index: int) -> None:
        """The device could not deal with this queue: it goes into its error state, and the driver is told."""
    def stop(self) -> None:
        """Ends every wait, now and for ever."""
    def close(self) -> None:
        """Closes the transport. Nothing can be waited for any more."""
    def fileno(self) -> int:
        """A descriptor that is readable while an event is there."""

@final
class HandedOver:
    """A queue that somebody else serves, until the session ends."""

    @property
    def size(self) -> int:
        """Descriptors of the ring."""
    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where the ring's parts are: descriptor table, available ring, used ring."""
    @property
    def base(self) -> int:
        """The available index to go on from."""
    def resume_index(self, memory: GuestMemory) -> int:
        """The available index to go on from when who served it is gone: the used index.

        Raises:
            RingError: requests were answered out of their order, so nobody knows which are still to be done;
                or the ring is not in that memory.
        """
    @property
    def kick_fd(self) -> int:
        """An eventfd, signalled by the driver. It is this object's, and closed with it."""
    @property
    def call_fd(self) -> int:
        """An eventfd, to be signalled for the driver. It is this object's, too."""

@final
class QueueWorker:
    """The kicks of one queue, for a thread of its own."""

    @property
    def index(self) -> int:
        """Which queue it is."""
    def wait(self) -> VirtQueue | None:
        """The queue, once it is kicked; None when the endpoint is stopped. The GIL is released."""

# ---- both sides at once

@final
class RelayMessage:
    """A vhost-user message that a relay passed on."""

    @property
    def time(self) -> float:
        """Seconds since the relay was made."""
    @property
    def sender(self) -> Literal["frontend", "daemon"]:
        """Who said it."""
    @property
    def channel(self) -> Literal["main", "reverse"]:
        """On which channel: requests of the daemon, and answers to them, go over the reverse one."""
    @property
    def name(self) -> str:
        """The name of the request, or of that which is answered: ``GET_FEATURES``."""
    @property
    def number(self) -> int:
        """The request's number on the wire."""
    @property
    def reply(self) -> bool:
        """True for an answer."""
    @property
    def need_reply(self) -> bool:
        """True if an acknowledgement is asked for."""
    @property
    def payload(self) -> bytes:
        """The payload, as it was passed on."""
    @property
    def files(self) -> int:
        """How many file descriptors went with it."""
    @property
    def text(self) -> str:
        """All of it in words."""

@final
class Relay:
    """Stands between one frontend at a time and a daemon."""

    def __new__(
        cls,
        daemon: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        trace: bool = False,
        count: bool = False,
        signals: bool = False,
    ) -> Self: ...
    def listen(self, fd: int) -> None:
        """Frontends come to this listening socket from now on; the descriptor is duplicated."""
    def adopt(self, fd: int) -> None:
        """Takes a connected socket, and connects to the daemon for it; the descriptor is duplicated."""
    def wait(self, timeout: float | None = None) -> Event | RelayMessage:
        """Passes on what comes, until there is something to be told. The GIL is released."""
    @property
    def time(self) -> float:
        """Seconds since the relay was made: the clock of messages and signals."""
    def take_signals(self) -> list[tuple[float, int, Literal["kick", "call", "error"], int, int]]:
        """The kicks and calls since the last time that this was asked, if they are counted and kept: time in
        seconds, queue, kind, how often it was signalled, how many chains had been given back by then."""
    @property
    def counters(self) -> list[tuple[int, int, int, int]]:
        """For each queue its kicks, chains, calls and errors."""
    @property
    def negotiated_features(self) -> int:
        """The virtio features that the present frontend chose; 0 without one."""
    @property
    def negotiated_protocol_features(self) -> int:
        """The protocol features that the present frontend chose; 0 without one."""
    def stop(self) -> None:
        """Ends every wait, now and for ever."""
    def close(self) -> None:
        """Ends both connections. Nothing can be waited for any more."""

# ---- rings, device side

@final
class VirtQueue:
    """One virtqueue of a device (virtio 1.3, section 2.6). Iterating over it takes the chains that are
    there."""

    @property
    def index(self) -> int:
        """Which queue of its device it is."""
    @property
    def size(self) -> int:
        """Descriptors of its ring; of the largest that it may have, while there is none."""
    @property
    def running(self) -> bool:
        """True while chains can come out of it."""
    @property
    def kept(self) -> int:
        """Chains that were taken and not completed, and can still be."""
    @property
    def counters(self) -> tuple[int, int, int, int, int, int]:
        """Kicks, chains, bytes read, bytes written, calls, errors; see :class:`xenvirt.Counters`."""
    def pop(self) -> Chain | None:
        """The next chain; None when the ring is empty or does not run.

        Raises:
            RingError: the driver broke a rule; the queue is in its error state until it is reset.
            GuestMemoryFault: the memory of the ring is gone.
        """
    def __iter__(self) -> Self: ...
    def __next__(self) -> Chain: ...
    def complete(self, chains: Sequence[Chain]) -> None:
        """Gives several chains back at once, for what spans several: the driver sees all of them or none, in
        this order, and is called at most once.

        Raises:
            StaleChainError: the queue was reset after a chain was taken.
            BufferError: a buffer of one of their views is still in use.
            ValueError: one is completed already, stands there twice, or is of another queue.
                After an error no chain is completed.
        """
    def pop_batch(
        self, header: type[HeaderLayout] | None = None, trailer: int = 0, limit: int = 256
    ) -> Batch | None:
        """Up to `limit` chains at once; None when the ring is empty or does not run.

        Args:
            header: how each chain's readable part begins. It is read, once, into columns.
            trailer: how many bytes (at most 8) each chain's writable part has at its end for the device's
                answer; for block devices it is 1, the status.

        Raises:
            RingError: as `pop`; also for a chain that is too short for its header or trailer. The chains
                before a bad one come first.
        """

@final
class Chain:
    """One request of the driver: buffers to read, then buffers to write (virtio 1.3, section 2.6).

    It is read and written from front to back. It may be kept, and completed later, from any thread; one that
    is dropped without having been completed stays with the device until the queue is reset.
    """

    @property
    def index(self) -> int:
        """Index of its first descriptor."""
    @property
    def readable(self) -> int:
        """Bytes of the readable part that were not read yet."""
    @property
    def writable(self) -> int:
        """Bytes of the writable part that were not written yet."""
    @property
    def completed(self) -> bool:
        """Was it completed?"""
    def read(self, size: int = -1) -> bytes:
        """Reads the next `size` bytes, or what is left; all that is left without a size.

        Raises:
            StaleChainError: the queue was reset after the chain was taken.
            ValueError: it is completed.
            GuestMemoryFault: its memory is gone.
        """
    def readinto(self, buffer: BytesLike) -> int:
        """Fills `buffer` with the next bytes; gives how many, fewer than fit only at the end. As `read`."""
    def write(self, data: BytesLike) -> int:
        """Writes all of `data` to the next bytes of the writable part, and gives its length.

        Raises:
            ValueError: it does not fit what is left; nothing was written. And as `read`.
        """
    def read_to_file(self, file: FileLike, offset: int | None = None, size: int | None = None) -> int:
        """Moves the next readable bytes to a file, straight from guest memory, and gives how many.

        Args:
            file: a descriptor, or an object with a ``fileno()``.
            offset: where in the file, in bytes; without one the file is written as a stream. A stream should
                not block: a reset of the queue waits until the call ends.
            size: at most so many bytes.

        Raises:
            OSError: what the kernel says, if nothing was moved. And as `read`.
        """
    def write_from_file(self, file: FileLike, offset: int | None = None, size: int | None = None) -> int:
        """Moves bytes of a file to the next writable bytes, straight into guest memory, and gives how many:
        fewer than asked for at the end of the file. As `read_to_file`."""
    def readable_views(self) -> list[MemoryView]:
        """The memory of what was not read yet, a read-only view for each piece. Does not move on in it.

        The views end when the chain is completed; the driver can change the bytes until then.
        """
    def writable_views(self) -> list[MemoryView]:
        """The memory of what was not written yet, a view for each piece. Who writes by them tells
        `complete` how much."""
    def complete(self, written: int | None = None) -> None:
        """Gives the chain back to the driver, and calls it if it wants.

        Args:
            written: the used length, for who wrote by views: bytes from the beginning of the writable part.
                If not given, what `write` and `write_from_file` wrote.

        Raises:
            StaleChainError: the queue was reset after the chain was taken.
            BufferError: a buffer of one of its views is still in use; the chain is not completed.
            ValueError: it is completed already, or has not so many writable bytes.
        """

@final
class Batch:
    """Chains that were taken together, or a part of them; its columns have one entry for each.

    The requests of a part are those of the whole: what is written or completed in one is in the other. Every
    method raises StaleChainError after a reset of the queue, ValueError if a chain is completed already or a
    list has not one entry for each request, GuestMemoryFault if the memory is gone; then nothing was done.
    """

    def __len__(self) -> int: ...
    @property
    def header(self) -> Columns:
        """The header fields: ``batch.header["sector"]``."""
    @property
    def readable(self) -> memoryview[int]:
        """For each request the bytes of data that the device can read, without the header."""
    @property
    def total_readable(self) -> int:
        """The sum of `readable`, without a Python object for each request."""
    @property
    def writable(self) -> memoryview[int]:
        """For each request the bytes of data that the device can write, without the trailer."""
    def group_by(self, name: str) -> list[tuple[int, Batch]]:
        """The parts in which a header field has the same value, in the order in which the values first come;
        usually one. The requests of a part keep their order."""
    def select(self, mask: Mask) -> Batch:
        """The part for which the mask holds."""
    def write_from(self, source: BytesLike, offsets: Offsets, *, unit: int = 1) -> Mask:
        """Fills the writable data of request `i` from byte ``offsets[i] * unit`` of `source` on.

        A request that does not lie wholly inside of `source` is not done, the others are; the mask
        says which.
        """
    def read_into(self, target: BytesLike, offsets: Offsets, *, unit: int = 1) -> Mask:
        """Copies the readable data of request `i` to byte ``offsets[i] * unit`` of `target` on; as
        `write_from`. Where requests overlap, the later one wins."""
    def write_from_file(
        self, file: FileLike, offsets: Offsets, *, unit: int = 1, limit: int | None = None
    ) -> Mask:
        """Fills the writable data of each request from a file, straight into guest memory.

        A request is not done if it does not lie wholly below `limit` (in bytes), if the file ends in it, or
        if the kernel reports an error.
        """
    def read_into_file(
        self, file: FileLike, offsets: Offsets, *, unit: int = 1, limit: int | None = None
    ) -> Mask:
        """Moves the readable data of each request to a file, straight from guest memory; as
        `write_from_file`."""
    def write_zeroes(self) -> None:
        """Fills the writable data of each request with zeroes."""
    def write_trailer(self, value: int, *, where: Mask | None = None, otherwise: int = 0) -> None:
        """Writes the trailer of each request: `value` where the mask holds (everywhere, if there is none),
        `otherwise` elsewhere. ValueError if the trailer has not so many bytes."""
    def complete(self) -> None:
        """Gives all chains of the batch back to the driver, and calls it at most once.

        The used length of each is what was written from the beginning without a gap, never more. Where a
        trailer was written and not all of the data before it, the rest of the data is filled with zeroes, so
        that the driver may look at the trailer (virtio 1.3, 2.7.8.3).
        """

@final
class Columns:
    """The header fields of a batch, each a read-only memoryview with one entry for each request."""

    def __getitem__(self, name: str, /) -> memoryview[int]:
        """A column, with the field's letter as format; a field of bytes (``6s``) is two-dimensional.
        ``numpy.asarray`` takes it without a copy."""
    def __len__(self) -> int: ...
    def __contains__(self, name: str, /) -> bool: ...
    def keys(self) -> list[str]:
        """The names of the fields."""

@final
class Mask:
    """Which requests of a batch something holds for."""

    def __new__(cls, entries: Sequence[bool]) -> Self: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bool: ...
    def __iter__(self) -> Iterator[bool]: ...
    def __invert__(self) -> Mask: ...
    def __eq__(self, other: object, /) -> bool: ...
    def all(self) -> bool:
        """True if it holds for every request."""
    def any(self) -> bool:
        """True if it holds for a request."""
    def count(self) -> int:
        """For how many requests it holds."""
    def tolist(self) -> list[bool]:
        """The entries, as a list."""

# ---- native devices

@final
class NullBlock:
    """A block device that stores nothing; `xenvirt.devices.NullBlockDevice` is the device around it."""

    def __new__(cls, sectors: int) -> Self: ...
    def process(self, queue: VirtQueue) -> None:
        """Answers what is in the ring, the GIL released.

        Raises:
            RingError: the driver broke a rule.
        """

@final
class FileBlock:
    """A block device over a file; `xenvirt.devices.NativeBlockDevice` is the device around it.

    Args:
        file: the open file, of which a duplicate is kept until `close`.
        size: bytes of the disk; a tail that is no sector is left alone.
        disk_id: the answer to GET_ID, 20 bytes.
        read_only: refuse writes of any kind.
        io_uring: false uses system calls.
    """

    def __new__(
        cls, file: FileLike, size: int, disk_id: bytes, *, read_only: bool = False, io_uring: bool = True
    ) -> Self: ...
    @property
    def storage(self) -> str:
        """Who moves the bytes: `io_uring`, or `system calls` and why."""
    @property
    def counters(self) -> tuple[int, int, int, int]:
        """Operations that have ended: reads, writes, fdatasync, fallocate."""
    def set_size(self, size: int) -> None:
        """The disk has another size, in bytes, from now on."""
    def set_write_through(self, write_through: bool) -> None:
        """Whether writes are made durable before they are answered."""
    def activate(self, queues: Sequence[VirtQueue]) -> list[list[int]]:
        """The driver is ready. Gives descriptors for each queue, valid until the reset: while one is
        readable, `process` is to be called for the queue.

        Raises:
            OSError: there are no more descriptors, or the disk is closed (EBADF).
        """
    def process(self, queue: VirtQueue) -> list[tuple[str, int]]:
        """Answers what has ended, and begins what is in the ring; the GIL is released. Tells what the storage
        refused since the last call: what was tried, and the errno. The driver was told IOERR.

        Raises:
            RingError: the driver broke a rule.
            OSError: io_uring takes no operations.
            ValueError: it is not active.
        """
    def reset(self) -> None:
        """The driver is gone: waits for what is in flight, if anything is."""
    def close(self) -> None:
        """As `reset`, and lets go of the file."""

# ---- rings, driver side

@final
class DriverQueue:
    """A queue, from the driver's end: bytes go in, bytes come out.

    Args:
        index: which queue of its device it is.
        size: descriptors, a power of two.
        memory: guest memory that the device reaches too.
        start: guest address of a range of it that is this queue's alone: the ring, then the buffers.
        length: of the range, in bytes.
        event_idx, indirect, in_order: what was negotiated.
    """

    def __new__(
        cls,
        index: int,
        size: int,
        memory: GuestMemory,
        start: int,
        length: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> Self: ...
    @staticmethod
    def pair(
        size: int,
        length: int = 1048576,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> tuple[DriverQueue, VirtQueue]:
        """A driver's queue and a device's, one ring between them in `length` bytes of memory: for tests."""
    @property
    def index(self) -> int:
        """Which queue of its device it is."""
    @property
    def size(self) -> int:
        """Descriptors of its ring."""
    @property
    def addresses(self) -> tuple[int, int, int]:
        """Guest addresses of the descriptor table, the available ring and the used ring."""
    @property
    def pending(self) -> int:
        """Requests that the device has."""
    @property
    def kick_fd(self) -> int:
        """The eventfd that the device listens to."""
    def fileno(self) -> int:
        """The eventfd that the device signals: readable when something may have come back."""
    def submit(
        self,
        readable: Iterable[BytesLike] | None = None,
        writable: Sequence[int] | None = None,
        *,
        publish: bool = True,
    ) -> int:
        """Puts a request in the ring, kicks the device if it wants, and gives the request's token.

        Args:
            readable: what the device reads: a buffer each, copied.
            writable: the sizes of the buffers that it writes, in bytes; they begin as 0xA5.
            publish: False keeps it from the device until :meth:`publish`, so that the device finds several
                requests at once.

        Raises:
            QueueFullError: no descriptors or no memory are free until the device gives some back.
            ValueError: it would not fit the empty ring either, or has no buffer.
            RingError: the device broke a rule before.
        """
    def publish(self) -> None:
        """Shows the device what was submitted with ``publish=False``, and kicks it if it wants."""
    def completed(self) -> list[tuple[int, list[bytes], int]]:
        """What the device has used so far, in its order: the token, the writable buffers, whole, and the
        used length that the device claims. Has the eventfd signalled when there is more.

        Raises:
            RingError: the device wrote a used ring that cannot be; what came before was given out.
        """

# ---- vhost-user, the frontend's end

@final
class SharedRegion:
    """A region of guest memory in a shared file, as a frontend describes it to a backend.

    Args:
        fd: the shared file; duplicated, so that it may be closed.
        guest_address: guest physical address of the first byte.
        size: in bytes, more than 0.
        offset: where in the file the region begins, in bytes.
        user_address: the address that ring addresses refer to; that of the guest if not given, which suits
            every backend, whichever kind of address it takes.
        xen_flags: how Xen maps it (1 foreign, 2 grant, 0xa grant mapped when accessed); 0 for a shared file,
            also for a backend that is built for Xen.
        xen_domain: whose memory it is; 0 for a shared file.
    """

    def __new__(
        cls,
        fd: int,
        guest_address: int,
        size: int,
        *,
        offset: int = 0,
        user_address: int | None = None,
        xen_flags: int = 0,
        xen_domain: int = 0,
    ) -> Self: ...
    @property
    def guest_address(self) -> int:
        """Guest physical address of the first byte."""
    @property
    def size(self) -> int:
        """In bytes."""
    @property
    def offset(self) -> int:
        """Where in the file the region begins, in bytes."""
    @property
    def user_address(self) -> int:
        """The address that ring addresses refer to."""
    @property
    def xen_flags(self) -> int:
        """How Xen maps it."""
    @property
    def xen_domain(self) -> int:
        """Whose memory it is, on Xen."""

@final
class RawMessage:
    """A message as the peer sent it. Its file descriptors are closed with it."""

    @property
    def request(self) -> int:
        """The number of the request that it answers."""
    @property
    def flags(self) -> int:
        """The header's flags: bits 0 and 1 the version, bit 2 reply, bit 3 need_reply."""
    @property
    def payload(self) -> bytes:
        """What follows the header."""
    @property
    def fds(self) -> tuple[int, ...]:
        """The file descriptors that came with it. Duplicate what you want to keep."""

@final
class Frontend:
    """The frontend's end of a vhost-user connection: one blocking request after the other.

    Connects when it is made, trying again until the timeout while the socket does not exist or nobody listens
    on it, and settles the protocol features. Every call ends: with an answer, or with an error that names
    the request. The GIL is released while it waits, and signal handlers run (so Ctrl-C is heard). An error
    that is the peer's doing carries the last lines of the wire log as a note, which a traceback shows.

    Calls may come from any thread; they wait for each other.

    Args:
        path: the backend's socket.
        timeout: how many seconds connecting may take, and each answer; None: for ever.
        protocol_features: which of the protocol features that both sides have are to be acked, as a mask; all
            if not given.
        negotiate: False leaves everything unsaid, for tests that say it themselves with `raw`, or later with
            `negotiate`.

    Raises:
        DisconnectedError: nobody is there, or the peer hung up.
        LinkTimeoutError: the peer does not answer. The connection is of no more use then.
        NegotiationError: the peer offers XEN_MMAP and the mask leaves it out: a daemon that is built for Xen
            ends the connection if it is not acked.
        ProtocolError: the peer broke the protocol.
        OSError: the socket cannot be used (permissions, a path that is too long).
    """

    def __new__(
        cls,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = 5.0,
        protocol_features: int | None = None,
        negotiate: bool = True,
    ) -> Self: ...
    @staticmethod
    def from_fd(
        fd: int,
        *,
        timeout: float | None = 5.0,
        protocol_features: int | None = None,
        negotiate: bool = True,
    ) -> Frontend:
        """Speaks over a stream socket that is connected already; the descriptor is duplicated."""
    def negotiate(self, protocol_features: int | None = None) -> None:
        """Takes the backend (SET_OWNER) and settles the protocol features. Once a connection."""
    @property
    def offered_features(self) -> int:
        """The virtio features that the peer offers (without bit 30, which is vhost-user's own)."""
    @property
    def features(self) -> int:
        """The virtio features that `set_features` settled; 0 before."""
    @property
    def offered_protocol_features(self) -> int:
        """The protocol features that the peer offers, unknown ones among them."""
    @property
    def protocol_features(self) -> int:
        """The protocol features that were acked."""
    @property
    def queue_count(self) -> int | None:
        """How many queues the peer has at most; None where it cannot be asked (no MQ)."""
    def set_features(self, features: int) -> None:
        """Chooses among the virtio features that the peer offers; ValueError for others."""
    def config(self, offset: int, size: int) -> bytes:
        """Reads the device's configuration space.

        Do not ask for more than the device type has: some daemons read past their structure. The peer is
        asked for everything from 0 on, because some do not look at the offset.

        Raises:
            RequestRefusedError: the peer has less than that.
            NegotiationError: CONFIG was not negotiated.
        """
    def set_config(self, offset: int, data: Buffer) -> None:
        """Writes to the device's configuration space."""
    def set_memory(self, regions: Sequence[SharedRegion]) -> None:
        """Gives the peer the whole memory table, at most 32 regions."""
    @property
    def max_memory_slots(self) -> int:
        """How many regions the peer takes; asks it (CONFIGURE_MEM_SLOTS)."""
    def add_region(self, region: SharedRegion) -> None:
        """One more region (CONFIGURE_MEM_SLOTS)."""
    def remove_region(self, region: SharedRegion) -> None:
        """Away with a region (CONFIGURE_MEM_SLOTS)."""
    def set_queue(
        self,
        index: int,
        size: int,
        *,
        descriptors: int,
        available: int,
        used: int,
        base: int = 0,
        kick: int | None = None,
        call: int | None = None,
        err: int | None = None,
    ) -> None:
        """Sets a split ring up; `enable_queue` starts it. Set features and memory first.

        Args:
            index: which queue.
            size: entries.
            descriptors: guest physical address of the descriptor table; like the two others in the memory
                that was set.
            available: of the available ring.
            used: of the used ring.
            base: available index to go on from; 0 for a new ring.
            kick: eventfd that the driver signals; None: the device has to poll. Duplicated, like the others.
            call: eventfd that the device signals; None: the driver polls.
            err: eventfd that the device signals when the ring is broken.
        """
    def enable_queue(self, index: int, enabled: bool = True) -> None:
        """Starts a queue, or pauses it. A peer without protocol features needs no telling and gets none."""
    def stop_queue(self, index: int) -> int:
        """Stops a queue and gives the available index to go on from (GET_VRING_BASE)."""
    @property
    def status(self) -> int:
        """The device status (STATUS); asks the peer."""
    def set_status(self, status: int) -> None:
        """Sets the device status (STATUS)."""
    def reset_device(self) -> None:
        """Resets the device (RESET_DEVICE)."""
    def barrier(self) -> None:
        """Returns when the peer has worked off everything that was sent. Calls that change something end with
        it; of use after `raw`."""
    def config_changes(self) -> int:
        """How often the peer said since the last call that its configuration space changed (BACKEND_REQ)."""
    @property
    def config_change_fd(self) -> int | None:
        """Readable while `config_changes` would not be 0; None without BACKEND_REQ. Valid until `close`."""
    def raw(
        self,
        request: int,
        payload: Buffer | None = None,
        fds: Sequence[int] = (),
        *,
        reply: bool = True,
        need_reply: bool = False,
        flags: int | None = None,
        size: int | None = None,
    ) -> RawMessage | None:
        """Sends any message, right or wrong, for negative tests; nothing is checked, nothing remembered.

        Args:
            request: the number.
            payload: what follows the header.
            fds: file descriptors to go with it.
            reply: whether to wait for the next message and return it.
            need_reply: sets bit 3 of the header's flags.
            flags: the header's flags altogether, instead.
            size: what the header says of the payload's length; the truth if not given.

        Returns:
            The peer's next message; None without `reply`.
        """
    def closed_within(self, timeout: float) -> bool:
        """True once the peer has closed the connection; False if it has not after so many seconds. What it
        sends meanwhile is logged and dropped."""
    @property
    def wire_log(self) -> list[str]:
        """The last 256 messages in words, with the seconds since connecting. Stays after `close`."""
    @property
    def closed(self) -> bool:
        """Was it closed by us?"""
    def fileno(self) -> int:
        """The connection's socket."""
    def close(self) -> None:
        """Closes the connection; may be called again. Every other call raises QueueStoppedError from then
        on."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

# ---- timers, private to xenvirt

def interval_timer(seconds: float) -> int:
    """A new descriptor that becomes readable every so many seconds, until it is read (8 bytes, timerfd(2)).
    It does not block, and is the caller's to close.

    Raises:
        ValueError: less than 1 ns, or more than the kernel can count.
        OSError: the kernel has none left.
    """

# ---- Xen

@final
class FrameFailure:
    """A frame that could not be mapped."""

    @property
    def index(self) -> int:
        """Its place in the request, from 0."""
    @property
    def frame(self) -> int:
        """The frame number that was asked for."""
    @property
    def errno(self) -> int:
        """What the kernel says (include/uapi/xen/privcmd.h), as a positive ``errno``."""
    @property
    def reason(self) -> str:
        """The errno in words that fit a frame."""
    def __eq__(self, other: object, /) -> bool: ...

@disjoint_base
class ForeignMemory:
    """Memory of other domains, by /dev/xen/privcmd (Linux, drivers/xen/privcmd.c).

    Frames are of 4 KiB, whatever the page size of the kernel. For a PVH, HVM or Arm domain they are guest
    frame numbers, for a PV domain machine frame numbers. Closing the device leaves the mappings as they are.

    Args:
        patience: how many seconds frames that are paged out are waited for.
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen`, as
            its dom0, or one of its domains, as that.

    Raises:
        FileNotFoundError: there is no /dev/xen/privcmd: this is no dom0, or its module is not loaded.
        PermissionError: the device may not be opened.
    """

    def __new__(
        cls, *, patience: float = 5.0, hypervisor: SimulatedXen | SimulatedDomain | None = None
    ) -> Self: ...
    def map(
        self,
        domid: int,
        frames: range | Sequence[int] | Buffer,
        *,
        writable: bool = False,
        partial: bool = False,
    ) -> ForeignMapping:
        """Maps frames of a domain, one after the other.

        Args:
            domid: the domain.
            frames: a range, a sequence, or a buffer of uint64, which is taken without an object for each.
            writable: for writing too.
            partial: take what can be mapped; ``holes`` and ``failures`` tell the rest.

        Raises:
            ForeignMapError: a frame failed (without `partial`), or the call as a whole: the device is
                restricted to another domain (EPERM), dom0 is out of pages (ENOMEM).
            ValueError: no frames, a negative one, or 2^32 and more.
        """
    def attach(
        self, domid: int, ranges: Iterable[range], *, writable: bool = False, limit: int | None = None
    ) -> AttachedMemory:
        """Attaches to a guest's memory, at its own addresses. Nothing is mapped until it is touched.

        Args:
            domid: the domain; not a PV one, whose frame numbers are the machine's.
            ranges: where its RAM is, or may be: guest physical addresses, whole frames.
            writable: for writing too.
            limit: how many bytes may stay mapped; None for as many as are touched. What is used at a time
                may exceed it.

        Raises:
            MemoryTableError: a range is empty, not of whole frames, or overlaps another.
            ForeignMapError: this process has not the addresses for so much (ENOMEM). You do not get it for a
                domain that is not there: that is found when the memory is touched.
            ValueError: no ranges, or one with a step.
        """
    def _simulated_ram(self, domid: int) -> tuple[range, ...] | None: ...
    def map_resource(
        self,
        domid: int,
        resource: str,
        number: int,
        *,
        first: int = 0,
        frames: int = 1,
        writable: bool = False,
    ) -> ForeignMapping:
        """Maps frames of a resource that is not the domain's RAM (XENMEM_acquire_resource).

        Args:
            domid: the domain.
            resource: ``"ioreq_server"``, ``"grant_table"`` or ``"vmtrace"``.
            number: which one: the IOREQ server; 0 for shared grant frames, 1 for status frames; the vCPU.
            first: the first frame of it.
            frames: how many.
            writable: for writing too.
        """
    def resource_size(self, domid: int, resource: str, number: int) -> int:
        """How many frames a resource has."""
    def restrict(self, domid: int) -> None:
        """From now on this device maps only that domain, and makes no hypercall. It cannot be undone: for a
        descriptor that is handed to somebody else."""
    def fileno(self) -> int:
        """The device's descriptor; ValueError once it is closed."""
    def close(self) -> None:
        """Closes the device. Mappings stay."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class ForeignMapping(GuestMemory):
    """Frames of a domain, mapped one after the other: addresses are byte offsets from the first.

    A hole is not reached: reads, writes and views of it raise GuestAddressError. (The kernel would not help:
    on a PV dom0 touching one is SIGBUS, on Arm SIGKILL, on a PVH dom0 it reads 0xff and swallows writes.)
    """

    @property
    def mapped_frames(self) -> int:
        """How many frames are mapped."""
    @property
    def holes(self) -> tuple[range, ...]:
        """The byte ranges that are not mapped, in order, neighbours joined."""
    @property
    def failures(self) -> tuple[FrameFailure, ...]:
        """The frames that are not mapped, by index."""

@final
class AttachedMemory(GuestMemory):
    """A guest's memory at its own addresses, mapped by windows when it is touched.

    Attaching to a large guest costs no more than attaching to a small one. A window that was given back and
    is mapped again is at the address where it was. Touching what the guest has not (a hole, memory that was
    ballooned out, a domain that is gone) raises ForeignMapError, which names each frame of the access that
    failed; what was mapped before a domain was destroyed stays readable until it is given back.
    """

    WINDOW: Final[int]
    """Bytes of a window."""

    @property
    def domid(self) -> int:
        """The domain."""
    @property
    def mapped_bytes(self) -> int:
        """How many bytes are in windows now. ValueError once it is closed."""
    @property
    def limit(self) -> int | None:
        """How many bytes may stay mapped; what is used the longest time ago is given back first."""
    @limit.setter
    def limit(self, limit: int | None) -> None: ...
    def invalidate(self) -> None:
        """The guest's memory map has changed: no access that begins from now on sees what was mapped before.

        Windows that nobody uses are given back at once, others when their last view or chain is gone.
        """

# ---- Xen: grants

@final
class GrantFailure:
    """A granted page that could not be mapped."""

    @property
    def index(self) -> int:
        """Its place in the request, from 0."""
    @property
    def domid(self) -> int:
        """The domain whose grant it was to be."""
    @property
    def reference(self) -> int:
        """The reference that was asked for."""
    @property
    def errno(self) -> int:
        """What the kernel says, as a positive ``errno``."""
    @property
    def reason(self) -> str:
        """The errno in words that fit a grant."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class CopyFailure:
    """A granted page that the hypervisor did not copy."""

    @property
    def index(self) -> int:
        """The place of its reference in the request, from 0."""
    @property
    def domid(self) -> int:
        """The domain whose grant it was to be."""
    @property
    def reference(self) -> int:
        """The reference that was asked for."""
    @property
    def status(self) -> int:
        """What the hypervisor says: GNTST_*, below 0 (xen/include/public/grant_table.h)."""
    @property
    def errno(self) -> int:
        """The positive ``errno`` that comes nearest to it."""
    @property
    def reason(self) -> str:
        """The status in words."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class GrantTable:
    """Pages that other domains granted to this one, by /dev/xen/gntdev (Linux, drivers/xen/gntdev.c).

    Pages are of 4 KiB. Where `references` is asked for, one number or a sequence of them is meant; they count
    as one range of memory, in their order. `domid` is the domain that granted them, or a sequence with one
    for each reference.

    Args:
        patience: how many seconds a page that is not there for the moment (paged out) is waited for.
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen`, as
            its dom0, or one of its domains, as that.

    Raises:
        FileNotFoundError: there is no /dev/xen/gntdev: no Xen, or its module xen_gntdev is not loaded.
        PermissionError: the device may not be opened.
        ForkError: from every method, in a child of the process that opened the device.
    """

    def __new__(
        cls, *, patience: float = 5.0, hypervisor: SimulatedXen | SimulatedDomain | None = None
    ) -> Self: ...
    def map(
        self,
        domid: int | Sequence[int],
        references: int | Sequence[int],
        *,
        writable: bool = False,
        clear_byte: int | None = None,
        notify_port: int | None = None,
    ) -> GrantMapping:
        """Maps granted pages, all or none.

        Close the mapping when you are done: as long as it lives the other domain cannot use the pages for
        anything else. When it is unmapped, also because this process died, the two last arguments let the
        other side know.

        Args:
            domid: who granted them.
            references: which pages.
            writable: for writing too; what is granted for reading only is refused then.
            clear_byte: the byte of the mapping, by its offset, that becomes 0; only with `writable`.
            notify_port: the event channel that is notified, a port of this process's :class:`EventChannels`.

        Raises:
            GrantMapError: a reference is bad (then ``failures`` has every bad one), or the request as a
                whole was refused.
            ValueError: no references; `clear_byte` is not in the pages, or they are not writable.
        """
    def attach(self, domid: int) -> AttachedGrants:
        """What a domain grants as memory, at addresses that its references make: ``1 << 63 | reference << 12
        | offset``, as a guest's virtio driver with grants names them. Nothing is mapped until it is touched.

        Its ``regions`` go into a table of ours beside others: ``GuestMemory([*grants.attach(3).regions,
        ...])``.

        Args:
            domid: the domain. You do not get an error for one that is not there: that is found when the
                memory is touched.
        """
    def copy_from(
        self, domid: int | Sequence[int], references: int | Sequence[int], size: int, *, offset: int = 0
    ) -> bytes:
        """Has the hypervisor copy bytes from granted pages, which are not mapped: cheaper for a few bytes.

        Args:
            domid: who granted them.
            references: which pages.
            size: how many bytes.
            offset: where they begin in the range that the pages make.

        Raises:
            GrantCopyError: a page was refused; ``failures`` has each.
            ValueError: the bytes do not lie in the pages.
        """
    def copy_to(
        self, domid: int | Sequence[int], references: int | Sequence[int], data: BytesLike, *, offset: int = 0
    ) -> int:
        """Has the hypervisor copy all of the data to granted pages, and returns how many bytes that were.

        Raises:
            GrantCopyError: a page was refused; ``failures`` has each. The others may have been written.
            ValueError: the bytes do not lie in the pages.
        """
    def fileno(self) -> int:
        """The device's descriptor; ValueError once it is closed."""
    def close(self) -> None:
        """Closes the device. Mappings stay."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class GrantMapping(GuestMemory):
    """Granted pages, mapped one after the other: addresses are byte offsets from the first."""

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB it has."""

@final
class AttachedGrants(GuestMemory):
    """What a domain grants, as :meth:`GrantTable.attach` gives it: one region of every reference that there
    can be.

    An access maps the pages that it touches, for reading or for writing, and gives them back at once; a view
    keeps them while it lives, and so does a ring or a chain in this memory. A reference that is bad is a
    GrantMapError of who touches it.
    """

    ADDRESS: Final[int]
    """Where the page of reference 0 is: ``1 << 63`` (Linux, XEN_GRANT_DMA_ADDR_OFF)."""

    @property
    def domid(self) -> int:
        """The domain."""
    @property
    def mapped_pages(self) -> int:
        """How many pages are mapped now.

        Raises:
            ValueError: the memory is closed.
        """

@final
class GrantAllocator:
    """Pages of ours that other domains may map, by /dev/xen/gntalloc (Linux, drivers/xen/gntalloc.c).

    The kernel has a limit for all programs together: /sys/module/xen_gntalloc/parameters/limit, 1024 pages
    unless it is set.

    Args:
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen`, as
            its dom0, or one of its domains, as that.

    Raises:
        FileNotFoundError: there is no /dev/xen/gntalloc: no Xen, or its module xen_gntalloc is not loaded.
        PermissionError: the device may not be opened.
        ForkError: from every method, in a child of the process that opened the device.
    """

    def __new__(cls, *, hypervisor: SimulatedXen | SimulatedDomain | None = None) -> Self: ...
    def share(
        self,
        domid: int,
        pages: int = 1,
        *,
        writable: bool = True,
        clear_byte: int | None = None,
        notify_port: int | None = None,
    ) -> GrantShare:
        """Makes pages of zeroes and grants them to a domain. Here they can be written in any case.

        Args:
            domid: who may map them.
            pages: how many, of 4 KiB.
            writable: whether that domain may write, too.
            clear_byte: the byte of the pages, by its offset, that becomes 0 when the share is closed, also
                because this process died.
            notify_port: the event channel that is notified then, a port that this process has bound.

        Raises:
            MapError: the kernel refused (ENOSPC: its limit).
            ValueError: no page; `clear_byte` is not in the pages.
        """
    def fileno(self) -> int:
        """The device's descriptor; ValueError once it is closed."""
    def close(self) -> None:
        """Closes the device. What is shared stays so."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class GrantShare(GuestMemory):
    """Pages that a domain may map: addresses are byte offsets from the first.

    Closing it ends the grants. What the other domain still has mapped it keeps until it lets go of it, and
    the kernel keeps the page until then.
    """

    @property
    def references(self) -> tuple[int, ...]:
        """The reference of each page: what the other domain has to be told."""

# ---- Xen: event channels, device model

@final
class EventChannels:
    """Event channels, by which domains wake each other (/dev/xen/evtchn; Linux, drivers/xen/evtchn.c).

    A port is one end of a channel, and a number in this domain. One that was notified is *pending*: the
    descriptor is readable, :meth:`pending` tells it once, and then it is masked until :meth:`unmask`. What
    comes while it is masked is told after that, once::

        loop.add_reader(channels, ready)  # asyncio; or select, or channels.pending(timeout)

    In a child after fork every method but ``fileno`` and ``close`` raises ForkError: a child that reads would
    take the parent's events.

    Args:
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen`, as
            its dom0, or one of its domains, as that.

    Raises:
        FileNotFoundError: there is no /dev/xen/evtchn: this is no Xen domain, or its module is not loaded.
        PermissionError: the device may not be opened.
    """

    def __new__(cls, *, hypervisor: SimulatedXen | SimulatedDomain | None = None) -> Self: ...
    def bind_interdomain(self, domid: int, port: int) -> int:
        """Binds to a port that another domain has made for this one (EVTCHNOP_bind_interdomain).

        Xen marks the new port pending at once, in case that the other domain notified before.

        Args:
            domid: the domain.
            port: the port, in its own numbers.

        Returns:
            Our port.

        Raises:
            XenCallError: there is no such domain (ESRCH), or no such port that waits for us (EINVAL).
        """
    def bind_unbound(self, domid: int) -> int:
        """Makes a port to which a domain may bind, once (EVTCHNOP_alloc_unbound); gives it. Tell the other
        side.

        Raises:
            XenCallError: no port is left (ENOSPC). That the domain is there is not asked.
        """
    def bind_virq(self, virq: int) -> int:
        """Makes a port of a virtual interrupt (VIRQ_*, xen/include/public/xen.h); gives it.

        Raises:
            XenCallError: somebody has it (EEXIST), it is not for this domain (EPERM), or there is none
                (EINVAL).
        """
    def unbind(self, port: int) -> None:
        """Closes a port.

        Raises:
            XenCallError: it is not bound here (ENOTCONN).
        """
    def notify(self, port: int) -> None:
        """Wakes the other end of a port. Where nobody has bound to it yet nothing is woken, and that is no
        error.

        Raises:
            XenCallError: it is not bound here (ENOTCONN).
        """
    def unmask(self, port: int) -> None:
        """Lets a port be pending again: at once, if it was notified while it was masked. One that is not
        masked, or not bound here, is passed over."""
    def pending(self, timeout: float | None = 0.0) -> list[int]:
        """The ports that were notified, each masked from here on. A port that is notified several times
        before is here once.

        Args:
            timeout: how many seconds one is waited for; None: for ever.

        Returns:
            The ports; empty when the time is over.
        """
    def restrict(self, domid: int) -> None:
        """From now on only ports of that domain are bound, and no virtual interrupt. It cannot be undone.

        Raises:
            XenCallError: it is restricted already (EACCES), or to dom0 (EINVAL).
        """
    def fileno(self) -> int:
        """The descriptor, readable while a port is pending; ValueError once it is closed."""
    def close(self) -> None:
        """Closes the device and all ports that it has bound."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class DeviceModel:
    """What stands in for a device of one domain asks of Xen (xen/include/public/hvm/dm_op.h;
    IOCTL_PRIVCMD_DM_OP).

    The server's own operations are here for completeness: :class:`IoreqServer` does what is wanted, and
    leaves nothing behind. Each method raises XenCallError where Xen refuses (ESRCH: no such domain;
    EOPNOTSUPP: a PV domain, or not in this Xen), and ForkError in a child after fork.

    Args:
        domid: the domain. It is not looked for before an operation is.
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen`, as
            its dom0, or one of its domains, as that.

    Raises:
        FileNotFoundError: there is no /dev/xen/privcmd.
        PermissionError: the device may not be opened.
    """

    def __new__(cls, domid: int, *, hypervisor: SimulatedXen | SimulatedDomain | None = None) -> Self: ...
    @property
    def domid(self) -> int:
        """The domain."""
    def vcpus(self) -> int:
        """How many vCPUs it has, offline ones included (XEN_DMOP_nr_vcpus)."""
    def create_ioreq_server(self) -> int:
        """Makes an IOREQ server without buffered requests, disabled; gives its number. A domain has up to
        eight."""
    def destroy_ioreq_server(self, server: int) -> None:
        """Ends an IOREQ server and its ranges. A vCPU that waits for its answer waits for ever."""
    def set_ioreq_server_state(self, server: int, enabled: bool) -> None:
        """Lets an IOREQ server be given requests, or no longer."""
    def ioreq_server_frame(self, server: int) -> int:
        """Puts the page of an IOREQ server into the domain's memory, and gives its frame (x86, HVM)."""
    def map_memory(self, server: int, address: int, size: int) -> None:
        """Gives an IOREQ server `size` guest physical addresses. An access that is not wholly inside is not
        given to it."""
    def unmap_memory(self, server: int, address: int, size: int) -> None:
        """Takes a range from it, exactly as it was given (else ENOENT)."""
    def map_ports(self, server: int, port: int, size: int) -> None:
        """Gives an IOREQ server `size` I/O ports (x86)."""
    def unmap_ports(self, server: int, port: int, size: int) -> None:
        """Takes ports from it, exactly as they were given (else ENOENT)."""
    def set_irq_level(self, irq: int, asserted: bool) -> None:
        """Sets the level of a shared peripheral interrupt of an Arm domain.

        Args:
            irq: as the GIC counts: from 32.
            asserted: raised, or taken back.
        """
    def set_isa_irq_level(self, irq: int, asserted: bool, *, hvm: bool) -> None:
        """Sets the level of an ISA interrupt of an HVM domain.

        Args:
            irq: 0 to 15.
            asserted: raised, or taken back.
            hvm: that you know the domain to be HVM. **For a PVH domain Xen 4.17 panics, and the machine with
                it**; there :meth:`inject_msi` does.

        Raises:
            ValueError: `hvm` is false.
        """
    def inject_msi(self, address: int, data: int) -> None:
        """Sends a message signalled interrupt to an x86 domain.

        Args:
            address: where a device would write: 0xfeexxxxx.
            data: what it would write; the vector is in the lowest eight bits.
        """
    @property
    def eventfd_support(self) -> Literal["both", "interrupts", "nothing"]:
        """What the kernel does with eventfds: raise interrupts and signal kicks; interrupts alone, because
        kicks would crash the kernel of a PV dom0; or nothing (older than 6.7, or without
        XEN_PRIVCMD_EVENTFD)."""
    def irq_fd(self, irq: int) -> InterruptFd:
        """An eventfd for a shared peripheral interrupt of an Arm domain."""
    def msi_fd(self, address: int, data: int) -> InterruptFd:
        """An eventfd for a message signalled interrupt of an x86 domain."""
    def close(self) -> None:
        """Closes the device. What was made in the domain stays."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class InterruptFd:
    """An eventfd that raises an interrupt of a domain when it is signalled: by the kernel
    (IOCTL_PRIVCMD_IRQFD), or where that cannot, by :meth:`deliver`. To be given to who does not know Xen.
    :meth:`DeviceModel.irq_fd` makes one.

    The level is left asserted, as the kernel does: for an interrupt that the domain takes by its edge.
    """

    @property
    def in_kernel(self) -> bool:
        """The kernel raises it; nobody has to wait."""
    def deliver(self) -> None:
        """Raises the interrupt if the eventfd was signalled. Does nothing where the kernel does it.

        Raises:
            XenCallError: Xen refused; ESRCH: the domain is gone.
        """
    def fileno(self) -> int:
        """The eventfd. Where it is not `in_kernel`, wait until it is readable, and `deliver`."""
    def close(self) -> None:
        """Takes it back from the kernel, and closes it."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class IoRequest:
    """What a vCPU wants of an address where no memory is (`struct ioreq`, xen/include/public/hvm/ioreq.h). It
    sleeps until :meth:`answer`. One that is dropped is answered as an empty bus does: a read gets ones.
    """

    @property
    def vcpu(self) -> int:
        """The vCPU that waits."""
    @property
    def kind(self) -> Literal["port", "memory", "invalidate", "other", "malformed"]:
        """What it is about. For "invalidate" give up what is mapped of the domain's memory: it may be gone.
        That, "other" (a type that Xen knows and we do not) and "malformed" (no size of 1 to 8) are only to be
        answered."""
    @property
    def address(self) -> int:
        """Guest physical address, or I/O port, of the first access."""
    @property
    def size(self) -> int:
        """Bytes of each access, 1 to 8."""
    @property
    def count(self) -> int:
        """How many accesses: more than one for an instruction with a rep prefix."""
    @property
    def is_read(self) -> bool:
        """It reads, so that a value is wanted; else it writes."""
    @property
    def backwards(self) -> bool:
        """Addresses go down from one access to the next (the direction flag)."""
    @property
    def value(self) -> int | None:
        """What is written, little-endian in `size` bytes; None for a read, and where it is in guest
        memory."""
    @property
    def data_address(self) -> int | None:
        """The guest physical address of the first value, where values are in guest memory; else None."""
    def accesses(self) -> list[tuple[int, int | None]]:
        """Each access in order: its address or port, and the guest physical address of its value (None:
        `value`, or what is answered). Empty if it is neither about memory nor ports."""
    def answer(self, value: int = 0) -> None:
        """Answers, once: the vCPU goes on.

        Args:
            value: what it reads, cut to `size` bytes. Passed over for a write, and where values are in guest
                memory: write them there before.

        Raises:
            ValueError: it is answered already, or the server was closed meanwhile, which answered.
        """

@final
class GuestBus:
    """What the devices of a Xen guest in this process share: an IOREQ server with a thread that answers, and
    the guest's memory. It ends with the last device; see :class:`xenvirt.xen.XenGuest`.

    Args:
        domid: the guest.
        ranges: where it may have RAM, by guest physical address; nothing is mapped before it is touched.
        limit: how many bytes of it may stay mapped; None for as many as are touched.
        hypervisor: who is asked, as in :class:`ForeignMemory`. A simulated one tells by itself when the guest
            is gone.

    Raises:
        OSError: Xen's devices cannot be opened.
        XenCallError: Xen refused: there is no such domain (ESRCH), or it is a PV one (EOPNOTSUPP).
        ForeignMapError: the page of the IOREQ server cannot be mapped.
    """

    def __new__(
        cls,
        domid: int,
        ranges: Iterable[range],
        *,
        limit: int | None = None,
        hypervisor: SimulatedXen | SimulatedDomain | None = None,
    ) -> Self: ...
    @property
    def vcpus(self) -> int:
        """How many vCPUs are answered."""
    @property
    def server(self) -> int:
        """The number of the IOREQ server in the guest, 0 to 7."""
    def leave(self) -> None:
        """Ends here, without the guest's noticing: vCPUs that want something wait in Xen, until a bus of
        another process takes the server over. The devices are to be closed after it."""
    def take_over(self, server: int) -> int:
        """Answers the vCPUs that wait for a server that was left, or whose process was killed, and ends that
        server: its devices have to be on this bus.

        Returns:
            How many vCPUs waited.

        Raises:
            XenCallError: a process serves it; or one that had the kernel take its kicks was killed.
            ForeignMapError: its page cannot be mapped.
        """
    def guest_is_gone(self) -> None:
        """Tells the devices that there is no guest any more: they let go of its memory."""
    def close(self) -> None:
        """Lets go of it. The devices keep it."""

@final
class IoreqServer:
    """Answers the accesses of a domain's vCPUs to addresses where no memory is: for a domain that is PVH, HVM
    or on Arm.

    It is enabled when it is made, and has no ranges yet. Each vCPU has a slot in a page that Xen shares with
    us, and an event channel; up to 128 vCPUs. ::

        with IoreqServer(domid) as server:
            server.map_memory(0x200_0000, 0x200)
            for request in server.requests(timeout=None):
                request.answer(0x74726976 if request.is_read else 0)

    Leaving the block answers who still waits, as an empty bus would, and ends the server. In a child after
    fork methods raise ForkError.

    Args:
        domid: the domain.
        page: how the page is reached: "resource" (Linux 4.18, Xen 4.11), "frame" (in the memory of an HVM
            domain, which has room for it), or "any": the former, and the latter where it is not known.
        hypervisor: who is asked: None for the kernel; in tests a :class:`xenvirt.testing.SimulatedXen`, as
            its dom0, or one of its domains, as that.

    Raises:
        XenCallError: no such domain (ESRCH), a PV one (EOPNOTSUPP), no right to it (EPERM), eight servers
            already (ENOSPC).
        ForeignMapError: the page cannot be mapped.
        FileNotFoundError: /dev/xen/privcmd or /dev/xen/evtchn is not there.
    """

    def __new__(
        cls,
        domid: int,
        *,
        page: Literal["any", "resource", "frame"] = "any",
        hypervisor: SimulatedXen | SimulatedDomain | None = None,
    ) -> Self: ...
    @property
    def domid(self) -> int:
        """The domain."""
    @property
    def number(self) -> int:
        """The server's number in the domain."""
    @property
    def vcpus(self) -> int:
        """How many vCPUs it answers."""
    @property
    def eventfd_support(self) -> Literal["both", "interrupts", "nothing"]:
        """As :attr:`DeviceModel.eventfd_support`."""
    def map_memory(self, address: int, size: int) -> None:
        """Accesses to `size` guest physical addresses come here from now on. One that is not wholly inside
        does not.

        Raises:
            XenCallError: the server has a part of it already (EEXIST).
        """
    def unmap_memory(self, address: int, size: int) -> None:
        """No longer; exactly as it was mapped, else XenCallError (ENOENT)."""
    def map_ports(self, port: int, size: int) -> None:
        """Accesses to `size` I/O ports come here from now on (x86)."""
    def unmap_ports(self, port: int, size: int) -> None:
        """No longer; exactly as they were mapped, else XenCallError (ENOENT)."""
    def requests(self, timeout: float | None = 0.0) -> list[IoRequest]:
        """The requests that are there; each is to be answered.

        Args:
            timeout: how many seconds one is waited for; None: for ever.

        Returns:
            At most one for each vCPU; empty when the time is over.
        """
    def kick_in_kernel(self, registers: int, queue: int, eventfd: FileLike) -> bool:
        """Lets the kernel signal an eventfd when a driver kicks a queue of a virtio-mmio device, and answer
        the vCPU (IOCTL_PRIVCMD_IOEVENTFD), until it is taken back or the server is closed.

        Args:
            registers: guest physical address of the device's registers (QueueNotify is 0x50 above).
            queue: the number that the driver writes.
            eventfd: what is signalled; duplicated.

        Returns:
            False where the kernel cannot, or is a PV dom0's and would crash: then kicks keep coming as
            requests.

        Raises:
            XenCallError: the kernel knows this and refused; EEXIST or EBUSY: that queue is given away
                already.
        """
    def kick_no_longer(self, registers: int, queue: int) -> None:
        """Kicks of that queue come as requests again."""
    def fileno(self) -> int:
        """A descriptor that is readable while there may be a request: for select and asyncio."""
    def close(self) -> None:
        """Ends the server: who waits is answered as an empty bus would. Eventfds for kicks are taken back."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class HypercallBuffer:
    """Memory that Xen itself reads and writes during a hypercall, full of zeroes.

    Ordinary memory will not do: the kernel may take a page away for a moment, to move it or because of a
        fork, and then the
    hypercall fails with EFAULT. Nothing else in this package needs one: the other calls have the kernel copy,
    or lock, what they are given. In a child after fork ``read`` and ``write`` raise ForkError.

    Args:
        size: in bytes.
        locked: take locked memory also where the kernel's can be had.

    Raises:
        XenCallError: no memory, or no more that may be locked (``ulimit -l``).
        ValueError: no byte, or more than there can be.
    """

    def __new__(cls, size: int, *, locked: bool = False) -> Self: ...
    @property
    def kind(self) -> Literal["kernel", "locked"]:
        """Whose pages it has: the kernel's (/dev/xen/hypercall, Linux 4.18), which never go away; or ours,
        locked and not inherited, where a hypercall may still fail, seldom."""
    @property
    def address(self) -> int:
        """Where it is: for the arguments of a hypercall. It holds until the buffer is closed."""
    @property
    def size(self) -> int:
        """Length in bytes."""
    def read(self, offset: int, size: int) -> bytes:
        """Copies out of it; ValueError for a range that is not inside."""
    def write(self, offset: int, data: BytesLike) -> int:
        """Copies into it, and gives how many bytes; ValueError for a range that is not inside."""
    def close(self) -> None:
        """Unmaps it."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

# ---- a simulated Xen

@disjoint_base
class SimulatedXen:
    """The native half of :class:`xenvirt.testing.SimulatedXen`."""

    def __new__(cls, kind: Literal["pv", "pvh", "aarch64"] = "pvh") -> Self: ...
    @property
    def kind(self) -> Literal["pv", "pvh", "aarch64"]:
        """What its dom0 is: paravirtual or PVH on x86, or on Arm."""
    @property
    def domids(self) -> list[int]:
        """The numbers of its domains, dom0's 0 first."""
    def domain(self, domid: int) -> SimulatedDomain:
        """A domain by its number; 0 is dom0.

        Raises:
            ValueError: there is none of that number.
        """
    def create(self, ranges: Iterable[range], vcpus: int) -> SimulatedDomain:
        """Makes a domain with RAM at these guest physical addresses, in order."""

@final
class SimulatedDomain:
    """A domain of a :class:`xenvirt.testing.SimulatedXen`, from the guest's side.

    It is a handle: the domain lives until it is destroyed or the machine is gone. Given as ``hypervisor=`` to
    what :mod:`xenvirt.xen` has, its own kernel answers: so a test plays the guest, too::

        with EventChannels(hypervisor=xen) as dom0, EventChannels(hypervisor=guest) as inside:
            port = dom0.bind_unbound(guest.domid)
            inside.notify(inside.bind_interdomain(0, port))
            assert dom0.pending(1.0) == [port]

    Where `frames` is asked for, one frame number of 4 KiB or a range of them is meant. Each method raises
    XenCallError once the domain is destroyed (ESRCH).
    """

    @property
    def domid(self) -> int:
        """Its number."""
    @property
    def exists(self) -> bool:
        """False once it is destroyed."""
    @property
    def ram(self) -> tuple[range, ...]:
        """Where it had RAM when it was made: guest physical addresses, in bytes."""
    @property
    def vcpus(self) -> int:
        """How many vCPUs it has."""
    def read(self, address: int, size: int) -> bytes:
        """What the guest has at a guest physical address.

        Raises:
            XenCallError: it has no RAM there (EFAULT).
        """
    def write(self, address: int, data: bytes | bytearray) -> int:
        """The guest writes at a guest physical address; gives how many bytes.

        Raises:
            XenCallError: it has no RAM there (EFAULT); nothing is written.
        """
    def balloon_out(self, frames: int | range) -> None:
        """The guest gives frames back: there are holes where they were. What is mapped of them stays as it
        is.

        Raises:
            XenCallError: one of them is a hole already (EINVAL); nothing is changed.
        """
    def populate(self, frames: int | range) -> None:
        """The guest gets new frames, full of zeroes, in the place of what was there. What is mapped of the
        old ones stays as it is.

        Raises:
            ValueError: more than 2^18 of them at once.
        """
    def page_out(self, frames: int | range, tries: int | None = None) -> None:
        """Xen pages frames out: whoever maps one gets ENOENT so many times; None for ever.

        Raises:
            XenCallError: one of them is a hole (EINVAL); nothing is changed.
        """
    def grant(self, frame: int, to: int = 0, *, writable: bool = True) -> int:
        """The guest grants a frame of its own to a domain; gives the reference.

        Raises:
            XenCallError: the frame is a hole (EINVAL), or the table is full (ENOSPC).
        """
    def end_grant(self, reference: int) -> None:
        """The guest ends a grant (gnttab_end_foreign_access_ref).

        Raises:
            XenCallError: somebody has it mapped (EBUSY), and then it stays granted; there is none (ENOENT).
        """
    def page_out_grant(self, reference: int, tries: int | None = None) -> None:
        """The page of a grant is not there for so many tries to map or to copy it (EAGAIN); None for ever.

        Raises:
            XenCallError: there is no such grant (ENOENT).
        """
    def interrupts(self) -> list[tuple[Literal["spi", "isa", "intx", "msi"], int, int]]:
        """What device models signalled since it was asked last: ("spi", number, 1 raised or 0 taken back), or
        ("msi", address, data)."""
    def load(
        self,
        address: int,
        size: int = 4,
        *,
        port: bool = False,
        vcpu: int = 0,
        timeout: float | None = 10.0,
    ) -> int:
        """A vCPU reads where no memory is, and waits for the answer: of the :class:`xenvirt.xen.IoreqServer`
        that has the address. Who answers does so in another thread; else see :meth:`start_load`. The GIL is
        released.

        Where no server has it, an x86 guest reads what an empty bus gives, every bit set.

        Args:
            address: guest physical address, or the I/O port.
            size: 1, 2, 4 bytes, of memory also 8.
            port: it is an I/O port.
            vcpu: which one.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: no answer came. The vCPU still waits.
            XenCallError: the vCPU waits for another answer (EBUSY); no server has the address, on Arm
                (EFAULT: a data abort); the domain was destroyed meanwhile (ESRCH).
            ValueError: there is no such vCPU, size or address.
        """
    def store(
        self,
        address: int,
        value: int,
        size: int = 4,
        *,
        port: bool = False,
        vcpu: int = 0,
        timeout: float | None = 10.0,
    ) -> None:
        """A vCPU writes where no memory is, and waits until it may go on. As :meth:`load`."""
    def start_load(
        self,
        address: int,
        size: int = 4,
        *,
        port: bool = False,
        vcpu: int = 0,
        count: int = 1,
        backwards: bool = False,
        data_address: int | None = None,
    ) -> SimulatedAccess:
        """As :meth:`load`, and does not wait.

        Args:
            address: guest physical address, or the I/O port.
            size: 1, 2, 4 bytes, of memory also 8.
            port: it is an I/O port.
            vcpu: which one.
            count: how many accesses: a string instruction (rep movs, rep ins) makes several.
            backwards: addresses go down from one access to the next.
            data_address: where in guest memory the values are, by guest physical address, as those of a
                string instruction are; None if the one value is in a register.
        """
    def start_store(
        self,
        address: int,
        value: int = 0,
        size: int = 4,
        *,
        port: bool = False,
        vcpu: int = 0,
        count: int = 1,
        backwards: bool = False,
        data_address: int | None = None,
    ) -> SimulatedAccess:
        """As :meth:`store`, and does not wait; with `data_address` the values are in guest memory."""
    def start_invalidate(self, *, vcpu: int = 0) -> SimulatedAccess:
        """A vCPU has Xen tell who has its memory mapped to give that back, as after a balloon grew
        (IOREQ_TYPE_INVALIDATE)."""
    def destroy(self) -> None:
        """Ends the domain: nothing of it is mapped from now on, its ports are closed, its vCPUs stop. What is
        mapped of it stays as it is.

        Raises:
            ValueError: it is dom0.
        """

@final
class SimulatedAccess:
    """An access of a vCPU on its way to who answers it."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""
    def result(self, timeout: float | None = 10.0) -> int:
        """What was read, after waiting for it; for a write, what stood in the request. As
        :meth:`SimulatedDomain.load`."""

@final
class SimulatedPrivcmd:
    """The bare calls of a simulated /dev/xen/privcmd, with all that a program can get wrong: for tests of the
    simulation itself (tests/xen/dom0/test_measured.py)."""

    def __new__(cls, hypervisor: SimulatedXen | SimulatedDomain) -> Self: ...
    def reserve(self, pages: int) -> int:
        """mmap: a fresh range; gives its address."""
    def forget(self, address: int, pages: int) -> None:
        """A range was unmapped by munmap, or something else mapped in its place."""
    def map_batch(
        self, domid: int, address: int, count: int, frames: list[int] | None, errors: list[int] | None
    ) -> tuple[int, list[int] | None]:
        """IOCTL_PRIVCMD_MMAPBATCH_V2: the errno of the call, 0 for success, and `errors` as it is then. None
        stands for an address where nothing is."""
    def restrict(self, domid: int) -> None:
        """IOCTL_PRIVCMD_RESTRICT."""
