"""Daemons of rust-vmm that fail: what `Daemon` says of it, and that it says it soon."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from xenvirt import Daemon, connect
from xenvirt.errors import DaemonError, DisconnectedError

from . import crates, rust_vmm
from .buses import SpiInverter
from .crates import Crate
from .hardware import Hardware

SET_VRING_NUM = 8


def test_one_that_dies_at_start_is_named_with_what_it_said(
    daemon_program: Callable[[Crate], Path], tmp_path: Path
) -> None:
    daemon_program(crates.SCSI)
    missing = tmp_path / "no-such-image"
    with pytest.raises(DaemonError, match=r"vhost-device-scsi .* before it opened its socket") as caught:
        rust_vmm.scsi(missing).__enter__()
    assert caught.value.exit_status not in (None, 0)
    assert re.search(r"It printed:\n(.*\n)*.*No such file", str(caught.value))


def test_one_that_does_not_know_its_arguments_is_shown_with_its_usage(
    daemon_program: Callable[[Crate], Path],
) -> None:
    program = daemon_program(crates.VSOCK)
    with pytest.raises(DaemonError, match="ended with status 2 before it opened its socket") as caught:
        Daemon(program, "--sock={socket}").__enter__()
    assert "--sock" in caught.value.output


def test_one_whose_socket_has_another_name_is_told_with_the_suffix_to_say(
    daemon_program: Callable[[Crate], Path],
) -> None:
    program = daemon_program(crates.RNG)
    with pytest.raises(DaemonError, match=r"did not open its socket .*: say socket_suffix='0'"):
        Daemon(program, "--socket-path={socket}", timeout=4.0).__enter__()


def test_a_panic_in_mid_request_is_told_with_the_request_and_the_reason(
    daemon_program: Callable[[Crate], Path], hardware: Callable[..., Hardware]
) -> None:
    """vhost-device-spi reads 40 bytes of a configuration space of 32."""
    daemon_program(crates.SPI)

    def ask_for_too_much() -> None:
        with rust_vmm.spi(hardware(SpiInverter())) as daemon, connect(daemon.socket) as link:
            try:
                link.config(0, 40)
            finally:
                daemon.wait_for_output("out of range")

    with pytest.raises(DisconnectedError, match="GET_CONFIG") as caught:
        ask_for_too_much()
    said = "\n".join(caught.value.__notes__)
    assert "-> GET_CONFIG 0..+40" in said
    assert "vhost-device-spi ended with status 1 after a panic" in said
    assert "range end index 40 out of range for slice of length 32" in said


def test_a_panic_over_a_malformed_message_is_told_likewise(daemon_program: Callable[[Crate], Path]) -> None:
    daemon_program(crates.SOUND)

    def cut_a_message_short() -> None:
        with rust_vmm.sound() as daemon, connect(daemon.socket) as link:
            try:
                link.protocol.raw(SET_VRING_NUM, b"123")
            finally:
                daemon.wait_for_output("InvalidMessage")

    with pytest.raises(DisconnectedError, match="SET_VRING_NUM") as caught:
        cut_a_message_short()
    said = "\n".join(caught.value.__notes__)
    assert "vhost-device-sound ended with status 101 after a panic" in said
    assert "InvalidMessage" in said
