"""Transactions, on asyncio."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from xenvirt.errors import XenStoreError

from . import operations, replay
from .async_channel import AsyncChannel
from .async_nodes import AsyncNodes
from .operations import Call

T = TypeVar("T")


class AsyncTransaction(AsyncNodes):
    """See :meth:`XenStore.transaction`. It is used in its ``async with`` block, by one task.

    Attributes:
        conflicted: whether a commit met a conflict.
    """

    def __init__(self, channel: AsyncChannel) -> None:
        self._channel = channel
        self._number = 0
        self._steps: list[replay.Step] = []
        self.conflicted = False

    async def __aenter__(self) -> Self:
        if self._number:
            raise ValueError("this transaction runs already")
        self._number = await self._channel.run(operations.start_transaction())
        self._steps.clear()
        self.conflicted = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._commit()
            return
        try:
            await self._end(commit=False)
        except (XenStoreError, ValueError) as second:
            error.add_note(f"and the transaction could not be discarded: {second}")

    async def _do(self, subject: str, make: Callable[[int], Call[T]]) -> T:
        if not self._number:
            raise ValueError("this transaction has ended, or has not begun: use it in its async with block")
        try:
            outcome = await self._channel.run(make(self._number))
        except XenStoreError as error:
            self._steps.append(replay.Step(make, subject, replay.Failed(error.errno or 0)))
            raise
        self._steps.append(replay.Step(make, subject, outcome))
        return outcome

    async def _end(self, *, commit: bool) -> None:
        number, self._number = self._number, 0
        await self._channel.run(operations.end_transaction(number, commit=commit))

    async def _commit(self) -> None:
        for left in reversed(range(replay.COMMIT_TRIES)):
            try:
                await self._end(commit=True)
            except XenStoreError as error:
                if error.errno != errno.EAGAIN:
                    raise
                self.conflicted = True
                if not left:
                    raise replay.exhausted(error) from error
                await self._again()
            else:
                return

    async def _again(self) -> None:
        self._number = await self._channel.run(operations.start_transaction())
        for step in self._steps:
            try:
                outcome: Any = await self._channel.run(step.make(self._number))
            except XenStoreError as error:
                outcome = replay.Failed(error.errno or 0)
            if outcome != step.outcome:
                await self._end(commit=False)
                raise replay.changed(step)
