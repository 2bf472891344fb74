"""The xenstore on real Xen, by xenstored's socket and by the kernel's device: the same tests for both."""

from __future__ import annotations

import asyncio
import errno
import re
import select
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from xenvirt.xen.xenstore import (
    Access,
    AsyncTransaction,
    AsyncXenStore,
    Permission,
    Transaction,
    XenStore,
    XenStoreError,
)
from xenvirt.xen.xenstore.connection import DEVICES, SOCKET

from .conftest import make_guest, xl

pytestmark = pytest.mark.dom0("pv", "pvh", "aarch64")

HOME = "/tool/xenvirt-test"


@pytest.fixture(params=[SOCKET, DEVICES[0]], ids=["socket", "xenbus"])
def way(request: pytest.FixtureRequest) -> str:
    """How the xenstore is reached."""
    path: str = request.param
    return path


@pytest.fixture
def store(way: str) -> Iterator[XenStore]:
    with XenStore(way) as connected:
        connected.mkdir(HOME)
        yield connected
        connected.rm(HOME)


def tool(name: str, *words: str) -> str:
    """What one of Xen's own tools prints."""
    return subprocess.run([name, *words], check=True, capture_output=True, text=True).stdout


def test_nodes_are_what_xens_own_tools_see(store: XenStore) -> None:
    store.write(f"{HOME}/a/b", "text")
    assert tool("xenstore-read", f"{HOME}/a/b") == "text\n"
    tool("xenstore-write", f"{HOME}/c", "theirs")
    assert store.read(f"{HOME}/c") == "theirs"
    store.mkdir(f"{HOME}/d")
    assert store.list(HOME) == ("a", "c", "d")
    assert store.read(f"{HOME}/a") == ""
    store.rm(f"{HOME}/a")
    assert store.get(f"{HOME}/a/b") is None
    store.write(f"{HOME}/bytes", bytes(range(256)))
    assert store.read_bytes(f"{HOME}/bytes") == bytes(range(256))


def test_a_relative_path_is_this_domains(store: XenStore) -> None:
    assert store.read("domid") == store.read("/local/domain/0/domid") == "0"


def test_errors_are_those_of_the_daemon(store: XenStore) -> None:
    def number(call: object) -> str:
        assert callable(call)
        with pytest.raises(XenStoreError) as caught:
            call()
        return errno.errorcode[caught.value.errno or 0]

    assert number(lambda: store.read(f"{HOME}/missing")) == "ENOENT"
    assert number(lambda: store.rm(f"{HOME}/missing/below")) == "ENOENT"
    assert number(lambda: store.rm("/")) == "EINVAL"
    store.rm(f"{HOME}/missing")


def test_the_greatest_value_passes(store: XenStore, way: str) -> None:
    path = f"{HOME}/big"
    greatest = (4096 if way == SOCKET else 4080) - len(path) - 1
    store.write(path, b"x" * greatest)
    assert len(store.read_bytes(path)) == greatest
    with pytest.raises(ValueError, match="too long by 1 bytes"):
        store.write(path, b"x" * (greatest + 1))
    with XenStore(SOCKET) as other:
        other.write(path, b"x" * (4096 - len(path) - 1))
    assert len(store.read_bytes(path)) == 4096 - len(path) - 1


def test_a_list_longer_than_a_message(store: XenStore) -> None:
    names = {f"{number:04}-{'x' * 40}" for number in range(120)}
    with store.transaction() as transaction:
        for name in names:
            transaction.mkdir(f"{HOME}/{name}")
    listed = store.list(HOME)
    assert len(listed) == 120
    assert set(listed) == names


def test_permissions_are_seen_by_xens_own_tool(store: XenStore) -> None:
    store.write(f"{HOME}/shared", "1")
    store.set_permissions(f"{HOME}/shared", ["n0", Permission(3, Access.READ), "b5"])
    assert store.permissions(f"{HOME}/shared") == (
        Permission(0, Access.NONE),
        Permission(3, Access.READ),
        Permission(5, Access.BOTH),
    )
    assert re.search(r'shared = "1" [ .]+\(n0,r3,b5\)', tool("xenstore-ls", "-p", HOME))


def test_domains(store: XenStore, guest: int) -> None:
    assert store.domain_path(guest) == f"/local/domain/{guest}"
    assert store.is_domain_introduced(guest)
    assert not store.is_domain_introduced(0x7000)
    assert store.read(f"{store.domain_path(guest)}/name") == "guest"


# ---- watches


def test_a_watch_tells_of_what_others_do(store: XenStore) -> None:
    with store.watch(HOME) as watch:
        first = watch.wait(5)
        assert first is not None
        assert (first.path, first.watched) == (HOME, HOME)
        tool("xenstore-write", f"{HOME}/a/b", "1")
        event = watch.wait(5)
        assert event is not None
        assert event.path == f"{HOME}/a/b"
        tool("xenstore-rm", HOME)
        event = watch.wait(5)
        assert event is not None
        assert event.path == HOME
        store.mkdir(HOME)


def test_a_relative_watch_reports_relative_paths(store: XenStore) -> None:
    store.write("xenvirt-test", "1")
    with store.watch("xenvirt-test") as watch:
        store.write("xenvirt-test/below", "1")
        paths = {event.path for event in [watch.wait(5), watch.wait(5)] if event}
        assert paths == {"xenvirt-test", "xenvirt-test/below"}
    store.rm("xenvirt-test")


