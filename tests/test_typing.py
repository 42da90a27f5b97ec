"""What type checkers say of code that uses pgqueue: ``tests/typing`` is full of ``assert_type``, and of errors that must be.

Both checkers read the same files, in strict mode, and both complain of an ignore that nothing needs. (basedpyright is pyright in
a wheel that brings its Node.js along.)
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tests.support import ROOT

FILES = ROOT / "tests" / "typing"
CHECKERS = {
    "mypy": ["mypy", "--strict", "--config-file=", "--explicit-package-bases", "--no-incremental", str(FILES)],
    "pyright": ["basedpyright", "--project", str(FILES), "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_typed_code_of_users(checker: str) -> None:
    module, *arguments = CHECKERS[checker]
    found = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    assert "no issues found in 3 source files" in found.stdout or "0 errors, 0 warnings" in found.stdout


def test_what_is_typed_also_runs() -> None:
    """The decorators in those files are real ones."""
    registered = importlib.import_module("tests.typing.registered")
    importlib.import_module("tests.typing.enqueued")
    assert {"plain", "tick", "book", "pay", "fulfil", "fulfil_async"} <= {f.short_name for f in registered.app.functions.values()}
