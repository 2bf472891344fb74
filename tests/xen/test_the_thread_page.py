"""docs/the-thread.md names for each answer the test that shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "the-thread.md"
TESTS = ROOT / "tests" / "xen" / "dom0" / "test_the_thread.py"


def test_each_answer_names_its_test_and_each_test_its_answer() -> None:
    questions = [part for part in PAGE.read_text().split("\n\n") if part.startswith("**")]
    named = [re.findall(r"`(test_\w+)`$", question) for question in questions]
    assert all(len(names) == 1 for names in named), [
        question for question, names in zip(questions, named, strict=True) if len(names) != 1
    ]
    written = {
        node.name
        for node in ast.parse(TESTS.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {name for names in named for name in names} == written
