"""The memory of a session: a device uses it, its transport owns it."""

import pytest

from xenvirt._native import Endpoint


def test_the_memory_of_a_session_is_its_transports_to_replace_and_to_close() -> None:
    memory = Endpoint(0, [16], b"").memory
    assert memory.regions == ()
    with pytest.raises(ValueError, match="its transport's to replace and to close"):
        memory.replace([])
    with pytest.raises(ValueError, match="its transport's to replace and to close"):
        memory.close()
    assert memory.read(0, 0) == b""
    assert not memory.closed
