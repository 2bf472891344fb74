"""Watches: events between replies, on several watches, for select, on another thread."""

from __future__ import annotations

import select
import threading

import pytest

from xenvirt.errors import XenStoreError
from xenvirt.xen.xenstore import WatchEvent, XenStore
from xenvirt.xen.xenstore.wire import Operation

from .fake_xenstored import FakeXenstored


def test_each_path_is_reported_at_once_and_then_when_it_changes(
    daemon: FakeXenstored, store: XenStore
) -> None:
    with store.watch("/a", "/b", token="mine") as watch:
        assert watch.paths == ("/a", "/b")
        assert [watch.wait(5), watch.wait(5)] == [
            WatchEvent("/a", "/a", "mine"),
            WatchEvent("/b", "/b", "mine"),
        ]
        assert watch.poll() is None
        daemon.write("/a/below/it", "1")
        daemon.write("/other", "1")
        daemon.write("/b", "1")
        assert watch.wait(5) == WatchEvent("/a/below/it", "/a", "mine")
        assert watch.wait(5) == WatchEvent("/b", "/b", "mine")
        assert watch.wait(0) is None


def test_events_come_between_request_and_reply(daemon: FakeXenstored, store: XenStore) -> None:
    with store.watch("/a") as watch:
        assert watch.wait(5)
        daemon.before = lambda _client, message: (
            daemon.fire(f"/a/{message.request}") if message.operation == Operation.READ else None
        )
        daemon.piece = 5
        for _ in range(3):
            assert store.get("/nothing") is None
        paths = [event.path for event in iter(watch.poll, None)]
        assert len(paths) == 3


def test_what_waits_already_is_not_kept_twice(daemon: FakeXenstored, store: XenStore) -> None:
    with store.watch("/a") as watch:
        for _ in range(100):
            daemon.write("/a", "1")
            daemon.write("/a/b", "1")
        assert store.read("/a") == "1"
        assert [event.path for event in iter(watch.poll, None)] == ["/a", "/a/b"]


def test_paths_come_and_go(daemon: FakeXenstored, store: XenStore) -> None:
    with store.watch() as watch:
        watch.add("/a")
        watch.add("/a/b")
        with pytest.raises(ValueError, match="/a is watched already"):
            watch.add("/a")
        assert {watch.wait(5), watch.wait(5)} == {
            WatchEvent("/a", "/a", watch.token),
            WatchEvent("/a/b", "/a/b", watch.token),
        }
        daemon.write("/a/b", "1")
        store.read("/a/b")
        watch.remove("/a/b")
        event = watch.poll()
        assert event is not None
        assert event.watched == "/a"
        watch.remove("/a")
        with pytest.raises(ValueError, match="/a is not watched"):
            watch.remove("/a")
        daemon.write("/a", "2")
        assert watch.poll() is None
    assert daemon.clients[0].watches == []
    watch.close()
    with pytest.raises(ValueError, match="closed"):
        watch.add("/a")


def test_a_token_is_one_watchs_own(store: XenStore) -> None:
    with store.watch("/a", token="t"):
        with pytest.raises(ValueError, match="'t' is the one of another watch"):
            store.watch("/b", token="t")
        with pytest.raises(ValueError, match="1 to 512 printable"):
            store.watch("/b", token="a\0b")
    store.watch("/b", token="t").close()


def test_a_watch_that_is_refused_leaves_nothing(daemon: FakeXenstored, store: XenStore) -> None:
    daemon.instead[Operation.WATCH] = lambda message: [
        message._replace(operation=Operation.ERROR, payload=b"E2BIG\0")
    ]
    with pytest.raises(XenStoreError, match="WATCH of /a"):
        store.watch("/a", token="t")
    daemon.instead.clear()
    store.watch("/a", token="t").close()


def test_each_watch_has_a_descriptor_for_select(daemon: FakeXenstored, store: XenStore) -> None:
    def readable(timeout: float) -> list[str]:
        found = select.select([first, second], [], [], timeout)[0]
        return [one.token for one in found]

    with store.watch("/a", token="first") as first, store.watch("/b", token="second") as second:
        assert first.wait(5)
        assert second.wait(5)
        assert readable(0) == []
        daemon.write("/b", "1")
        assert set(readable(5)) == {"first", "second"}  # something came: perhaps for the one, or the other
        assert first.poll() is None
        assert readable(0) == ["second"]
        assert second.poll() == WatchEvent("/b", "/b", "second")
        assert readable(0) == []
        daemon.write("/a", "1")
        store.read("/a")
        assert readable(5) == ["first"]  # the reply's reader has put it there


def test_a_thread_that_waits_is_woken_by_an_event_that_another_has_read(
    daemon: FakeXenstored, store: XenStore
) -> None:
    with store.watch("/a") as watch:
        assert watch.wait(5)
        came: list[WatchEvent | None] = []
        thread = threading.Thread(target=lambda: came.append(watch.wait(30)))
        thread.start()
        while thread.is_alive():
            daemon.write("/a", "1")
            store.read("/a")
        assert came == [WatchEvent("/a", "/a", watch.token)]


def test_an_iteration_ends_when_the_watch_is_closed(store: XenStore) -> None:
    watch = store.watch("/a")
    seen = threading.Event()

    def iterate() -> None:
        for _ in watch:
            seen.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    assert seen.wait(30)
    watch.close()
    thread.join(30)
    assert not thread.is_alive()
