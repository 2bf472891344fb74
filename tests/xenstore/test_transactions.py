"""Transactions: all or nothing, and what happens when others change what was touched."""

from __future__ import annotations

import errno

import pytest

from xenvirt.errors import XenStoreError
from xenvirt.xen.xenstore import Transaction, XenStore
from xenvirt.xen.xenstore.wire import Message, Operation

from .fake_xenstored import Client, FakeXenstored


def test_a_transaction_is_seen_whole_or_not_at_all(daemon: FakeXenstored, store: XenStore) -> None:
    with XenStore(daemon.path) as other:
        with store.transaction() as transaction:
            transaction.write("/a", "1")
            transaction.mkdir("/b")
            assert transaction.read("/a") == "1"
            assert transaction.list("/") == ("a", "b")
            assert other.get("/a") is None
        assert other.read("/a") == "1"
        assert not transaction.conflicted


def test_an_exception_discards_it(store: XenStore) -> None:
    transaction = store.transaction()

    def fail() -> None:
        with transaction:
            transaction.write("/a", "1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.get("/a") is None
    with pytest.raises(ValueError, match="has ended"):
        transaction.read("/a")


def test_a_conflict_that_changes_nothing_that_was_read_is_done_again(
    daemon: FakeXenstored, store: XenStore
) -> None:
    daemon.write("/a", "old")
    with store.transaction() as transaction:
        transaction.write("/a", "new")
        assert transaction.get("/missing") is None
        daemon.write("/a", "other")
    assert transaction.conflicted
    assert store.read("/a") == "new"


def test_a_conflict_that_changes_what_was_read_is_an_error_and_nothing_is_written(
    daemon: FakeXenstored, store: XenStore
) -> None:
    daemon.write("/a", "1")

    def copy() -> None:
        with store.transaction() as transaction:
            transaction.write("/b", transaction.read("/a"))
            daemon.write("/a", "2")

    with pytest.raises(XenStoreError, match="others changed /a after") as caught:
        copy()
    assert (caught.value.errno, caught.value.path) == (errno.EAGAIN, "/a")
    assert store.get("/b") is None


def test_a_node_that_was_missing_and_is_there_is_a_change(daemon: FakeXenstored, store: XenStore) -> None:
    def make() -> None:
        with store.transaction() as transaction:
            assert transaction.get("/a") is None
            transaction.write("/b", "a was missing")
            daemon.write("/a", "")

    with pytest.raises(XenStoreError, match="others changed /a after"):
        make()
    assert store.get("/b") is None


def test_transact_decides_again_by_what_is_there(daemon: FakeXenstored, store: XenStore) -> None:
    daemon.write("/counter", "0")
    calls = 0

    def increment(transaction: Transaction) -> int:
        nonlocal calls
        calls += 1
        value = int(transaction.read("/counter")) + 1
        if calls <= 3:
            daemon.write("/counter", str(calls * 10))
        transaction.write("/counter", value)
        return value

    assert store.transact(increment) == 31
    assert calls == 4
    assert store.read("/counter") == "31"


def test_conflicts_without_an_end_are_given_up(daemon: FakeXenstored, store: XenStore) -> None:
    daemon.write("/a", "")

    def disturb(_client: Client, message: Message) -> None:
        if message.operation == Operation.TRANSACTION_END:
            daemon.write("/a", "other")

    daemon.before = disturb
    with pytest.raises(XenStoreError, match="16 times in a row") as caught, store.transaction() as blind:
        blind.write("/a", "mine")
    assert caught.value.errno == errno.EAGAIN


def test_events_come_when_it_is_committed(store: XenStore) -> None:
    with store.watch("/a") as watch:
        assert watch.wait(5)
        with store.transaction() as transaction:
            transaction.write("/a", "1")
            assert watch.poll() is None
        event = watch.wait(5)
        assert event is not None
        assert event.path == "/a"
