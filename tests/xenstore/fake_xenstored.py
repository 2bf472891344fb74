"""A small xenstored for tests: the protocol over a socket, one tree, watches, transactions; and misbehaviour.

It serves what a test needs to see our side of the protocol's edges. It proves nothing about the real one:
that is in tests/xen/dom0/test_xenstore.py.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from xenvirt.xen.xenstore.paths import lies_in
from xenvirt.xen.xenstore.wire import PAYLOAD_MAX, Decoder, Message, Operation, encode

RELATIVE = {Operation.READ, Operation.WRITE, Operation.MKDIR, Operation.RM, Operation.DIRECTORY}
"""Operations that take a path of this domain, here."""


class RefusedError(Exception):
    """An error reply; its argument is the name of the errno."""


@dataclass
class Node:
    value: bytes = b""
    permissions: bytes = b"n0\0"
    generation: int = 0
    listed: int = 0
    """When a node below it came or went."""


@dataclass
class Transaction:
    begun: dict[str, Node]
    tree: dict[str, Node]
    touched: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)


class Client:
    """One connection."""

    def __init__(self, daemon: FakeXenstored, end: socket.socket) -> None:
        self.daemon = daemon
        self.end = end
        self.watches: list[tuple[str, str]] = []
        self.transactions: dict[int, Transaction] = {}

    def serve(self) -> None:
        decoder = Decoder()
        with contextlib.suppress(OSError):
            while data := self.end.recv(4096):
                for message in decoder.feed(data):
                    self.daemon.answer(self, message)
        self.daemon.gone(self)

    def send(self, message: Message) -> None:
        """In pieces, if the test wants it so."""
        data = encode(message)
        piece = self.daemon.piece or len(data)
        with contextlib.suppress(OSError):
            for begin in range(0, len(data), piece):
                self.end.sendall(data[begin : begin + piece])

    def fire(self, path: str) -> None:
        for watched, token in self.watches:
            if lies_in(path, watched):
                self.send(Message(Operation.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode()))


class FakeXenstored:
    """Serves while its block runs. What is changed of it under `lock` holds from the next request on.

    Attributes:
        piece: how many bytes are sent at once; 0 for whole messages.
        silent: operations that get no answer.
        before: called before a request is looked at, with the connection and the message.
        instead: answers by operation that replace the right ones: type, request number, payload.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "xenstored")
        self.tree: dict[str, Node] = {"/": Node()}
        self.lock = threading.RLock()
        self.piece = 0
        self.silent: set[Operation] = set()
        self.before: Callable[[Client, Message], None] = lambda _client, _message: None
        self.instead: dict[Operation, Callable[[Message], list[Message]]] = {}
        self.asked: list[Message] = []
        self.clients: list[Client] = []
        self._generation = 0
        self._numbers = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener.bind(self.path)
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for thread in self._threads:
            thread.join()

    def kill(self) -> None:
        """Hangs up on everybody."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.lock:
            for client in tuple(self.clients):
                with contextlib.suppress(OSError):
                    client.end.shutdown(socket.SHUT_RDWR)

    def write(self, path: str, value: str) -> None:
        """As another client would."""
        with self.lock:
            self._write(self.tree, path, value.encode())
            self.fire(path)

    def remove(self, path: str) -> None:
        """As another client would."""
        with self.lock:
            self._remove(self.tree, path)
            self.fire(path)

    def fire(self, path: str) -> None:
        for client in self.clients:
            client.fire(path)

    def gone(self, client: Client) -> None:
        with self.lock:
            self.clients.remove(client)
            client.end.close()

    def answer(self, client: Client, message: Message) -> None:
        with self.lock:
            operation = Operation(message.operation)
            self.asked.append(message)
            self.before(client, message)
            if operation in self.silent:
                return
            if operation in self.instead:
                for answer in self.instead[operation](message):
                    client.send(answer)
                return
            events: list[str] = []
            try:
                payload = self._do(client, operation, message, events)
                answer = message._replace(payload=payload)
                if len(payload) > PAYLOAD_MAX:
                    raise RefusedError("E2BIG")  # noqa: TRY301
            except RefusedError as refused:
                payload = f"{refused.args[0]}\0".encode()
                answer = Message(Operation.ERROR, message.request, message.transaction, payload)
            client.send(answer)
            for path in events:
                self.fire(path)
            if operation == Operation.WATCH and answer.operation == Operation.WATCH:
                client.send(Message(Operation.WATCH_EVENT, 0, 0, message.payload))

    def _do(self, client: Client, operation: Operation, message: Message, events: list[str]) -> bytes:
        first, _, rest = message.payload.partition(b"\0")
        path = first.decode()
        if operation in RELATIVE and not path.startswith(("/", "@")):
            path = f"/local/domain/0/{path}"
        running: Transaction | None = None
        if message.transaction and operation != Operation.TRANSACTION_END:
            running = client.transactions.get(message.transaction)
            if running is None:
                raise RefusedError("ENOENT")
            running.touched.add(path)
        tree = running.tree if running else self.tree
        changes = running.events if running else events
        match operation:
            case Operation.READ:
                return self._node(tree, path).value
            case Operation.WRITE:
                self._write(tree, path, rest)
                changes.append(path)
            case Operation.MKDIR:
                if path not in tree:
                    self._write(tree, path, b"")
                    changes.append(path)
            case Operation.RM:
                self._node(tree, path.rpartition("/")[0] or "/")
                self._remove(tree, path)
                changes.append(path)
            case Operation.DIRECTORY:
                return self._listing(tree, path)
            case Operation.DIRECTORY_PART:
                return self._part(tree, path, int(rest[:-1]))
            case Operation.GET_PERMS:
                return self._node(tree, path).permissions
            case Operation.SET_PERMS:
                self._node(tree, path).permissions = rest
                changes.append(path)
            case Operation.WATCH:
                watch = (path, rest[:-1].decode())
                if watch in client.watches:
                    raise RefusedError("EEXIST")
                client.watches.append(watch)
            case Operation.UNWATCH:
                watch = (path, rest[:-1].decode())
                if watch not in client.watches:
                    raise RefusedError("ENOENT")
                client.watches.remove(watch)
            case Operation.TRANSACTION_START:
                self._numbers += 1
                client.transactions[self._numbers] = Transaction(
                    copy.deepcopy(self.tree), copy.deepcopy(self.tree)
                )
                return b"%d\0" % self._numbers
            case Operation.TRANSACTION_END:
                ended = client.transactions.pop(message.transaction, None)
                if ended is None:
                    raise RefusedError("ENOENT")
                if path == "T":
                    self._commit(ended, events)
            case Operation.GET_DOMAIN_PATH:
                return f"/local/domain/{path}\0".encode()
            case Operation.IS_DOMAIN_INTRODUCED:
                return b"T\0" if f"/local/domain/{path}" in tree else b"F\0"
            case _:
                raise RefusedError("ENOSYS")
        return b"OK\0"

    def _commit(self, ended: Transaction, events: list[str]) -> None:
        for path in ended.touched:
            if ended.begun.get(path) != self.tree.get(path):
                raise RefusedError("EAGAIN")
        for path in ended.tree.keys() | ended.begun.keys():
            if ended.tree.get(path) != ended.begun.get(path):
                if path in ended.tree:
                    self.tree[path] = ended.tree[path]
                else:
                    self.tree.pop(path, None)
        events.extend(ended.events)

    @staticmethod
    def _node(tree: dict[str, Node], path: str) -> Node:
        if path not in tree:
            raise RefusedError("ENOENT")
        return tree[path]

    def _write(self, tree: dict[str, Node], path: str, value: bytes) -> None:
        self._generation += 1
        above = path.rpartition("/")[0] or "/"
        if above not in tree:
            self._write(tree, above, b"")
        if path not in tree:
            tree[path] = Node()
            tree[above].listed = self._generation
        tree[path].value, tree[path].generation = value, self._generation

    def _remove(self, tree: dict[str, Node], path: str) -> None:
        self._generation += 1
        for one in [one for one in tree if lies_in(one, path)]:
            del tree[one]
        tree[path.rpartition("/")[0] or "/"].listed = self._generation

    def _listing(self, tree: dict[str, Node], path: str) -> bytes:
        self._node(tree, path)
        prefix = path.rstrip("/") + "/"
        names = [one.removeprefix(prefix) for one in tree if one.startswith(prefix) and one != "/"]
        return "".join(f"{name}\0" for name in names if "/" not in name).encode()

    def _part(self, tree: dict[str, Node], path: str, offset: int) -> bytes:
        listing = self._listing(tree, path)
        head = b"%d\0" % tree[path].listed
        room = PAYLOAD_MAX - len(head) - 1
        part = listing[offset : offset + room]
        if offset + len(part) < len(listing):
            part = part[: part.rindex(b"\0") + 1]
        ends = offset + len(part) >= len(listing)
        return head + part + (b"\0" if ends else b"")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                client = Client(self, end)
                with self.lock:
                    self.clients.append(client)
                self._start(client.serve)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()
