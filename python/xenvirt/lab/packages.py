"""Debian's packages, downloaded by apt with lists of its own and unpacked: nothing of them is installed.

Root is not needed, and apt's settings of this machine (a proxy, say) hold; its sources, its architecture and
what is installed do not matter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from xenvirt.errors import LabError

from .cache import kept, make
from .progress import MB, Say, growing

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "XENVIRT_DEBIAN_MIRROR"
"""Environment variable: the mirror to download from, where the machine's own sources name none."""

_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources")


@dataclass(frozen=True)
class Suite:
    """A release of Debian for one of its architectures ("amd64", "arm64")."""

    name: str
    architecture: str

    def __str__(self) -> str:
        return f"Debian {self.name} for {self.architecture}"


def debs(
    suite: Suite, packages: Sequence[str], alone: Sequence[str], say: Say, *, refresh: bool = False
) -> list[Path]:
    """The files of `packages` with all that they depend on, and of `alone` without; downloaded once.

    Of a package in `alone` that holds nothing but a dependency (linux-image-amd64), that one is taken. What
    is there already is not asked for newer versions unless `refresh` is set.
    """
    target = kept(f"debs-{suite.name}-{suite.architecture}", sorted(packages), sorted(alone))
    if refresh and target.exists():
        shutil.rmtree(target)

    def build(folder: Path) -> None:
        with prepared(suite, folder / "apt", say) as apt:
            apt.download(packages, alone, folder, say)
        shutil.rmtree(folder / "apt")

    return sorted(make(target, build).glob("*.deb"))


