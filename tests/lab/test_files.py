"""Archives, the cache, and what a lab refuses before it boots anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from xenvirt.errors import LabError
from xenvirt.lab import cache
from xenvirt.lab.archive import Archive
from xenvirt.lab.building import build_of
from xenvirt.lab.recipes import RECIPES, dom0_of, kernel_of
from xenvirt.lab.wheel import bundle, installed, of_wheel

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")


@needs_cpio
def test_an_archive_is_unpacked_by_cpio_as_it_was_made(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("/deep/in/file", b"content", executable=True)
    archive.file("/deep/in/file", b"the first one counts")
    archive.link("/name", "deep/in/file")
    subprocess.run(["cpio", "-id", "--quiet"], cwd=tmp_path, input=archive.finish(), check=True)
    assert (tmp_path / "name").read_bytes() == b"content"
    assert (tmp_path / "name").readlink() == Path("deep/in/file")
    assert (tmp_path / "deep" / "in" / "file").stat().st_mode & 0o777 == 0o755


def test_what_could_not_be_built_is_not_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise LabError("no room")

    with pytest.raises(LabError, match="no room"):
        cache.make(tmp_path / "thing", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_faster_of_two_builders_wins(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "by").write_text("the slower one")
        (tmp_path / "thing").mkdir()
        (tmp_path / "thing" / "by").write_text("the faster one")

    assert (cache.make(tmp_path / "thing", build) / "by").read_text() == "the faster one"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_build_whose_programs_are_missing_names_their_packages(tmp_path: Path) -> None:
    programs = {"sh": "dash", "no-such-compiler": "gcc-for-nothing"}
    with (
        pytest.raises(LabError, match=r"^to build Xen: apt-get install gcc-for-nothing$"),
        build_of("Xen", tmp_path, programs),
    ):
        pytest.fail("it has begun")


def test_a_build_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    failing = ["sh", "-c", "seq 100; exit 2"]
    with pytest.raises(LabError) as caught, build_of("Xen", tmp_path, {}) as log:
        subprocess.run(failing, check=True, stdout=log)
    said = str(caught.value).splitlines()
    assert said[0].startswith("Xen could not be built: ")
    assert said[1:] == [str(number) for number in range(86, 101)]


def test_a_module_for_another_machine_is_refused() -> None:
    files = {**installed(), "xenvirt/_native.abi3.so": bytes(18) + (183).to_bytes(2, "little")}
    with pytest.raises(LabError, match="is for aarch64, and dom0 is x86_64"):
        bundle(files, RECIPES["x86_64"][0], "x86_64")


def test_a_module_for_a_newer_c_library_is_refused() -> None:
    native = bytes(18) + (62).to_bytes(2, "little") + b"\0GLIBC_2.4\0GLIBC_2.99\0"
    with pytest.raises(LabError, match=r"built for glibc 2\.99, and dom0 .* has 2\.36"):
        bundle({"xenvirt/_native.abi3.so": native}, RECIPES["x86_64"][0], "x86_64")


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_text("no zip")
    with pytest.raises(LabError, match="is no wheel"):
        of_wheel(tmp_path / "x.whl")


@pytest.mark.parametrize(("architecture", "dom0"), [("aarch64", "pv"), ("x86_64", "hvm"), ("mips", None)])
def test_a_dom0_that_there_is_not_is_refused(architecture: str, dom0: str | None) -> None:
    with pytest.raises(LabError, match=architecture):
        dom0_of(architecture, dom0)


def test_a_kernel_that_there_is_not_is_refused() -> None:
    assert (kernel_of("x86_64", None), kernel_of("aarch64", "own")) == ("debian", "own")
    with pytest.raises(LabError, match="a dom0 for x86_64 has no own kernel, only debian"):
        kernel_of("x86_64", "own")
