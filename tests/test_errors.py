"""The tree of errors: what a user may rely on."""

import inspect
import pickle

import pytest

from xenvirt import errors
from xenvirt.errors import XenvirtError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_in_the_tree_of_the_docstring(cls: type[XenvirtError]) -> None:
    assert issubclass(cls, XenvirtError)
    assert errors.__doc__ is not None
    line = next(
        line for line in errors.__doc__.splitlines() if line.strip("│├└─ ").split(" ")[:1] == [cls.__name__]
    )
    builtin = next(
        (base for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception), None
    )
    assert ("also " + builtin.__name__ in line) if builtin else ("also" not in line)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_made_with_its_message_prints_it_and_survives_pickling(cls: type[XenvirtError]) -> None:
    error = cls("queue 3 has no room")
    error.add_note("seen in a test")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is cls
    assert str(copy) == str(error) == "queue 3 has no room"
    assert copy.__notes__ == ["seen in a test"]
    assert {k: v for k, v in vars(copy).items() if k != "_arguments"} == {
        k: v for k, v in vars(error).items() if k != "_arguments"
    }


def test_attributes_come_by_position_after_the_message_and_survive_pickling() -> None:
    ring = pickle.loads(pickle.dumps(errors.RingError("loop", "descriptor-loop", 2)))  # noqa: S301
    assert (str(ring), ring.rule, ring.queue) == ("loop", "descriptor-loop", 2)
    mapped = pickle.loads(pickle.dumps(errors.MapError("no room", 12)))  # noqa: S301
    assert (str(mapped), mapped.errno) == ("no room", 12)
    failed = pickle.loads(pickle.dumps(errors.RequestFailedError("sector 9", 1)))  # noqa: S301
    assert (str(failed), failed.status, failed.errno) == ("sector 9", 1, 5)
    daemon = pickle.loads(pickle.dumps(errors.DaemonError("gone", "panicked", -6)))  # noqa: S301
    assert (str(daemon), daemon.output, daemon.exit_status) == ("gone", "panicked", -6)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_says_when_one_gets_it(cls: type[XenvirtError]) -> None:
    assert cls.__doc__
    assert len(cls.__doc__) > 60
