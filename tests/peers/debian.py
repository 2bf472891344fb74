"""Packages of another Debian than this one, downloaded and unpacked below a folder; nothing is installed."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from xenvirt.lab.packages import mirrors

_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(folder: Path, suites: Sequence[str], packages: Sequence[str], *, with_needs: bool = False) -> Path:
    """Unpacks packages of these suites, where they are newest in the last one; gives the root of their files.

    Args:
        folder: where apt may keep its lists, and where the root is made.
        suites: names such as `trixie`.
        packages: their names.
        with_needs: with everything that they depend on, as on a machine that has nothing yet.
    """
    apt = folder / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True)
    (apt / "status").touch()
    mirror, _security = mirrors()
    lines = [f"deb [signed-by={_KEYS}] {mirror} {suite} main\n" for suite in suites]
    (apt / "sources.list").write_text("".join(lines))
    settings = {
        "Acquire::Retries": 3,
        "APT::Sandbox::User": "root",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::status": apt / "status",
    }
    apt_get = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    subprocess.run([*apt_get, "update"], check=True)
    if with_needs:
        options = ["-y", "--no-install-recommends", "--download-only", "-t", suites[-1]]
        subprocess.run([*apt_get, *options, "install", *packages], check=True, stdout=subprocess.DEVNULL)
        archives = apt / "cache" / "archives"
    else:
        subprocess.run([*apt_get, "download", *packages], check=True, cwd=apt)
        archives = apt
    root = apt / "root"
    for package in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root
