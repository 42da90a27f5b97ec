"""The protocol as a model: mutants of it are caught. ``make model`` looks at all, and at every state of the model itself."""

from __future__ import annotations

import re

import pytest

from chaos.promela.check import MODEL, MUTANTS, check, missing

needs_spin = pytest.mark.skipif(bool(missing()), reason=f"not found: {' '.join(missing())} (Debian: apt install spin gcc)")


@needs_spin
@pytest.mark.parametrize("mutant", ["NO_FENCE", "KEY_SHARE_IN_DOUBT"])
def test_a_mutant_has_a_counterexample(mutant: str) -> None:
    assert check(mutant, MUTANTS[mutant][1]).violated


@needs_spin
@pytest.mark.model
def test_the_protocol_holds_in_every_state() -> None:
    verdict = check()
    assert verdict.violated == ""
    assert verdict.states > 100_000, "the model does next to nothing"


@needs_spin
@pytest.mark.model
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_has_a_counterexample(mutant: str) -> None:
    assert check(mutant, MUTANTS[mutant][1]).violated


def test_the_mutants_are_those_of_the_model() -> None:
    """A name that the model does not know would break nothing."""
    known = set(re.findall(r"(?:ifdef|ifndef|defined)[ (]([A-Z_]+)", MODEL.read_text()))
    assert known - {"FAULTS", "TWO_HOSTS"} == set(MUTANTS)