def test_many_watches_each_get_their_own(store: XenStore) -> None:
    watches = [store.watch(f"{HOME}/{number}") for number in range(50)]
    for watch in watches:
        assert watch.wait(5)
    for number in range(50):
        store.write(f"{HOME}/{number}", "1")
    for number, watch in enumerate(watches):
        event = watch.wait(5)
        assert event is not None
        assert event.path == f"{HOME}/{number}"
        assert watch.poll() is None
        watch.close()


def test_a_watch_can_be_selected(store: XenStore) -> None:
    with store.watch(f"{HOME}/a") as watch:
        assert watch.wait(5)
        assert watch.poll() is None
        assert select.select([watch], [], [], 0)[0] == []
        tool("xenstore-write", f"{HOME}/a", "1")
        assert select.select([watch], [], [], 5)[0] == [watch]
        assert watch.poll() is not None


def test_a_closed_watch_is_quiet(store: XenStore) -> None:
    with store.watch(f"{HOME}/a") as left:
        assert left.wait(5)
        store.watch(f"{HOME}/a").close()
        store.write(f"{HOME}/a", "1")
        event = left.wait(5)
        assert event is not None
        assert left.wait(0) is None


def test_domains_come_and_go(store: XenStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    with store.watch("@introduceDomain", "@releaseDomain") as watch:
        assert {watch.wait(5), watch.wait(5)} != {None}
        domid = make_guest(tmp_path_factory.mktemp("guest"), "passing")
        event = watch.wait(30)
        assert event is not None
        assert event.path == "@introduceDomain"
        assert store.is_domain_introduced(domid)
        xl("destroy", str(domid))
        event = watch.wait(30)
        assert event is not None
        assert event.path == "@releaseDomain"
        deadline = time.monotonic() + 30
        while store.is_domain_introduced(domid) and time.monotonic() < deadline:
            watch.wait(1)
        assert not store.is_domain_introduced(domid)


# ---- transactions


def test_a_transaction_is_seen_whole(store: XenStore) -> None:
    with XenStore(SOCKET) as other:
        with store.transaction() as transaction:
            transaction.write(f"{HOME}/a", "1")
            transaction.write(f"{HOME}/b", "1")
            assert other.list(HOME) == ()
        assert other.list(HOME) == ("a", "b")


def test_a_transaction_that_fails_leaves_nothing(store: XenStore) -> None:
    def fail() -> None:
        with store.transaction() as transaction:
            transaction.write(f"{HOME}/a", "1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.list(HOME) == ()


def test_a_conflict_with_what_was_only_written_is_done_again(store: XenStore) -> None:
    store.write(f"{HOME}/a", "old")
    with XenStore(SOCKET) as other, store.transaction() as transaction:
        transaction.write(f"{HOME}/a", "mine")
        other.write(f"{HOME}/a", "other")
    assert transaction.conflicted
    assert store.read(f"{HOME}/a") == "mine"


def test_a_conflict_with_what_was_read_is_told(store: XenStore) -> None:
    store.write(f"{HOME}/a", "old")

    def copy() -> None:
        with XenStore(SOCKET) as other, store.transaction() as transaction:
            transaction.write(f"{HOME}/b", transaction.read(f"{HOME}/a"))
            other.write(f"{HOME}/a", "new")

    with pytest.raises(XenStoreError, match=f"others changed {HOME}/a") as caught:
        copy()
    assert caught.value.errno == errno.EAGAIN
    assert store.get(f"{HOME}/b") is None


def test_a_counter_loses_no_step_between_three_connections(store: XenStore, way: str) -> None:
    store.write(f"{HOME}/counter", "0")

    def work() -> None:
        with XenStore(way) as own:
            increment(own, 30)

    others = [threading.Thread(target=work) for _ in range(2)]
    for other in others:
        other.start()
    increment(store, 30)
    for other in others:
        other.join()
    assert store.read(f"{HOME}/counter") == "90"


def increment(store: XenStore, times: int) -> None:
    def once(transaction: Transaction) -> None:
        transaction.write(f"{HOME}/counter", int(transaction.read(f"{HOME}/counter")) + 1)

    for _ in range(times):
        store.transact(once)


# ---- asyncio


def test_asyncio(store: XenStore, way: str) -> None:
    async def once(transaction: AsyncTransaction) -> None:
        value = int(await transaction.read(f"{HOME}/counter"))
        await transaction.write(f"{HOME}/counter", value + 1)

    async def run() -> None:
        async with AsyncXenStore(way) as own, own.watch(f"{HOME}/a") as watch:
            assert (await watch.wait()).path == f"{HOME}/a"
            await asyncio.gather(*(own.write(f"{HOME}/{number}", number) for number in range(50)))
            values = await asyncio.gather(*(own.read(f"{HOME}/{number}") for number in range(50)))
            assert values == [str(number) for number in range(50)]
            store.write(f"{HOME}/a", "1")
            async with asyncio.timeout(5):
                assert (await watch.wait()).path == f"{HOME}/a"
            await own.write(f"{HOME}/counter", 0)
            for _ in range(5):
                await own.transact(once)
            assert await own.read(f"{HOME}/counter") == "5"
            with pytest.raises(XenStoreError, match="no such node"):
                await own.read(f"{HOME}/missing")

    asyncio.run(run())
