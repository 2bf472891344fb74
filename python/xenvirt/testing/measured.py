"""What /dev/xen/privcmd was measured to answer, by case and kind of dom0.

Measured with bare calls, in the lab, on Xen 4.17 and Linux 6.1 (x86_64) and 6.12 (aarch64, built with
`XEN_UNPOPULATED_ALLOC`), for a PVH guest. tests/xen/dom0/test_measured.py holds each row against real Xen,
and the simulated Xen against each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from errno import EBUSY, EFAULT, EINVAL, EPERM, ESRCH


@dataclass(frozen=True)
class Answer:
    """What was seen."""

    call: int = 0
    """errno of the call as a whole; 0 is success, also where single frames failed."""
    errors: tuple[int, ...] = ()
    """errno of each frame, as far as the kernel wrote it."""
    touch: str = ""
    """What the first page that failed, or else the first page, turned out to be: "memory", the name of the
    signal that ended the process, or what it reads."""


def _everywhere(answer: Answer) -> dict[str, Answer]:
    return dict.fromkeys(("pv", "pvh", "aarch64"), answer)


def _each(pv: Answer, pvh: Answer, aarch64: Answer) -> dict[str, Answer]:
    return {"pv": pv, "pvh": pvh, "aarch64": aarch64}


_ONES = "reads 0xff, writes vanish"

MEASURED: Mapping[str, Mapping[str, Answer]] = {
    "frames that exist": _everywhere(Answer(0, (0, 0), "memory")),
    "a frame that does not exist": _each(
        Answer(0, (0, EINVAL, 0), "SIGBUS"),
        Answer(0, (0, EINVAL, 0), _ONES),
        Answer(0, (0, EINVAL, 0), "SIGKILL"),
    ),
    "a domain that does not exist": _each(
        Answer(0, (ESRCH,), "SIGBUS"), Answer(0, (ESRCH,), _ONES), Answer(0, (ESRCH,), "SIGKILL")
    ),
    "dom0 by its number": _each(
        Answer(0, (ESRCH,), "SIGBUS"), Answer(0, (EPERM,), _ONES), Answer(0, (ESRCH,), "SIGKILL")
    ),
    "dom0 as DOMID_SELF": _each(Answer(0, (0,)), Answer(0, (ESRCH,)), Answer(0, (EINVAL,))),
    "DOMID_IO": _each(
        Answer(0, (EBUSY,), "SIGBUS"), Answer(0, (ESRCH,), _ONES), Answer(0, (EINVAL,), "SIGKILL")
    ),
    "fewer frames than the range has": _everywhere(Answer(EINVAL, (0,), "SIGBUS")),
    "more frames than the range has": _everywhere(Answer(EINVAL, (0, 0), "SIGBUS")),
    "no frames": _everywhere(Answer(EINVAL, (), "SIGBUS")),
    "the second half of a range": _everywhere(Answer(EINVAL, (0,))),
    "frames over frames that are mapped": _everywhere(Answer(EINVAL, (0,))),
    "a frame in place of one that failed": _each(
        Answer(0, (0,), "memory"), Answer(EINVAL, (0,), _ONES), Answer(EINVAL, (0,), "SIGKILL")
    ),
    "a range that is not the device's": _everywhere(Answer(EINVAL, (0,), "memory")),
    "an address inside a page": _everywhere(Answer(EINVAL, (0,))),
    "no list of frames": _everywhere(Answer(EFAULT)),
    "no list of errors": _everywhere(Answer(EFAULT)),
    "touched before the call": _everywhere(Answer(touch="SIGBUS")),
    "touched by a child": _everywhere(Answer(0, (0,), "SIGSEGV")),
    "touched after the device was closed": _everywhere(Answer(touch="memory")),
    "another domain after RESTRICT": _everywhere(Answer(EPERM)),
    "RESTRICT to another domain": _everywhere(Answer(EINVAL)),
    "VmFlags of the range": _everywhere(Answer(touch="dc dd de io pf")),
    "mmap of a grant that does not exist": _everywhere(Answer(EINVAL)),
}
"""Each case by kind of dom0, in the words of `xenvirt.testing.dom0`: "pv", "pvh", "aarch64"."""

SIMULATED: Mapping[str, str] = {
    _ONES: "reads 0xff, writes stay",
    "SIGKILL": "SIGBUS",
    "dc dd de io pf": "dc dd",
}
"""What a bare touch of a simulated Xen's mapping shows instead: where a process's own memory cannot do what
the kernel's does."""


def simulated(answer: Answer) -> Answer:
    """What a simulated Xen answers where a real one answers this."""
    return replace(answer, touch=SIMULATED.get(answer.touch, answer.touch))
