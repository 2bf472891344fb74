"""The socket device's protocol without I/O (virtio 1.3, section 5.10.6): packets go in, packets come out.

General theory of operation. A :class:`VsockCore` is all sockets of one guest. :meth:`VsockCore.heard` takes a
packet from the device, ``outgoing`` has those that wait to be sent. A :class:`Connection` is one stream: what
came is in `received` until it is taken, and what may be sent is limited by the credit that the peer gave. Who
uses a connection looks at its state after each packet; `changed` is called when there is something to look
at.

Credit is flow control with two counters a side, modulo 2^32: `buf_alloc` says how many bytes one has room
for, `fwd_cnt` how many one has taken out of that room so far. Each header carries the sender's own two. The
other side may have at most buf_alloc bytes on their way that are not in fwd_cnt yet.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from enum import Enum

from xenvirt.virtio.vsock import HOST_CID, Operation, PacketHeader, ShutdownFlag, SocketType

BUFFER = 256 * 1024
"""Bytes that a connection has room for until somebody takes them: our buf_alloc."""

MAX_PAYLOAD = 64 * 1024
"""The most bytes of data in one packet that we send; the specification has no limit, Linux has this one."""

CLOSE_TIMEOUT = 8.0
"""How long the other end may take to answer the end of a connection, in seconds, as in Linux."""

FIRST_EPHEMERAL_PORT = 49152
MODULUS = 1 << 32


class State(Enum):
    """How far a connection is."""

    CONNECTING = "connecting"
    """REQUEST is sent, RESPONSE or RST is awaited."""
    OPEN = "open"
    CLOSING = "closing"
    """We have said that we neither send nor receive any more, and wait for the RST that ends it."""
    CLOSED = "closed"
    """The protocol is done with it; what was received before can still be taken."""


class Connection:
    """One stream.

    Attributes:
        local_port: our port.
        peer: the other end's CID and port.
        state: how far it is.
        received: what came and was not taken yet.
        at_end: the peer sends nothing more; after `received` comes the end of the stream.
        peer_reads: False once the peer has said that it does not receive any more.
        error: what broke the connection, if something did.
        changed: called after anything above changed, or credit came.
    """

    def __init__(self, core: VsockCore, local_port: int, peer: tuple[int, int], state: State) -> None:
        self._core = core
        self.local_port = local_port
        self.peer = peer
        self.state = state
        self.received = bytearray()
        self.at_end = False
        self.peer_reads = True
        self.error: type[OSError] | None = None
        self.changed: Callable[[], object] | None = None
        self._peer_room = self._peer_taken = 0  # the peer's buf_alloc and fwd_cnt
        self._sent = 0
        self._taken = self._told = 0  # our fwd_cnt, and what of it the peer has heard
        self._asked = False
        self._said = 0  # which ShutdownFlags we have sent

    @property
    def credit(self) -> int:
        """How many bytes may be sent now."""
        if self.state is not State.OPEN or self._said & ShutdownFlag.SEND or not self.peer_reads:
            return 0
        return max(self._peer_room - (self._sent - self._peer_taken) % MODULUS, 0)

    @property
    def may_send(self) -> bool:
        """False once nothing can be sent any more, whatever credit comes."""
        return self.state is State.OPEN and self.peer_reads and not self._said & ShutdownFlag.SEND

    def send(self, data: memoryview) -> int:
        """Sends as much of `data` as there is credit for; gives the number of bytes. Where that is too little
        the peer is asked for more, once.
        """
        size = min(len(data), self.credit)
        for start in range(0, size, MAX_PAYLOAD):
            part = bytes(data[start : min(start + MAX_PAYLOAD, size)])
            self._sent = (self._sent + len(part)) % MODULUS
            self._send(Operation.RW, data=part)
        if size < len(data) and self.may_send and not self._asked:
            self._asked = True
            self._send(Operation.CREDIT_REQUEST)
        return size

    def take(self, size: int) -> bytes:
        """Takes at most `size` bytes of what was received. The peer hears of it when half of its room is
        free.
        """
        data = bytes(self.received[:size])
        del self.received[:size]
        self._taken = (self._taken + len(data)) % MODULUS
        if (
            self.state is State.OPEN
            and not self.at_end
            and (self._taken - self._told) % MODULUS >= BUFFER // 2
        ):
            self._send(Operation.CREDIT_UPDATE)
        return data

    def shutdown(self, flags: int) -> None:
        """Says that we receive no more, send no more, or both."""
        if self.state is State.OPEN and flags & ~self._said:
            self._said |= flags
            self._send(Operation.SHUTDOWN, self._said)

    def close(self) -> None:
        """Ends it in order: SHUTDOWN of both directions, to which the peer answers RST. What was received and
        not taken is dropped.
        """
        self.received.clear()
        if self.state is State.OPEN:
            self.shutdown(ShutdownFlag.RECEIVE | ShutdownFlag.SEND)
            self.state = State.CLOSING
            self._core.closing[self] = None
        elif self.state is State.CONNECTING:
            self.reset()

    def reset(self) -> None:
        """Ends it at once: RST."""
        if self.state is not State.CLOSED:
            self._send(Operation.RST)
            self._end()

    # ---- what comes

    def _heard(self, header: PacketHeader, data: bytes) -> None:
        self._peer_room, self._peer_taken = header.buf_alloc, header.fwd_cnt
        if self.credit:
            self._asked = False
        operation = header.op
        if operation == Operation.RST:
            refused = self.state is State.CONNECTING
            in_order = self.state is State.CLOSING or self.at_end
            self._end(ConnectionRefusedError if refused else None if in_order else ConnectionResetError)
        elif self.state is State.CONNECTING:
            if operation == Operation.RESPONSE:
                self.state = State.OPEN
            else:
                self._send(Operation.RST)
                self._end(ConnectionResetError)
        elif operation == Operation.RW:
            self._receive(data)
        elif operation == Operation.CREDIT_REQUEST:
            self._send(Operation.CREDIT_UPDATE)
        elif operation == Operation.SHUTDOWN:
            self._peer_shut_down(header.flags)
        if self.changed is not None:
            self.changed()

    def _receive(self, data: bytes) -> None:
        if self.state is State.CLOSING or self._said & ShutdownFlag.RECEIVE:
            return  # sent before the peer heard that nobody reads
        if len(self.received) + len(data) > BUFFER:
            # 5.10.6.3: a peer MUST NOT send more than there is room for.
            self._send(Operation.RST)
            self._end(ConnectionAbortedError)
            return
        self.received += data

    def _peer_shut_down(self, flags: int) -> None:
        self.at_end = self.at_end or bool(flags & ShutdownFlag.SEND)
        self.peer_reads = self.peer_reads and not flags & ShutdownFlag.RECEIVE
        if self.at_end and not self.peer_reads:
            # 5.10.6.6: RST answers a peer that is done in both directions.
            self._send(Operation.RST)
            self._end()

    def _end(self, error: type[OSError] | None = None) -> None:
        self.state = State.CLOSED
        self.at_end = True
        self.peer_reads = False
        self.error = self.error or error
        self._core.forget(self)

    def _send(self, operation: Operation, flags: int = 0, data: bytes = b"") -> None:
        self._told = self._taken
        self._core.send(
            (self.local_port, *self.peer),
            operation,
            flags=flags,
            data=data,
            room=BUFFER,
            taken=self._taken,
        )


class Listener:
    """A port of ours that takes connections.

    Attributes:
        port: its number.
        backlog: how many connections may wait for being accepted; further ones are refused.
        waiting: those that wait.
        changed: called when one came.
    """

    def __init__(self, core: VsockCore, port: int, backlog: int) -> None:
        self._core = core
        self.port = port
        self.backlog = backlog
        self.waiting: deque[Connection] = deque()
        self.changed: Callable[[], object] | None = None

    def close(self) -> None:
        """Takes no more; those that wait are refused."""
        self._core.listeners.pop(self.port, None)
        while self.waiting:
            self.waiting.popleft().reset()


class VsockCore:
    """All sockets of one guest.

    Attributes:
        guest_cid: our address.
        outgoing: packets to be sent, header and data.
        listeners: by port.
        closing: connections whose end the other side has not answered yet, and when that will be too late.
        ignored: how many packets were not for us, or made no sense.
    """

    def __init__(self, guest_cid: int) -> None:
        self.guest_cid = guest_cid
        self.outgoing: deque[tuple[bytes, bytes]] = deque()
        self.listeners: dict[int, Listener] = {}
        self.closing: dict[Connection, float | None] = {}
        self.ignored = 0
        self._connections: dict[tuple[int, int, int], Connection] = {}
        self._next_port = FIRST_EPHEMERAL_PORT

    def connect(self, port: int, cid: int = HOST_CID, local_port: int | None = None) -> Connection:
        """Asks for a connection to `port` of `cid`.

        Raises:
            ValueError: a port does not fit 32 bits.
            OSError: (EADDRINUSE) `local_port` is connected there already.
        """
        for number in (port, local_port or 0):
            if not 0 <= number < MODULUS:
                raise ValueError(f"port {number}: a vsock port has 32 bits")
        if local_port is None:
            while (self._next_port, cid, port) in self._connections or self._next_port in self.listeners:
                self._next_port += 1
            local_port = self._next_port
            self._next_port = max((local_port + 1) % (MODULUS - 1), FIRST_EPHEMERAL_PORT)
        if (local_port, cid, port) in self._connections:
            raise _in_use(f"port {local_port} is connected to port {port} of CID {cid} already")
        connection = Connection(self, local_port, (cid, port), State.CONNECTING)
        self._connections[(local_port, cid, port)] = connection
        connection._send(Operation.REQUEST)
        return connection

    def listen(self, port: int, backlog: int = 8) -> Listener:
        """Takes connections on `port` from now on.

        Raises:
            OSError: (EADDRINUSE) that is done already.
        """
        if port in self.listeners:
            raise _in_use(f"somebody listens on port {port} already")
        self.listeners[port] = Listener(self, port, backlog)
        return self.listeners[port]

    def heard(self, packet: bytes) -> None:
        """A packet came from the device."""
        header = PacketHeader.from_bytes(packet)
        data = packet[PacketHeader.size() :]
        known = header.op in Operation.__members__.values() and header.op != Operation.INVALID
        if len(packet) < PacketHeader.size() or header.dst_cid != self.guest_cid or not known:
            self.ignored += 1
            return
        if len(data) < header.len:
            self.ignored += 1
            return
        key = (header.dst_port, header.src_cid, header.src_port)
        connection = self._connections.get(key)
        if header.type != SocketType.STREAM:
            # 5.10.6.4.2: other types are answered with RST.
            if header.op != Operation.RST:
                self.send(key, Operation.RST, kind=header.type)
        elif connection is not None:
            connection._heard(header, data[: header.len])
        elif header.op == Operation.REQUEST and self._has_room(header.dst_port):
            self._accept(key, header)
        elif header.op != Operation.RST:
            self.send(key, Operation.RST)

    def transport_reset(self, guest_cid: int) -> None:
        """The device says that all connections are gone (5.10.6.7); listeners stay."""
        self.guest_cid = guest_cid
        self.outgoing.clear()
        for connection in tuple(self._connections.values()):
            connection._end(ConnectionResetError)
            if connection.changed is not None:
                connection.changed()

    def expire(self, now: float) -> None:
        """Breaks connections whose end was not answered in time (5.10.6.6); `now` is any clock's, in seconds.
        The time counts from the first call after the connection was closed.
        """
        for connection, deadline in tuple(self.closing.items()):
            if deadline is None:
                self.closing[connection] = now + CLOSE_TIMEOUT
            elif now >= deadline:
                connection.reset()

    def _has_room(self, port: int) -> bool:
        listener = self.listeners.get(port)
        return listener is not None and len(listener.waiting) < listener.backlog

    def _accept(self, key: tuple[int, int, int], header: PacketHeader) -> None:
        connection = Connection(self, key[0], key[1:], State.OPEN)
        connection._peer_room, connection._peer_taken = header.buf_alloc, header.fwd_cnt
        self._connections[key] = connection
        connection._send(Operation.RESPONSE)
        listener = self.listeners[key[0]]
        listener.waiting.append(connection)
        if listener.changed is not None:
            listener.changed()

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.pop((connection.local_port, *connection.peer), None)
        self.closing.pop(connection, None)

    def send(
        self,
        key: tuple[int, int, int],
        operation: Operation,
        *,
        kind: int = SocketType.STREAM,
        flags: int = 0,
        data: bytes = b"",
        room: int = 0,
        taken: int = 0,
    ) -> None:
        """Puts a packet in `outgoing`; `key` is our port, and the CID and port of the peer."""
        port, peer_cid, peer_port = key
        header = PacketHeader(
            self.guest_cid,
            peer_cid,
            port,
            peer_port,
            len(data),
            kind,
            operation,
            flags,
            room,
            taken,
        )
        self.outgoing.append((header.to_bytes(), data))


def _in_use(message: str) -> OSError:
    return OSError(errno.EADDRINUSE, message)
