"""The store on asyncio: the same operations, many at once; what a cancel or a dead daemon leaves behind."""

from __future__ import annotations

import asyncio
import errno

import pytest

from xenvirt.errors import XenStoreError
from xenvirt.xen.xenstore import AsyncTransaction, AsyncXenStore, Permission, WatchEvent
from xenvirt.xen.xenstore.wire import Operation

from .fake_xenstored import FakeXenstored


def test_it_does_what_the_blocking_one_does(daemon: FakeXenstored) -> None:
    async def run() -> None:
        async with AsyncXenStore(daemon.path) as store:
            await store.write("/a/b", 7)
            await store.mkdir("/a/c")
            await store.set_permissions("/a/b", ["n0", "r3"])
            assert await store.read("/a/b") == "7"
            assert await store.read_bytes("/a/c") == b""
            assert await store.list("/a") == ("b", "c")
            assert await store.permissions("/a/b") == (Permission.parse("n0"), Permission.parse("r3"))
            await store.rm("/a/b")
            assert await store.get("/a/b") is None
            assert await store.domain_path(3) == "/local/domain/3"
            assert not await store.is_domain_introduced(3)
            with pytest.raises(XenStoreError, match="no such node"):
                await store.read("/a/b")

    asyncio.run(run())


def test_many_requests_at_once_keep_their_answers(daemon: FakeXenstored) -> None:
    daemon.piece = 3

    async def run() -> None:
        async with AsyncXenStore(daemon.path) as store:
            await asyncio.gather(*(store.write(f"/{number}", number) for number in range(100)))
            values = await asyncio.gather(*(store.read(f"/{number}") for number in range(100)))
            assert values == [str(number) for number in range(100)]

    asyncio.run(run())


def test_watches(daemon: FakeXenstored) -> None:
    async def run() -> None:
        async with AsyncXenStore(daemon.path) as store, store.watch("/a", token="t") as watch:
            assert await watch.wait() == WatchEvent("/a", "/a", "t")
            daemon.write("/a/b", "1")
            async for event in watch:
                assert event == WatchEvent("/a/b", "/a", "t")
                break
            await watch.add("/c")
            assert (await watch.wait()).path == "/c"
            await watch.remove("/c")
            assert watch.paths == ("/a",)
            with pytest.raises(ValueError, match="another watch"):
                store.watch("/a", token="t")
        with pytest.raises(ValueError, match="not open"):
            await watch.wait()

    asyncio.run(run())


def test_transactions(daemon: FakeXenstored) -> None:
    daemon.write("/counter", "0")

    async def run() -> None:
        calls = 0

        async def increment(transaction: AsyncTransaction) -> int:
            nonlocal calls
            calls += 1
            value = int(await transaction.read("/counter")) + 1
            if calls == 1:
                daemon.write("/counter", "10")
            await transaction.write("/counter", value)
            return value

        async with AsyncXenStore(daemon.path) as store:
            assert await store.transact(increment) == 11
            assert calls == 2
            async with store.transaction() as blind:
                await blind.write("/counter", "blind")
                daemon.write("/counter", "other")
            assert blind.conflicted
            assert await store.read("/counter") == "blind"

    asyncio.run(run())


def test_a_cancelled_request_disturbs_no_other(daemon: FakeXenstored) -> None:
    async def run() -> None:
        async with AsyncXenStore(daemon.path) as store:
            daemon.silent = {Operation.READ}
            task = asyncio.create_task(store.read("/a"))
            await asyncio.sleep(0)  # it is sent
            await store.list("/")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            late = next(one for one in daemon.asked if one.operation == Operation.READ)
            daemon.instead[Operation.DIRECTORY] = lambda message: [late, message._replace(payload=b"a\0")]
            assert await store.list("/") == ("a",)

    asyncio.run(run())


def test_no_answer_is_a_timeout(daemon: FakeXenstored) -> None:
    async def run() -> None:
        async with AsyncXenStore(daemon.path, timeout=0.05) as store:
            daemon.silent = {Operation.READ}
            with pytest.raises(XenStoreError, match=r"no answer from .* in 0.05 s") as caught:
                await store.read("/a")
            assert caught.value.errno == errno.ETIMEDOUT

    asyncio.run(run())


def test_a_daemon_that_dies_is_noticed_by_all_who_wait(daemon: FakeXenstored) -> None:
    async def run() -> None:
        async with AsyncXenStore(daemon.path) as store, store.watch("/a") as watch:
            await watch.wait()
            daemon.silent = {Operation.READ}
            waiting = [asyncio.create_task(store.read("/a")), asyncio.create_task(watch.wait())]
            await asyncio.sleep(0)  # it is sent
            await store.list("/")
            daemon.kill()
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, XenStoreError)
                assert result.errno == errno.ECONNRESET
            with pytest.raises(XenStoreError, match="the daemon hung up"):
                await store.read("/a")

    asyncio.run(run())


def test_it_is_used_inside_its_block(daemon: FakeXenstored) -> None:
    async def run() -> None:
        store = AsyncXenStore(daemon.path)
        with pytest.raises(ValueError, match="use it in its async with block"):
            await store.read("/a")
        async with store:
            pass
        with pytest.raises(ValueError, match="is closed"):
            await store.read("/a")

    asyncio.run(run())
