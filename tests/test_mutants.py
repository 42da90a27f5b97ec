"""The mutants of chaos/mutations.py still fit the code, and are caught. ``make mutants`` runs all of them; here a few."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.mutants import PAGE, copy_with, judge
from chaos.mutations import MUTANTS, Mutant
from chaos.verdicts import NAMES
from tests.support import ROOT

#: Those that are caught in a second or two.
QUICK = {"fence on the attempt", "no continuity check at settle"}


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=m.name, marks=() if m.name in QUICK else pytest.mark.mutants) for m in MUTANTS]
)
def test_it_is_caught(mutant: Mutant) -> None:
    verdict = judge(mutant)
    assert verdict.caught, verdict.said


def test_they_fit_the_code(tmp_path: Path) -> None:
    """Each text is there once, and each test exists."""
    for number, mutant in enumerate(MUTANTS):
        copy_with(mutant, tmp_path / str(number))
        if mutant.by_storm:
            assert mutant.oracle in NAMES, mutant.name
            continue
        file, _, test = mutant.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), mutant.name


def test_the_page_shows_all_of_them() -> None:
    page = PAGE.read_text()
    for mutant in MUTANTS:
        assert f"| {mutant.name} |" in page, f"run python -m chaos.mutants --write ({mutant.name})"
        assert mutant.test in page
