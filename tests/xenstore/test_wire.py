"""Messages, paths and permissions: what is written is what is read, however it is cut; what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirt.errors import XenStoreError
from xenvirt.xen.xenstore import Access, Permission
from xenvirt.xen.xenstore.operations import Request
from xenvirt.xen.xenstore.paths import ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX, checked, joined, lies_in
from xenvirt.xen.xenstore.protocol import Fired, Protocol, Reply
from xenvirt.xen.xenstore.wire import PAYLOAD_MAX, Decoder, Message, Operation, encode

NUMBERS = st.integers(0, 0xFFFF_FFFF)
MESSAGES = st.builds(Message, NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=300))


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_messages_are_put_together_from_pieces_of_any_length(
    messages: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, messages))
    decoder = Decoder()
    came: list[Message] = []
    while stream:
        length = data.draw(st.integers(1, len(stream)))
        came += decoder.feed(stream[:length])
        stream = stream[length:]
    assert came == messages
    assert not decoder.partial


def test_the_header_is_four_numbers_in_the_order_of_xs_wire_h() -> None:
    assert encode(Message(Operation.WRITE, 7, 9, b"/a\0b")) == struct.pack("=4I", 11, 7, 9, 4) + b"/a\0b"


def test_the_longest_payload_passes_and_a_longer_one_is_refused() -> None:
    longest = Message(Operation.WRITE, 1, 0, bytes(PAYLOAD_MAX))
    assert list(Decoder().feed(encode(longest))) == [longest]
    with pytest.raises(ValueError, match="at most 4096 bytes of payload, not 4097"):
        encode(longest._replace(payload=bytes(PAYLOAD_MAX + 1)))
    with pytest.raises(ValueError, match="4097 bytes of payload, of at most 4096"):
        list(Decoder().feed(struct.pack("=4I", 2, 1, 0, PAYLOAD_MAX + 1)))


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_an_error_of_the_protocol(data: bytes) -> None:
    protocol = Protocol()
    protocol.ask(Request(Operation.READ, b"/\0", "/"))
    refused = ""
    try:
        for came in protocol.receive(data):
            assert isinstance(came, Reply | Fired)
    except XenStoreError as error:
        refused = str(error)
    assert "no message" in refused or not refused


@pytest.mark.parametrize("path", ["/", "/local/domain/0/name", "device/vbd", "@releaseDomain", "/a-b_c@d"])
def test_paths_that_may_be(path: str) -> None:
    assert checked(path) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "an empty path"),
        ("/a/", "empty name"),
        ("//", "empty name"),
        ("/a//b", "empty name"),
        ("/a b", "ASCII letters, digits and -/_@ only"),
        ("/a\0b", "ASCII letters"),
        ("/ä", "ASCII letters"),
        ("/" + "a" * ABSOLUTE_PATH_MAX, "an absolute path has at most 3072 bytes, not 3073"),
        ("a" * (RELATIVE_PATH_MAX + 1), "a relative path has at most 2048 bytes, not 2049"),
    ],
)
def test_paths_that_may_not_be(path: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        checked(path)


def test_paths_of_the_greatest_length_may_be() -> None:
    checked("/" + "a" * (ABSOLUTE_PATH_MAX - 1))
    checked("a" * RELATIVE_PATH_MAX)


def test_paths_are_joined_and_compared_by_whole_names() -> None:
    assert joined("/", "a", 3) == "/a/3"
    assert joined("/a", "b") == "/a/b"
    assert lies_in("/a/b", "/a")
    assert lies_in("/a", "/a")
    assert lies_in("/a", "/")
    assert not lies_in("/ab", "/a")


@given(st.integers(0, 65535), st.sampled_from(Access))
def test_a_permission_is_what_its_text_says(domid: int, access: Access) -> None:
    permission = Permission(domid, access)
    assert Permission.parse(str(permission)) == permission


@pytest.mark.parametrize("text", ["", "r", "x3", "r-1", "r65536", "3r", "r 3", "r³"])
def test_what_is_no_permission_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="domain id"):
        Permission.parse(text)
