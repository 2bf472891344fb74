"""A server, and links to what it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirt import Frontend, Server, connect
from xenvirt.drivers.request import Request
from xenvirt.link import Link


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "device.sock")


def echo(link: Link, text: bytes = b"hello", queue: int = 0) -> bytes:
    """One request to an echoing device."""
    return link.run(echo_request(text, queue))


def echo_request(text: bytes = b"hello", queue: int = 0) -> Request[bytes]:
    return Request(queue, [text], [len(text)], lambda answer: answer.data(), "echo")


def started(path: str, queues: int = 1, timeout: float = 10.0) -> Frontend:
    """A link whose queues run."""
    link = connect(path, timeout=timeout)
    link.start(link.offered_features, [16] * queues)
    return link
