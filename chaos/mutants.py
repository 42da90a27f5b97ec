"""pgqueue, broken on purpose: each mutant (chaos/mutations.py) is a small change of its source, and names what has to notice.

``python -m chaos.mutants [NAME ...]`` (``make mutants``) makes the change in a copy of the project, runs what is to catch it
there, and says how long that took. ``--write`` puts the table into docs/chaos/mutants.md.

A change that does not fit its file any more, or fits twice, is an error: a mutant cannot rot in silence.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.mutations import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "chaos" / "mutants.md"


@dataclass
class Verdict:
    """Whether it was noticed."""

    caught: bool
    seconds: float
    said: str


def copy_with(mutant: Mutant, root: Path) -> None:
    """The project, with that mutant in it."""
    for name in ("pgqueue", "chaos", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for edit in mutant.edits:
        edit.apply(root)


def judge(mutant: Mutant) -> Verdict:
    """Run its test in a copy."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        copy_with(mutant, Path(home))
        environment = {**os.environ, "PYTHONPATH": home, "PYTHONDONTWRITEBYTECODE": "1"}
        began = time.monotonic()
        done = subprocess.run(mutant.command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)
        seconds = time.monotonic() - began
    said = done.stdout + done.stderr
    # 1: tests ran, and some failed. An error before the test (2, 4, 5) is no oracle that has spoken. A storm: what it says is it.
    caught = done.returncode == 1 and (mutant.by_storm or " failed" in said) and re.search(mutant.says, said) is not None
    return Verdict(caught, seconds, said)


def table(verdicts: dict[str, Verdict]) -> str:
    """As the page shows it."""
    tests = [mutant for mutant in MUTANTS if not mutant.by_storm]
    storms = [mutant for mutant in MUTANTS if mutant.by_storm]
    lines = [*_rows("caught by", tests, verdicts), "", f"By a storm, `{storms[0].test}`:", ""]
    return "\n".join([*lines, *_rows("found by the oracle", storms, verdicts)])


def _rows(heading: str, mutants: list[Mutant], verdicts: dict[str, Verdict]) -> Iterator[str]:
    yield f"| what is broken | where | {heading} | seconds |"
    yield "|---|---|---|--:|"
    for mutant in mutants:
        files = ", ".join(dict.fromkeys(f"`{Path(edit.file).name}`" for edit in mutant.edits))
        by = mutant.oracle or f"`{mutant.test}`"
        yield f"| {mutant.name} | {files} | {by} | {verdicts[mutant.name].seconds:.0f} |"


def main(arguments: list[str]) -> int:
    """Judge all, or those that are named."""
    write = "--write" in arguments
    names = [name for name in arguments if name != "--write"]
    verdicts: dict[str, Verdict] = {}
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        verdict = verdicts[mutant.name] = judge(mutant)
        print(f"{'caught' if verdict.caught else 'NOT CAUGHT'} in {verdict.seconds:.0f} s: {mutant.name}", flush=True)
        if not verdict.caught:
            print(verdict.said[-3000:])
    if write and len(verdicts) == len(MUTANTS):
        before, _, rest = PAGE.read_text().partition("<!-- begin -->\n")
        PAGE.write_text(f"{before}<!-- begin -->\n{table(verdicts)}\n<!-- end -->\n{rest.partition('<!-- end -->' + chr(10))[2]}")
    return int(not all(verdict.caught for verdict in verdicts.values()) or not verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