def members(deb: Path) -> Iterator[tuple[str, tarfile.TarInfo, Callable[[], bytes]]]:
    """Path (without a leading "/"), kind, and what gives the content of each thing in a package, in order.

    The content can be had until the next one is asked for.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpack:
        assert unpack.stdout is not None
        with tarfile.open(fileobj=unpack.stdout, mode="r|") as tar:
            for member in tar:

                def content(member: tarfile.TarInfo = member) -> bytes:
                    file = tar.extractfile(member)
                    return file.read() if file else b""

                yield member.name.removeprefix(".").strip("/"), member, content
        if unpack.wait():
            raise LabError(f"dpkg-deb cannot read {deb}")


def mirrors() -> tuple[str, str]:
    """The Debian mirror that this machine uses, and the one of its security updates."""
    if chosen := os.environ.get(MIRROR_VARIABLE):
        chosen = chosen.rstrip("/")
        return chosen, f"{chosen}-security"
    main, security = "", ""
    for uri in _uris():
        if re.search(r"/debian-security/?$", uri):
            security = security or uri.rstrip("/")
        elif re.search(r"/debian/?$", uri):
            main = main or uri.rstrip("/")
    if not main:
        raise LabError(
            f"no mirror of Debian in this machine's apt sources: set {MIRROR_VARIABLE} to one, its URL up to "
            "/debian"
        )
    return main, security or f"{main}-security"


def _uris() -> Iterator[str]:
    for pattern in _SOURCES:
        for path in sorted(Path("/").glob(pattern.removeprefix("/"))):
            for line in path.read_text().splitlines():
                if path.suffix == ".sources":
                    if line.startswith("URIs:"):
                        yield from line.split()[1:]
                elif found := re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)", line):
                    yield found[1]


@contextmanager
def prepared(suite: Suite, folder: Path, say: Say) -> Iterator[Apt]:
    """apt-get with the lists of a suite in `folder`."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise LabError(f"no {program} here: the lab is made of Debian's packages")
    if not KEYRING.exists():
        raise LabError(f"no {KEYRING}: install the package debian-archive-keyring")
    main, security = mirrors()
    for part in ("lists/partial", "archives/partial", "none"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    signed = f"[signed-by={KEYRING}]"
    lines = [
        f"{kind} {signed} {mirror} {name} main\n"
        for mirror, name in ((main, suite.name), (security, f"{suite.name}-security"))
        for kind in ("deb", "deb-src")
    ]
    (folder / "sources.list").write_text("".join(lines))
    apt = Apt(suite, folder)
    say(f"downloading the package lists of {suite} from {main}")
    apt.run("apt-get", "update")
    yield apt


class Apt:
    """apt-get with a state of its own: nothing installed, the lists of one suite."""

    def __init__(self, suite: Suite, folder: Path) -> None:
        self._suite = suite
        self._options = [
            *("-oquiet=2", "-oAPT::Get::Assume-Yes=true", "-oAPT::Install-Recommends=false"),
            "-oAcquire::Languages=none",
            *("-oAcquire::Retries=3", "-oAPT::Sandbox::User=root", "-oDebug::NoLocking=true"),
            f"-oAPT::Architecture={suite.architecture}",
            f"-oAPT::Architectures={suite.architecture}",
            f"-oDir::Etc::sourcelist={folder}/sources.list",
            f"-oDir::Etc::sourceparts={folder}/none",
            f"-oDir::Etc::preferences={folder}/none/preferences",
            f"-oDir::Etc::preferencesparts={folder}/none",
            f"-oDir::State={folder}",
            f"-oDir::State::lists={folder}/lists",
            f"-oDir::State::status={folder}/status",
            f"-oDir::Cache={folder}",
        ]

    def run(self, program: str, *words: str, folder: Path | None = None) -> str:
        """What a program of apt's prints; a LabError if it fails."""
        done = subprocess.run(
            [program, *self._options, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
        if done.returncode:
            why = "\n".join((done.stderr.strip() or "it does not say why").splitlines()[-5:])
            raise LabError(f"{program} {words[0]} failed for {self._suite}: {why}")
        return done.stdout

    def download(self, packages: Sequence[str], alone: Sequence[str], target: Path, say: Say) -> None:
        """Downloads `packages` with what they depend on, and `alone` without, to `target`."""
        calls = []
        if packages:
            calls.append(["install", "--download-only", *packages])
        if alone:
            calls.append(["download", *map(self._dependency_of_empty, alone)])
        listed = "".join(self.run("apt-get", "--print-uris", *words) for words in calls)
        sizes = [int(size) for size in re.findall(r"^'[^']*' \S+ (\d+)", listed, re.MULTILINE)]
        say(f"downloading {len(sizes)} packages of {self._suite}, {sum(sizes) // MB} MB")

        def size() -> int:
            found = 0
            for path in target.rglob("*"):
                try:
                    found += (
                        path.stat().st_size if ".deb" in path.name or path.parent.name == "partial" else 0
                    )
                except FileNotFoundError:
                    continue
            return found

        with growing(size, sum(sizes)):
            for words in calls:
                self.run("apt-get", *words, folder=target)
        for path in (target / "apt" / "archives").glob("*.deb"):
            path.rename(target / path.name)

    def source_versions(self, package: str) -> list[str]:
        """The versions of a source package that the lists name, the newest first."""
        found = re.findall(r"^Version: (\S+)", self.run("apt-cache", "showsrc", package), re.MULTILINE)
        return sorted(dict.fromkeys(found), key=cmp_to_key(_compare_versions), reverse=True)

    def download_source(self, package: str, version: str, target: Path, say: Say) -> bool:
        """Downloads the files of a source package. False if the mirror does not hold all of them."""
        say(f"downloading the source of {package} {version}")
        try:
            self.run("apt-get", "source", "--download-only", f"{package}={version}", folder=target)
        except LabError as error:
            say(f"the mirror does not have it: {str(error).splitlines()[-1]}")
            return False
        return True

    def _dependency_of_empty(self, package: str) -> str:
        """linux-image-amd64 is a name for the newest kernel's package."""
        if not re.fullmatch(r"linux-image-[a-z0-9]+", package):
            return package
        depends = re.search(r"Depends: (\S+)", self.run("apt-cache", "depends", package))
        if depends is None:
            raise LabError(f"{package} of {self._suite} names no kernel")
        return depends[1]


def _compare_versions(one: str, other: str) -> int:
    newer = subprocess.run(["dpkg", "--compare-versions", one, "gt", other], check=False).returncode == 0
    return 1 if newer else -1
