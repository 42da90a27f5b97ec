"""The pages that name tests name tests that exist, and each promise has some."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = [ROOT / "docs" / "guarantees.md", *sorted((ROOT / "docs" / "chaos").glob("*.md"))]
NAMED = re.compile(r"`(tests/\w+\.py)(?:::(\w+))?(?:\[[^`]*\])?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for file, test in NAMED.findall(page.read_text()):
        path = ROOT / file
        assert path.exists(), f"{page.name} names {file}"
        assert not test or f"def {test}(" in path.read_text(), f"{page.name} names {file}::{test}"


def test_every_promise_can_be_falsified() -> None:
    text = PAGES[0].read_text()
    promises = text[text.index("## Promises") : text.index("## Not promised")].split("\n### ")[1:]
    without = [promise.splitlines()[0] for promise in promises if not NAMED.search(promise)]
    assert without == [], "promises that no test would show to be false"


def test_all_twelve_are_there() -> None:
    """The table, and the heading that each row leads to."""
    text = PAGES[0].read_text()
    headings = {re.sub(r"[^a-z0-9 ]", "", line[4:].lower()).replace(" ", "-") for line in text.splitlines() if line[:4] == "### "}
    rows = re.findall(r"^\| (G\d+) \| \[[^]]*\]\(#([a-z0-9-]+)\) \| (.*) \|$", text, re.MULTILINE)
    assert [number for number, _, _ in rows] == [f"G{n}" for n in range(1, 13)]
    for number, heading, tests in rows:
        assert heading in headings, number
        assert NAMED.search(tests), f"{number} names no test"
