"""Transactions, blocking."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from xenvirt.errors import XenStoreError

from . import operations, replay
from .channel import Channel
from .nodes import Nodes
from .operations import Call

T = TypeVar("T")


class Transaction(Nodes):
    """See :meth:`XenStore.transaction`. It is used in its ``with`` block, by one thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._number = 0
        self._steps: list[replay.Step] = []
        self.conflicted = False

    def __enter__(self) -> Self:
        if self._number:
            raise ValueError("this transaction runs already")
        self._number = self._channel.run(operations.start_transaction())
        self._steps.clear()
        self.conflicted = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._commit()
            return
        try:
            self._end(commit=False)
        except (XenStoreError, ValueError) as second:
            error.add_note(f"and the transaction could not be discarded: {second}")

    def _do(self, subject: str, make: Callable[[int], Call[T]]) -> T:
        if not self._number:
            raise ValueError("this transaction has ended, or has not begun: use it in its with block")
        try:
            outcome = self._channel.run(make(self._number))
        except XenStoreError as error:
            failed = replay.Failed(error.errno or 0)
            self._steps.append(replay.Step(make, subject, failed))
            raise
        self._steps.append(replay.Step(make, subject, outcome))
        return outcome

    def _end(self, *, commit: bool) -> None:
        number, self._number = self._number, 0
        self._channel.run(operations.end_transaction(number, commit=commit))

    def _commit(self) -> None:
        for left in reversed(range(replay.COMMIT_TRIES)):
            try:
                self._end(commit=True)
            except XenStoreError as error:
                if error.errno != errno.EAGAIN:
                    raise
                self.conflicted = True
                if not left:
                    raise replay.exhausted(error) from error
                self._again()
            else:
                return

    def _again(self) -> None:
        self._number = self._channel.run(operations.start_transaction())
        for step in self._steps:
            try:
                outcome: Any = self._channel.run(step.make(self._number))
            except XenStoreError as error:
                outcome = replay.Failed(error.errno or 0)
            if outcome != step.outcome:
                self._end(commit=False)
                raise replay.changed(step)
