"""How a transaction that met a conflict is done again: what was asked and answered is kept, and compared.

When the xenstore refuses a commit with EAGAIN because others changed what the transaction had touched, the
same operations are done in a new one. If every answer is what it was, nothing that the program decided by
them is wrong, and the new transaction may be committed in the place of the first. If one differs, the program
has to decide again, and gets the error, which names the path.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from xenvirt.errors import XenStoreError

from .operations import Call

COMMIT_TRIES = 16
"""How often a transaction is tried in all before EAGAIN is given to the program."""


class Step(NamedTuple):
    """One operation of a transaction."""

    make: Callable[[int], Call[Any]]
    """Makes the operation for a transaction of this number."""
    subject: str
    outcome: object
    """What it returned; where it failed, the errno as a `Failed`."""


class Failed(NamedTuple):
    """An operation that failed, in order to compare it."""

    errno: int


def changed(step: Step) -> XenStoreError:
    """The error for a conflict that changed the answer of a step."""
    return XenStoreError(
        f"the transaction was not committed: others changed {step.subject} after it had been looked at; do "
        "it again from its beginning, as transact() does (EAGAIN)",
        errno.EAGAIN,
        step.subject,
    )


def exhausted(error: XenStoreError) -> XenStoreError:
    """The error for conflicts without an end."""
    return XenStoreError(
        f"the transaction was not committed: others changed what it had touched, {COMMIT_TRIES} times in a "
        "row (EAGAIN)",
        errno.EAGAIN,
        error.path,
    )
