"""The protocol's numbers mean the same in Python and in the core."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenvirt._native import Frontend
from xenvirt.vhost_user import ProtocolFeature, Request

from . import fake_backend as fake
from .fake_backend import FakeBackend


def lines(frontend: Frontend) -> list[str]:
    """The wire log without its times."""
    return [line.split(maxsplit=1)[1] for line in frontend.wire_log]


def test_protocol_features_have_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    everything = sum(ProtocolFeature)
    with FakeBackend(path, protocol_features=everything) as backend, Frontend(path) as frontend:
        names = " | ".join(str(feature.name) for feature in ProtocolFeature)
        assert f"<- GET_PROTOCOL_FEATURES: {names}" in lines(frontend)
        acked = ProtocolFeature(frontend.protocol_features)
        assert backend.of(fake.SET_PROTOCOL_FEATURES)[0].number == acked


def test_requests_have_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    silence = {request.value: lambda _: b"" for request in Request}
    with FakeBackend(path, reactions=silence), Frontend(path, negotiate=False) as frontend:
        for request in Request:
            frontend.raw(request, b"?", reply=False)
            line = lines(frontend)[-1]
            assert line.startswith(f"-> raw: {request.name} 1 bytes: 3f, 0 files")
        frontend.raw(max(Request) + 1, b"?", reply=False)
        assert lines(frontend)[-1].startswith("-> raw: request 45 ")


@pytest.mark.parametrize("feature", [ProtocolFeature.MQ, ProtocolFeature.CONFIG | ProtocolFeature.MQ])
def test_the_chosen_protocol_features_are_acked(tmp_path: Path, feature: ProtocolFeature) -> None:
    path = tmp_path / "device.sock"
    with FakeBackend(path), Frontend(path, protocol_features=feature) as frontend:
        assert frontend.protocol_features == feature


def test_a_bit_without_a_name_is_kept() -> None:
    assert ProtocolFeature(1 << 40 | 1) == 1 << 40 | 1
