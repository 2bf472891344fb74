"""A network namespace of a test's own, in which nothing can meet the host's network."""

import itertools
import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_numbers = itertools.count()


class Namespace:
    """Made when the `with` block is entered; what was made inside goes away with it. Wants root."""

    def __init__(self) -> None:
        self.name = f"xenvirt-{os.getpid()}-{next(_numbers)}"

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def inside(self, *words: str) -> Sequence[str]:
        """The command that runs a command inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str) -> None:
        """Runs a command inside, which must succeed."""
        subprocess.run(self.inside(*words), check=True)
