"""What the typed drivers have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from xenvirt.errors import LinkTimeoutError, NegotiationError, RequestError
from xenvirt.virtio.features import RING_FEATURES, Feature
from xenvirt.virtio.ids import DeviceId
from xenvirt.virtio.names import feature_names
from xenvirt.virtio.structure import Structure

from .request import AsyncLink, Link, LinkInfo, Request

T = TypeVar("T")

Plan: TypeAlias = Generator[Sequence[Request[Any]], Sequence[Any], T]
"""An operation that takes several requests: it yields those that may run side by side, is sent their results,
and returns its own. So it is written once for both kinds of link. The device finds the requests of one step
together, as far as the ring has room for them."""


class DriverCore(ABC):
    """What a driver says of itself, whichever link it speaks through.

    Attributes:
        features: the feature bits that were negotiated, an ``int``.
        config_space: the configuration space as it was when the driver started; empty if the driver reads
            none.
    """

    device_id: ClassVar[DeviceId]
    """The type of device that it drives. vhost-user does not tell what a backend is: you have to know."""
    wanted_features: ClassVar[int] = 0
    """The device type's own features that it makes use of, where they are offered."""
    needed_features: ClassVar[int] = Feature.VERSION_1
    """Features without which it cannot work."""
    avoided_features: ClassVar[int] = 0
    """Features of the rings that are not acknowledged, because known devices of this type fail with them."""
    config_structure: ClassVar[type[Structure] | None] = None
    """The configuration space, if the device type has one that this driver reads."""

    features: int = 0
    config_space: bytes = b""

    @abstractmethod
    def queue_sizes(self, link: LinkInfo) -> Sequence[int]:
        """The ring size in descriptors of each queue that it uses, from queue 0 on."""

    def _check(self, link: LinkInfo) -> int:
        """The features to acknowledge.

        Raises:
            NegotiationError: the device lacks one that is needed.
        """
        # As plain numbers: the complement of an IntFlag has only the bits that the flag knows.
        lacking = int(self.needed_features) & ~int(link.offered_features)
        if lacking:
            names = ", ".join(feature_names(lacking, self.device_id))
            raise NegotiationError(
                f"{type(self).__name__} needs {names}, and the device offers features "
                f"{link.offered_features:#x} only; is it a device of type {self.device_id.name}?"
            )
        features = int(self.wanted_features | self.needed_features | RING_FEATURES | Feature.IN_ORDER)
        return features & ~int(self.avoided_features)

    def _config_size(self, link: LinkInfo) -> int:  # noqa: ARG002 - for those whose space grows with the features
        """How many bytes of the configuration space to read. Backends refuse, or worse, to be asked for more
        than there is, so a driver whose device type has a space that grew over the years goes by the
        negotiated features.
        """
        return self.config_structure.size() if self.config_structure is not None else 0

    def _started(self, link: LinkInfo, space: bytes) -> None:
        """Called once the queues run, with the configuration space (empty if the driver reads none)."""
        self.features = link.features
        self.config_space = space


class Driver(DriverCore):
    """A driver on a blocking link. It negotiates and starts its queues when it is made, and is a context
    manager.

    Args:
        link: what :func:`xenvirt.connect` gave. It stays the caller's: leaving the driver's block does not
            close it.

    Raises:
        NegotiationError: device and driver do not fit together.
        DisconnectedError: the backend hung up.
        LinkTimeoutError: it did not answer in time.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        link.start(self._check(link), self.queue_sizes(link))
        size = self._config_size(link)
        self._started(link, link.config(0, size) if size else b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held here that the link does not close."""

    def _perform(self, plan: Plan[T]) -> T:
        """Runs a plan, the requests of each step side by side. All of them have ended when it returns or
        raises.
        """
        try:
            requests = next(plan)
            while True:
                requests = plan.send(self._run_all(requests))
        except StopIteration as end:
            result: T = end.value
            return result

    def _run_all(self, requests: Sequence[Request[Any]]) -> list[Any]:
        if len(requests) == 1:
            return [self.link.run(requests[0])]
        pending = self.link.submit_all(requests)
        results: list[Any] = []
        failure: Exception | None = None
        for one in pending:
            try:
                results.append(one.result())
            except RequestError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return results


class AsyncDriver(DriverCore):
    """A driver on a link of asyncio: ``async with AsyncEntropyDriver(link) as rng``. It starts when the block
    is entered.

    Args:
        link: what :func:`xenvirt.connect_async` gave. It stays the caller's.
    """

    def __init__(self, link: AsyncLink) -> None:
        self.link = link

    async def __aenter__(self) -> Self:
        link = self.link
        await link.start(self._check(link), self.queue_sizes(link))
        size = self._config_size(link)
        self._started(link, await link.config(0, size) if size else b"")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held here that the link does not close."""

    async def _perform(self, plan: Plan[T]) -> T:
        """As :meth:`Driver._perform`."""
        try:
            requests = next(plan)
            while True:
                requests = plan.send(await self._run_all(requests))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _run_all(self, requests: Sequence[Request[Any]]) -> list[Any]:
        link = self.link
        if len(requests) == 1:
            return [await link.run(requests[0])]
        futures = await link.submit_all(requests)
        try:
            for request, future in zip(requests, futures, strict=True):
                if not future.done():
                    await asyncio.wait((future,), timeout=link.timeout)
                if not future.done():
                    raise LinkTimeoutError(
                        f"the device did not answer within {link.timeout:g} s: {request.what}"
                    )
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # seen, also where nobody waits for it any more
        failure = next((error for future in futures if (error := future.exception()) is not None), None)
        if failure is not None:
            raise failure
        return [future.result() for future in futures]
