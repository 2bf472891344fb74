"""Random programs: a driver that submits, a device that answers in any order and grouping."""

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xenvirt._native import Batch, Chain, DriverQueue
from xenvirt.errors import QueueFullError

FILL = 0xA5
Buffers = st.lists(st.binary(max_size=40), max_size=4)
Lengths = st.lists(st.integers(0, 40), max_size=4)


def cut(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    """What a device wrote, as it lies in buffers of these lengths."""
    data = data + bytes([FILL]) * (sum(lengths) - len(data))
    parts = []
    for length in lengths:
        parts.append(data[:length])
        data = data[length:]
    return parts


class Rings(RuleBasedStateMachine):
    """Driver and device over one ring, against lists."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 16]),
        event_idx=st.booleans(),
        indirect=st.booleans(),
        in_order=st.booleans(),
    )
    def begin(self, size: int, event_idx: bool, indirect: bool, in_order: bool) -> None:
        self.driver, self.device = DriverQueue.pair(
            size, 1 << 16, event_idx=event_idx, indirect=indirect, in_order=in_order
        )
        self.in_order = in_order
        self.submitted: list[tuple[int, bytes, list[int]]] = []
        self.kept: list[tuple[Chain, int, list[int]]] = []
        self.expected: dict[int, tuple[list[bytes], int]] = {}
        self.order: list[int] = []

    @rule(readable=Buffers, writable=Lengths)
    def submit(self, readable: list[bytes], writable: list[int]) -> None:
        try:
            token = self.driver.submit(readable, writable)
        except QueueFullError:
            assert self.driver.pending
            return
        except ValueError:
            assert len(readable) + len(writable) not in range(1, self.driver.size + 1)
            return
        self.submitted.append((token, b"".join(readable), writable))

    @precondition(lambda self: self.submitted)
    @rule()
    def take_one(self) -> None:
        token, readable, writable = self.submitted.pop(0)
        chain = self.device.pop()
        assert chain is not None
        assert (chain.read(), chain.writable) == (readable, sum(writable))
        self.kept.append((chain, token, writable))
        self.order.append(token)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def complete_one(self, data: st.DataObject) -> None:
        chain, token, writable = self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))
        answer = data.draw(st.binary(max_size=sum(writable)))
        split = data.draw(st.integers(0, len(answer)))
        chain.write(answer[:split])
        chain.write(answer[split:])
        chain.complete()
        self.expected[token] = (cut(answer, writable), len(answer))

    @precondition(lambda self: self.submitted)
    @rule(limit=st.integers(1, 20), data=st.data())
    def serve_batch(self, limit: int, data: st.DataObject) -> None:
        batch = self.device.pop_batch(limit=limit)
        assert isinstance(batch, Batch)
        requests = [self.submitted.pop(0) for _ in range(len(batch))]
        assert batch.readable.tolist() == [len(readable) for _, readable, _ in requests]
        source = data.draw(st.binary(max_size=100))
        offsets = [data.draw(st.integers(0, 110)) for _ in requests]
        target = bytearray(200)
        for (_, readable, _), offset, done in zip(
            requests, offsets, batch.read_into(target, offsets), strict=True
        ):
            assert done == (offset + len(readable) <= len(target))
        mask = batch.write_from(source, offsets)
        batch.complete()
        for (token, _, writable), offset, done in zip(requests, offsets, mask, strict=True):
            assert done == (offset + sum(writable) <= len(source))
            answer = source[offset : offset + sum(writable)] if done else b""
            self.expected[token] = (cut(answer, writable), len(answer))
            self.order.append(token)

    @rule()
    def collect(self) -> None:
        for token, buffers, used in self.driver.completed():
            assert self.expected.pop(token) == (buffers, used)
            if self.in_order:
                assert token == self.order.pop(0)
        if not self.in_order:
            assert not self.expected
        elif self.order:
            assert self.order[0] not in self.expected

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "driver"):
            return
        assert self.device.kept == len(self.kept)
        assert self.driver.pending == len(self.submitted) + len(self.kept) + len(self.expected)


TestRings = Rings.TestCase


@given(st.binary(max_size=300), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_what_is_echoed_is_what_was_sent(data: bytes, lengths: list[int]) -> None:
    driver, device = DriverQueue.pair(16)
    parts = cut(data[: sum(lengths)], lengths)
    driver.submit(parts, lengths)
    for chain in device:
        while chunk := chain.read(7):
            chain.write(chunk)
        chain.complete()
    assert driver.completed() == [(0, parts, sum(lengths))]
