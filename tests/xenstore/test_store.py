"""The blocking store against a fake daemon: the edges of the protocol."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from xenvirt.errors import ForkError, XenStoreError, XenvirtError
from xenvirt.xen.xenstore import Access, Permission, XenStore
from xenvirt.xen.xenstore.wire import Message, Operation

from .fake_xenstored import Client, FakeXenstored


def code(caught: pytest.ExceptionInfo[XenStoreError]) -> str:
    return errno.errorcode[caught.value.errno or 0]


@pytest.mark.parametrize("piece", [0, 1, 7])
def test_nodes_are_written_read_listed_and_removed(
    daemon: FakeXenstored, store: XenStore, piece: int
) -> None:
    daemon.piece = piece
    store.write("/tool/x/a", "text")
    store.write("/tool/x/b", 17)
    store.write("/tool/x/c", b"\xff\0bytes")
    store.mkdir("/tool/x/d")
    assert store.read("/tool/x/a") == "text"
    assert int(store.read("/tool/x/b")) == 17
    assert store.read_bytes("/tool/x/c") == b"\xff\0bytes"
    assert store.read("/tool/x/c").encode("ascii", "surrogateescape") == b"\xff\0bytes"
    assert store.read("/tool/x/d") == ""
    assert store.list("/tool/x") == ("a", "b", "c", "d")
    assert store.list("/tool/x/a") == ()
    store.rm("/tool/x")
    assert store.get("/tool/x/a") is None
    assert store.get("/tool/x/a", "default") == "default"


def test_an_error_names_the_path_and_says_why(store: XenStore) -> None:
    with pytest.raises(XenStoreError, match="READ of /nothing: no such node") as caught:
        store.read("/nothing")
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "/nothing")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, XenvirtError)


@pytest.mark.parametrize("name", ["EINVAL", "EACCES", "EROFS", "EPERM", "ENOTEMPTY", "EISDIR"])
def test_errors_come_by_name(daemon: FakeXenstored, store: XenStore, name: str) -> None:
    daemon.instead[Operation.READ] = lambda message: [
        message._replace(operation=Operation.ERROR, payload=f"{name}\0".encode())
    ]
    with pytest.raises(XenStoreError) as caught:
        store.read("/a")
    assert code(caught) == name


def test_an_error_that_nobody_knows_is_an_error_of_the_protocol(
    daemon: FakeXenstored, store: XenStore
) -> None:
    daemon.instead[Operation.READ] = lambda message: [
        message._replace(operation=Operation.ERROR, payload=b"ENOIDEA\0")
    ]
    with pytest.raises(XenStoreError, match="'ENOIDEA'") as caught:
        store.read("/a")
    assert code(caught) == "EPROTO"
    assert store.list("/") == ()


def test_what_has_no_room_is_refused_before_it_is_sent(daemon: FakeXenstored, store: XenStore) -> None:
    store.write("/a", b"x" * (4096 - 3))
    sent = len(daemon.asked)
    with pytest.raises(ValueError, match=r"WRITE of /a is too long by 1 bytes: .* at most 4096 together"):
        store.write("/a", b"x" * (4096 - 2))
    with pytest.raises(ValueError, match="is not ASCII"):
        store.write("/a", "ä")
    with pytest.raises(TypeError, match="not bool"):
        store.write("/a", True)
    with pytest.raises(ValueError, match="empty name"):
        store.read("/a/")
    with pytest.raises(ValueError, match="at least one permission"):
        store.set_permissions("/a", [])
    with pytest.raises(ValueError, match="0 to 65535, not 65536"):
        store.domain_path(65536)
    assert len(daemon.asked) == sent


def test_permissions_are_typed(store: XenStore) -> None:
    store.write("/a", "")
    store.set_permissions("/a", ["n0", Permission(3, Access.BOTH)])
    assert store.permissions("/a") == (Permission(0, Access.NONE), Permission(3, Access.BOTH))


def test_a_list_longer_than_a_message_comes_in_parts(daemon: FakeXenstored, store: XenStore) -> None:
    names = tuple(f"node-{number:05}-{'x' * 50}" for number in range(300))
    for name in names:
        daemon.write(f"/many/{name}", "")
    assert store.list("/many") == names
    parts = [one for one in daemon.asked if one.operation == Operation.DIRECTORY_PART]
    assert len(parts) > 3


def test_a_long_list_that_changes_between_its_parts_is_read_anew(
    daemon: FakeXenstored, store: XenStore
) -> None:
    for number in range(300):
        daemon.write(f"/many/node-{number:05}-{'x' * 50}", "")
    parts = 0

    def change(_client: Client, message: Message) -> None:
        nonlocal parts
        parts += message.operation == Operation.DIRECTORY_PART
        if parts == 2:
            daemon.remove(f"/many/node-00000-{'x' * 50}")
            parts += 1

    daemon.before = change
    listed = store.list("/many")
    assert parts > 3
    assert len(set(listed)) == len(listed) == 299


def test_domains(daemon: FakeXenstored, store: XenStore) -> None:
    daemon.write("/local/domain/3/name", "three")
    assert store.domain_path(3) == "/local/domain/3"
    assert store.is_domain_introduced(3)
    assert not store.is_domain_introduced(4)


# ---- a daemon that is slow, dead, or mad


def test_no_answer_is_a_timeout_and_a_late_one_disturbs_nobody(daemon: FakeXenstored) -> None:
    with XenStore(daemon.path, timeout=0.05) as store:
        daemon.silent = {Operation.READ}
        with pytest.raises(XenStoreError, match=r"no answer from .* in 0.05 s") as caught:
            store.read("/a")
        assert code(caught) == "ETIMEDOUT"
        late = daemon.asked[-1]
        daemon.instead[Operation.DIRECTORY] = lambda message: [
            late._replace(payload=b"late"),
            message._replace(payload=b"a\0"),
        ]
        store.timeout = 5
        assert store.list("/") == ("a",)


def test_a_daemon_that_dies_is_noticed_and_stays_dead(daemon: FakeXenstored, store: XenStore) -> None:
    watch = store.watch("/a")
    assert watch.wait(5)
    daemon.before = lambda _client, _message: daemon.kill()
    for _ in range(2):
        with pytest.raises(XenStoreError, match="lost: the daemon hung up") as caught:
            store.read("/a")
        assert code(caught) == "ECONNRESET"
    with pytest.raises(XenStoreError, match="lost"):
        watch.wait(5)
    watch.close()


def test_who_waits_for_an_event_is_told_that_the_daemon_died(daemon: FakeXenstored, store: XenStore) -> None:
    with store.watch("/a") as watch:
        assert watch.wait(5)
        daemon.kill()
        with pytest.raises(XenStoreError, match="lost"):
            watch.wait(5)


@pytest.mark.parametrize(
    "answer",
    [
        lambda message: message._replace(request=message.request + 100),
        lambda message: message._replace(operation=Operation.WRITE),
        lambda _message: Message(Operation.WATCH_EVENT, 0, 0, b"no zeroes"),
    ],
)
def test_nonsense_ends_the_connection(daemon: FakeXenstored, store: XenStore, answer: object) -> None:
    assert callable(answer)
    daemon.instead[Operation.READ] = lambda message: [answer(message)]
    with pytest.raises(XenStoreError, match="no message") as caught:
        store.read("/a")
    assert code(caught) == "EPROTO"
    with pytest.raises(XenStoreError, match="lost"):
        store.read("/a")


@pytest.mark.parametrize(
    ("operation", "payload", "ask"),
    [
        (Operation.WRITE, b"", lambda store: store.write("/a", "")),
        (Operation.DIRECTORY, b"a", lambda store: store.list("/a")),
        (Operation.GET_PERMS, b"x0\0", lambda store: store.permissions("/a")),
        (Operation.GET_DOMAIN_PATH, b"a\0b\0", lambda store: store.domain_path(1)),
        (Operation.IS_DOMAIN_INTRODUCED, b"?\0", lambda store: store.is_domain_introduced(1)),
        (Operation.TRANSACTION_START, b"0\0", lambda store: store.transaction().__enter__()),
        (Operation.TRANSACTION_START, b"\xb2\0", lambda store: store.transaction().__enter__()),
    ],
)
def test_an_answer_without_sense_is_an_error_and_the_connection_lives(
    daemon: FakeXenstored, store: XenStore, operation: Operation, payload: bytes, ask: object
) -> None:
    assert callable(ask)
    daemon.instead[operation] = lambda message: [message._replace(payload=payload)]
    with pytest.raises(XenStoreError, match="makes no sense") as caught:
        ask(store)
    assert code(caught) == "EPROTO"
    assert store.get("/b") is None


def test_where_no_daemon_listens_the_error_says_so(tmp_path: object, daemon: FakeXenstored) -> None:
    with pytest.raises(XenStoreError, match="cannot be reached") as caught:
        XenStore(f"{tmp_path}/nothing")
    assert code(caught) == "ENOENT"
    daemon.kill()
    with pytest.raises(XenStoreError, match="does xenstored run"):
        XenStore(daemon.path)


def test_the_environment_names_the_socket(daemon: FakeXenstored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", daemon.path)
    with XenStore() as store:
        assert store.path == daemon.path


def test_a_closed_store_and_a_child_after_fork_are_refused(daemon: FakeXenstored, store: XenStore) -> None:
    with XenStore(daemon.path) as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        closed.read("/a")
    pid = os.fork()
    if pid == 0:
        try:
            store.read("/")
        except ForkError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.read("/") == ""


def test_threads_share_a_store(daemon: FakeXenstored, store: XenStore) -> None:
    def work(name: str) -> None:
        for number in range(50):
            store.write(f"/{name}", number)
            assert store.read(f"/{name}") == str(number)
        done.append(name)

    done: list[str] = []
    threads = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert len(daemon.asked) == 400
