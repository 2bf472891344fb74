"""Structures are packed, little-endian, and tolerant of configuration spaces that are shorter or longer."""

import inspect
from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenvirt.virtio import (
    DeviceId,
    Feature,
    block,
    can,
    config_class,
    console,
    feature_names,
    i2c,
    input,  # noqa: A004
    net,
    scsi,
    sound,
    spi,
    vsock,
)
from xenvirt.virtio.block import BlockConfig, BlockFeature, RequestHeader, RequestType
from xenvirt.virtio.net import NetConfig
from xenvirt.virtio.structure import S32, U8, U16, Structure


@dataclass(frozen=True)
class Sample(Structure):
    first: U8 = 0
    second: U16 = 0
    third: S32 = 0
    name: Annotated[bytes, "4s"] = bytes(4)


def test_fields_lie_in_order_without_padding() -> None:
    assert Sample.fields() == (("first", "B", 0), ("second", "H", 1), ("third", "i", 3), ("name", "4s", 7))
    assert Sample.size() == 11
    assert Sample.offset("third") == 3
    with pytest.raises(KeyError, match="Sample has no field 'fourth'"):
        Sample.offset("fourth")


def test_bytes_are_little_endian_and_come_back() -> None:
    sample = Sample(1, 0x0203, -2, b"ab")
    raw = sample.to_bytes()
    assert raw == bytes.fromhex("01 03 02 fe ff ff ff 61 62 00 00")
    assert Sample.from_bytes(raw) == Sample(1, 0x0203, -2, b"ab\0\0")


def test_the_layout_of_a_request_header_has_only_letters_that_a_batch_takes() -> None:
    assert RequestHeader.fields() == (("type", "I", 0), ("ioprio", "I", 4), ("sector", "Q", 8))
    assert RequestHeader(RequestType.OUT, sector=9).to_bytes() == bytes.fromhex(
        "01000000 00000000 0900000000000000"
    )


def test_a_shorter_space_gives_zeroes_and_names_what_is_missing() -> None:
    whole = BlockConfig(capacity=100, seg_max=126, num_queues=4, max_discard_seg=7)
    short = BlockConfig.from_bytes(whole.to_bytes()[:36])
    assert (short.capacity, short.seg_max, short.num_queues, short.max_discard_seg) == (100, 126, 4, 0)
    assert BlockConfig.missing(36)[0] == "max_discard_sectors"
    assert BlockConfig.missing(35)[0] == "num_queues"
    assert BlockConfig.missing(BlockConfig.size()) == ()


def test_a_longer_space_is_cut() -> None:
    assert NetConfig.from_bytes(NetConfig(mtu=1500).to_bytes() + b"more").mtu == 1500


def test_any_buffer_is_decoded() -> None:
    raw = BlockConfig(capacity=3).to_bytes()
    assert BlockConfig.from_bytes(bytearray(raw)) == BlockConfig.from_bytes(memoryview(raw).cast("I"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": 256}, r"Sample.first is 256, and takes 0 to 0xff"),
        ({"second": -1}, r"Sample.second is -1, and takes 0 to 0xffff"),
        ({"third": 1 << 31}, r"Sample.third is 2147483648, and takes -2147483648 to 0x7fffffff"),
        ({"name": b"12345"}, r"Sample.name has 5 bytes, and takes at most 4"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(**arguments)  # type: ignore[arg-type]


def test_a_value_of_the_wrong_type_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Sample(first="1")  # type: ignore[arg-type]


STRUCTURES = sorted(
    {
        value
        for module in (block, can, console, i2c, input, net, scsi, sound, spi, vsock)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Structure) and value is not Structure
    },
    key=lambda cls: (cls.__module__, cls.__name__),
)


@pytest.mark.parametrize("cls", STRUCTURES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
@given(data=st.data())
def test_any_bytes_come_back(cls: type[Structure], data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=cls.size() + 8))
    structure = cls.from_bytes(raw)
    assert structure.to_bytes() == raw[: cls.size()].ljust(cls.size(), b"\0")
    assert cls.from_bytes(structure.to_bytes()) == structure


def test_structures_are_frozen_equal_and_hashable() -> None:
    sample = Sample(first=1)
    with pytest.raises(FrozenInstanceError):
        sample.first = 2  # type: ignore[misc]
    assert len({sample, Sample(first=1)}) == 1


def test_features_are_plain_ints() -> None:
    mask: int = BlockFeature.RO | BlockFeature.FLUSH
    assert mask == 0x220
    assert isinstance(mask, int)
    assert Feature.VERSION_1 | BlockFeature.RO == 1 << 32 | 1 << 5


def test_bits_get_the_names_of_their_device_type() -> None:
    features = Feature.VERSION_1 | Feature.EVENT_IDX | 1 << 5 | 1 << 20
    assert feature_names(features, DeviceId.BLOCK) == ["RO", "bit 20", "EVENT_IDX", "VERSION_1"]
    assert feature_names(features, DeviceId.NET) == ["MAC", "CTRL_RX_EXTRA", "EVENT_IDX", "VERSION_1"]
    assert feature_names(features) == ["bit 5", "bit 20", "EVENT_IDX", "VERSION_1"]
    assert feature_names(0) == []


def test_config_spaces_are_found_by_device_type() -> None:
    assert config_class(DeviceId.BLOCK) is BlockConfig
    assert config_class(2) is BlockConfig
    assert config_class(DeviceId.ENTROPY) is None
    assert config_class(9999) is None
