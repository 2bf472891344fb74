"""``xenvirt demo`` writes, reads, verifies and measures, and says what to try next."""

from __future__ import annotations

import re

import pytest

from xenvirt.cli import demo, main


def test_the_demo_verifies_every_byte_and_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size=4", "--seconds=0.2"]) == 0
    output = capsys.readouterr().out
    assert "A disk of 4 MiB" in output
    assert re.search(r"writing +\[#{40}\] +4 MiB, flushed: [\d,]+ MiB/s", output)
    assert re.search(r"reading +\[#{40}\] +4 MiB, verified: [\d,]+ MiB/s", output)
    assert "the image on the host agrees" in output
    assert re.search(r"one at a time: [\d,]+ a second", output)
    assert re.search(r"median [\d,]+ us, 99 % [\d,]+ us", output)
    assert re.search(r"32 at a time: [\d,]+ a second, [\d,]+ MiB/s", output)
    assert "What to try next" in output


def test_a_wrong_byte_fails_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "verify", lambda _disk, _image: "what was read at 0 is not what was written")
    assert main(["demo", "--size=1", "--seconds=0.01"]) == 1
    assert "xenvirt demo: what was read at 0 is not what was written" in capsys.readouterr().err


def test_a_histogram_has_a_line_for_each_power_of_two() -> None:
    text = demo.histogram([5.0, 6.0, 7.9, 30.0])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["4", "8", "16"]
    assert lines[0].endswith(" 3")
    assert "#" * demo.BAR in lines[0]
    assert "#" not in lines[1]
    assert lines[3] == "  median 8 us, 99 % 30 us, 99.9 % 30 us, longest 30 us"
    assert demo.histogram([]) == "  nothing was measured"


def test_a_disk_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size=0"]) == 2
    assert "at least 1 MiB" in capsys.readouterr().err
