"""``xenvirt probe``: what this host offers, found by trying."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import textwrap
from dataclasses import asdict

from .probes import Finding, probe_host


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "probe",
        help="what this host offers: vhost-user, KVM, tap, huge pages, Xen, peers",
        description="Tries what this host offers, and says what one can do about the rest. Changes nothing.",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings. The exit status is 0, whatever was found."""
    host = (
        f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    )
    findings = probe_host()
    if arguments.json:
        report = {
            "host": host,
            "findings": {heading: [asdict(one) for one in group] for heading, group in findings.items()},
        }
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        print(host)
        print(as_text(findings, shutil.get_terminal_size((100, 24)).columns))
    return 0


def as_text(findings: dict[str, list[Finding]], width: int) -> str:
    """The findings as a table whose longest line has `width` characters."""
    names = max(len(one.name) for group in findings.values() for one in group)
    indent = " " * (names + 7)
    lines = []
    for heading, group in findings.items():
        lines += ["", heading]
        for one in group:
            texts = [one.found]
            if not one.works:
                texts += [f"for: {one.needed_for}"] if one.needed_for else []
                texts += [f"try: {one.advice}"] if one.advice else []
            first = f"  {'yes' if one.works else 'no':3} {one.name:{names}} "
            for number, text in enumerate(texts):
                lines += textwrap.wrap(
                    text,
                    max(width, 60),
                    initial_indent=indent if number else first,
                    subsequent_indent=indent,
                    break_on_hyphens=False,
                    break_long_words=False,
                )
    return "\n".join(lines)
