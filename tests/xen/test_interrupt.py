"""Which interrupts a guest has: it depends on its kind, and on who says so."""

from __future__ import annotations

import pytest

from xenvirt.errors import NegotiationError
from xenvirt.xen import interrupt
from xenvirt.xen.interrupt import guest_interrupt


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the xenstore says."""
    said: str = request.param
    monkeypatch.setattr(interrupt, "guest_kind", lambda domid: said if domid == 7 else None)
    return said


@pytest.mark.parametrize("kind", ["pvh", ""], indirect=True)
def test_on_arm_every_guest_has_spis_and_nobody_is_asked(kind: str) -> None:
    assert guest_interrupt(7, 33, machine="aarch64") == ("spi", 33), kind


@pytest.mark.parametrize("kind", ["hvm"], indirect=True)
def test_an_hvm_guest_has_an_io_apic(kind: str) -> None:
    assert guest_interrupt(7, 40, machine="x86_64") == ("gsi", 40), kind


@pytest.mark.parametrize("kind", ["pvh", "pv"], indirect=True)
@pytest.mark.parametrize("hvm", [False, True])
def test_another_guest_has_none_whatever_the_caller_says(kind: str, hvm: bool) -> None:
    with pytest.raises(NegotiationError, match=f"irq=40: domain 7 is a {kind.upper()} guest and has no I/O"):
        guest_interrupt(7, 40, hvm=hvm, machine="x86_64")


@pytest.mark.parametrize("kind", [""], indirect=True)
def test_where_the_toolstack_says_nothing_the_caller_does(kind: str) -> None:
    with pytest.raises(NegotiationError, match=r"/libxl/7/type.*say hvm=True"):
        guest_interrupt(7, 40, machine="x86_64")
    assert guest_interrupt(7, 40, hvm=True, machine="x86_64") == ("gsi", 40), kind
