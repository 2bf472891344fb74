"""The command line as a whole."""

from importlib.metadata import version

import pytest

from xenvirt.cli import main


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"xenvirt {version('xenvirt')}\n"


@pytest.mark.parametrize("line", [[], ["wat"]])
def test_a_wrong_command_line_is_status_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2
    assert "xenvirt: error: " in capsys.readouterr().err
