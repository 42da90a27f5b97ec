"""The documentation is executed, and compared with the code that it speaks of.

Every fenced block of README.md and docs/ is run, in order, file by file, by a reader who does what the page says in an empty
directory with a fresh database:

    python   first line ``# shop.py``: the contents of that file; ``# shop.py, continued``: more of it. Anything else is typed
             into one interpreter per page.
    bash     run by bash; first line ``# in another terminal``: it goes on while the page is read, and is stopped with SIGTERM.
    sql      run on one autocommit connection per page; answers look as in psql.
    text     straight after one of these: what it has to print (``...`` stands for anything, ids and times are not compared).
             Anywhere else, like mermaid: a drawing.

A block of any other kind is an error, so nothing is skipped in silence.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

import pgqueue
from pgqueue import errors
from pgqueue.cli.commands import cli
from pgqueue.embedded import Embedded
from pgqueue.functions import Definition, Options
from tests import test_architecture
from tests.support import ROOT, wait_for

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
EXECUTED = ("python", "bash", "sql")
DRAWINGS = ("text", "mermaid")

#: Commands that cannot be run here: they install things or need minutes. Each with the place where they are run, and how there.
ELSEWHERE = {
    "make demo": (".ci/stranger", "make demo"),
    "make test": (".ci/run", "make test"),
    "pip install 'pgqueue-workflows[embedded]'": ("Makefile", "[embedded]"),
    "pgqueue demo": ("Makefile", "pgqueue demo"),
}

#: Modules whose docstring examples cannot be run as they are, and where the same is run.
NOT_AS_DOCTEST = {"pgqueue.embedded.server": "tests/test_embedded.py"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page)


# ------------------------------------------------------------------------------------------------------ blocks


@dataclass
class Block:
    """A fenced block, and what is printed straight after it."""

    language: str
    text: str
    line: int
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    inside: list[str] = []
    adjacent = False  # nothing but blank lines since the last block
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened, inside = (line[3:].strip(), number), []
        elif opened is None:
            adjacent = adjacent and not line.strip()
        elif line == "```":
            language, begin = opened
            text = "\n".join(inside) + "\n"
            if language == "text" and adjacent and found[-1].language in EXECUTED:
                found[-1].output = text
            else:
                found.append(Block(language, text, begin))
            opened, adjacent = None, True
        else:
            inside.append(line)
    assert opened is None, f"{page}:{opened}: a block that does not end"
    return found


# ------------------------------------------------------------------------------------------------------ the reader

#: What the reader types Python into: one JSON line per block, one JSON answer.
INTERPRETER = """
import contextlib, importlib, io, json, sys, traceback
sys.path.insert(0, "")
names = {"__name__": "__main__"}
for line in sys.stdin:
    said, error, block = io.StringIO(), None, json.loads(line)
    for module in block["changed"]:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile("\\n" * block["line"] + block["text"], block["page"], "exec"), names)
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([said.getvalue(), error]), flush=True)
"""
FILE = re.compile(r"# ([\w/]+\.py)(, continued)?\n")
BACKGROUND = "# in another terminal\n"


class Reader:
    """Does what a page says, in a directory and a database of his own."""

    def __init__(self, page: Path, dsn: str, place: Path) -> None:
        self._page = page
        self._dsn = dsn
        self._place = place
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("PGQUEUE_") or name == "PGQUEUE_PG_BIN"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {**inherited, "PGQUEUE_DSN": dsn, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "TZ": "UTC", "COLUMNS": "120"}
        self._interpreter: subprocess.Popen[str] | None = None
        self._changed: list[str] = []
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._others: list[tuple[Block, subprocess.Popen[bytes], Path]] = []

    def follow(self) -> None:
        """Read the page, and clear up."""
        try:
            self.read()
        finally:
            self.leave()

    def read(self) -> None:
        """Do what the page says, block by block."""
        for block in blocks(self._page):
            where = f"{name_of(self._page)}:{block.line}"
            if block.language in EXECUTED:
                said = getattr(self, f"_{block.language}")(block, where)
                if block.output is not None:
                    assert alike(block.output, said), f"{where} printed\n{said}\nand not\n{block.output}"
            else:
                assert block.language in DRAWINGS, f"{where}: nobody runs blocks of language {block.language!r}"

    def _python(self, block: Block, where: str) -> str:
        if file := FILE.match(block.text):
            path = self._place / file[1]
            assert bool(file[2]) == path.exists(), f"{where}: {file[1]} {'exists' if path.exists() else 'does not exist'}"
            with path.open("a") as out:
                out.write("\n\n" * bool(file[2]) + block.text)
            compile(path.read_text(), str(path), "exec")
            self._changed.append(path.stem)
            return ""
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", INTERPRETER],
                cwd=self._place, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._interpreter.stdin is not None
        assert self._interpreter.stdout is not None
        order = {"text": block.text, "line": block.line, "page": str(self._page), "changed": self._changed}
        self._interpreter.stdin.write(json.dumps(order) + "\n")
        self._interpreter.stdin.flush()
        self._changed = []
        answer = self._interpreter.stdout.readline()
        assert answer, f"{where}: the interpreter ended"
        said, error = json.loads(answer)
        assert error is None, f"{where}: {error}"
        return str(said)

    def _bash(self, block: Block, where: str) -> str:
        lines = [line for line in block.text.splitlines() if line.partition("  #")[0].strip() not in ELSEWHERE]
        text = "\n".join(lines)
        if block.text.startswith(BACKGROUND):
            self._start(block, lines[1:])
            return ""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self._place, env=self._env, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def _start(self, block: Block, lines: list[str]) -> None:
        if not lines:
            return  # run elsewhere
        [command] = lines
        log = self._place / f"terminal-{len(self._others)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", "exec " + command], cwd=self._place, env=self._env,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._others.append((block, process, log))
        wait_for(lambda: log.stat().st_size or process.poll() is not None, what=f"{command} to say something")
        if command.startswith("pgqueue dev"):
            self._env["PGQUEUE_DSN"] = wait_for(lambda: exported(log), what="pgqueue dev to say where its database is")

    def _sql(self, block: Block, where: str) -> str:
        try:
            cursor = self._conn.execute(block.text)  # type: ignore[call-overload]
            while cursor.nextset():
                pass
        except psycopg.Error as error:
            if block.output is None:
                raise AssertionError(f"{where}: {error}") from None
            self._conn.rollback()
            hint = f"HINT:  {error.diag.message_hint}\n" if error.diag.message_hint else ""
            return f"ERROR:  {error.diag.message_primary}\n{hint}"
        return as_psql(cursor)

    def leave(self) -> None:
        """End what goes on. Everything in another terminal has to stop cleanly."""
        problems = []
        while self._others:
            block, process, log = self._others.pop()
            process.send_signal(signal.SIGTERM)
            try:
                code: int | None = process.wait(20)
            except subprocess.TimeoutExpired:
                code = None
                process.kill()
                process.wait()
            if code != 0:
                problems.append(f"{name_of(self._page)}:{block.line}: exit code {code}\n{log.read_text(errors='replace')}")
        if self._interpreter is not None:
            self._interpreter.communicate()
            self._interpreter = None
        self._conn.close()
        if (self._place / ".pgqueue").exists():
            Embedded(self._place / ".pgqueue").remove()
        assert not problems, "\n".join(problems)


def exported(log: Path) -> str | None:
    """The value of the line ``export PGQUEUE_DSN=...`` that a reader copies."""
    found = re.search(r"export PGQUEUE_DSN=(.*)\n", log.read_text(errors="replace"))
    return shlex.split(found[1])[0] if found else None


def as_psql(cursor: psycopg.Cursor[Any]) -> str:
    """The last result as psql shows it."""
    if cursor.description is None:
        return f"{cursor.statusmessage}\n"
    cells = [[column.name for column in cursor.description]]
    cells += [["" if value is None else shown(value) for value in row] for row in cursor.fetchall()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [" " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "-" + "-+-".join("-" * width for width in widths) + "-")
    count = len(cells) - 1
    return "\n".join([*lines, f"({count} row{'' if count == 1 else 's'})"]) + "\n"


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, list):
        return "{" + ",".join(map(shown, value)) + "}"
    return str(value)


UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
TIME = re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?([+-]\d\d(:?\d\d)?)?\b")


def alike(expected: str, said: str) -> bool:
    """Is this what should have been printed, but for ids, times, and how many blanks there are?"""

    def normal(text: str) -> str:
        text = TIME.sub("<time>", UUID.sub("<id>", text))
        return "\n".join(re.sub(r"-{2,}", "--", re.sub(r" {2,}", " ", line)).strip() for line in text.strip().splitlines())

    parts = [re.escape(part.strip()) for part in normal(expected).split("...")]
    return re.fullmatch(r"\s*.*?\s*".join(parts), normal(said), re.DOTALL) is not None


@pytest.fixture
def reader(request: pytest.FixtureRequest, dsn: str, tmp_path: Path) -> Iterator[Reader]:
    roles = "SELECT rolname FROM pg_roles"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP SCHEMA pgqueue CASCADE")  # pages begin as their readers do
        before = set(conn.execute(roles).fetchall())
        yield Reader(request.param, dsn, tmp_path)
        for (role,) in set(conn.execute(roles).fetchall()) - before:
            conn.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


@pytest.mark.parametrize("reader", [page for page in PAGES if blocks(page)], indirect=True, ids=name_of)
def test_page(reader: Reader) -> None:
    reader.follow()


def test_what_is_not_run_here_is_run_elsewhere() -> None:
    for command, (place, there) in ELSEWHERE.items():
        assert there in (ROOT / place).read_text(), f"{command} is said to be run by {place}, and is not"
    for place in NOT_AS_DOCTEST.values():
        assert (ROOT / place).exists()


# --------------------------------------------------------------------------------------------- the runner itself


def test_the_comparison_of_outputs() -> None:
    one = " id                                   | at \n--+--\n 01a204da-b91f-7250-87a8-6e21e7112008 | 2026-11-22 20:03:02.5+00\n"
    assert alike("id | at\n----+---\n0192aaaa-0000-7000-8000-000000000000 | 2025-01-01 00:00:00", one)
    assert not alike("id | at", one)
    assert alike("id ...", one)
    assert alike("a\n...\nz", "a\nb\nc\nz\n")
    assert not alike("a\n...\nz", "a\nb\nc\ny\n")
    assert not alike("balance 100", "balance 200")


WRONG_PAGES = {
    "a language that nobody runs": "```ruby\nputs 1\n```\n",
    "a block without a language": "```\nputs 1\n```\n",
    "python that raises": "```python\n1 / 0\n```\n",
    "a file that does not compile": "```python\n# shop.py\nif\n```\n",
    "more of a file that is not there": "```python\n# shop.py, continued\n```\n",
    "a command that fails": "```bash\nfalse\necho fine\n```\n",
    "a command that fails in another terminal": "```bash\n# in another terminal\nfalse\n```\n",
    "wrong SQL": "```sql\nselect\nfrom where\n```\n",
    "another output": "```python\nprint(1)\n```\n```text\n2\n```\n",
    "another row": "```sql\nselect 1 as one\n```\n\n```text\n one\n-----\n 2\n(1 row)\n```\n",
    "a block that does not end": "```python\nprint(1)\n",
}


@pytest.mark.parametrize("text", WRONG_PAGES.values(), ids=WRONG_PAGES)
def test_wrong_pages_are_refused(text: str, dsn: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    reader = Reader(page, dsn, tmp_path)
    with pytest.raises((AssertionError, SyntaxError)):
        reader.follow()


# ------------------------------------------------------------------------------------------------- links and names

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = HEADING.findall(CODE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{name_of(page)} links to {target}, and there is no such heading"


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / path).resolve() for path in LINK.findall((DOCS / "index.md").read_text()) if "#" not in path}
    assert set(PAGES) - {DOCS / "index.md"} <= linked | {ROOT / "README.md"}


def test_exactly_once_is_said_of_transactions_only() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for paragraph in re.split(r"\n\s*\n|\n(?=[|*-] )", page.read_text()):
            if re.search(r"exactly[ -]once", paragraph, re.IGNORECASE):
                assert re.search(r"transaction|commit", paragraph, re.IGNORECASE), f"{name_of(page)}: {paragraph}"


def section(page: Path, heading: str) -> str:
    """The text under a heading, up to the next heading of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", page.read_text(), re.MULTILINE)
    assert found, f"{name_of(page)} has no heading {heading!r}"
    rest = page.read_text()[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str) -> list[list[str]]:
    """The rows of the first table in a text, without its head."""
    rows = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), text.splitlines())))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_architecture_shows_the_floors() -> None:
    rows = table(section(DOCS / "architecture.md", "Floors"))
    assert {row[0]: code(row[1]) for row in rows} == test_architecture.FLOORS
    assert [row[0] for row in rows] == list(test_architecture.FLOORS), "in the same order"


# ------------------------------------------------------------------------------------------------------- the references


def commands() -> dict[str, click.Command]:
    return dict(cli.commands)


@pytest.mark.parametrize("name", commands())
def test_cli_reference_covers(name: str) -> None:
    text = section(DOCS / "reference" / "cli.md", f"`pgqueue {name}`")
    command = commands()[name]
    rows = {option: row for row in table(text) for option in code(row[0]) if option.startswith("-")}
    shown = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    options = {option: p for p in shown for option in (*p.opts, *p.secondary_opts)}
    assert set(rows) == set(options)
    for option, parameter in options.items():
        if parameter.show_default:
            assert str(parameter.default) in rows[option][1], f"{option}: the default is {parameter.default}"
        if isinstance(parameter.type, click.Choice):
            assert all(choice in rows[option][1] for choice in parameter.type.choices), option
    usage = re.search(rf"^pgqueue {name}.*$", text, re.MULTILINE)
    assert usage, "no usage line"
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            wanted = (parameter.metavar or parameter.human_readable_name.upper()).strip("[].")
            assert wanted in usage[0], f"the usage line does not say {wanted}"
            if isinstance(parameter.type, click.Choice):
                assert set(parameter.type.choices) <= set(code(CODE.sub("", text)))


def test_cli_reference_has_no_other_commands() -> None:
    text = (DOCS / "reference" / "cli.md").read_text()
    assert set(re.findall(r"^## `pgqueue (\w+)`$", text, re.MULTILINE)) == set(commands())


def test_cli_reference_has_the_exit_codes() -> None:
    from pgqueue.config import Exit

    rows = table(section(DOCS / "reference" / "cli.md", "Exit codes"))
    assert [int(row[0]) for row in rows] == [int(code) for code in Exit]


def test_python_reference_covers_all() -> None:
    text = (DOCS / "reference" / "python.md").read_text()
    headings = [code(heading)[0] for heading in HEADING.findall(CODE.sub("", text)) if code(heading)]
    listed = [code(row[0])[0] for row in table(section(DOCS / "reference" / "python.md", "Errors"))]
    assert set(pgqueue.__all__) <= {*headings, *listed}
    public = {n for n, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == errors.__name__ and n[0] != "_"}
    assert public == set(listed)


def test_python_reference_speaks_of_what_is_there() -> None:
    """A heading `Job` and below it a table with `status()`: Job has a status."""
    page = DOCS / "reference" / "python.md"
    for name in ("App", "Client", "Job", "Retry", "Queue"):
        for row in table(section(page, f"`{name}`")):
            for member in code(row[0]):
                plain = re.match(r"\w+", member)
                assert plain, member
                thing = getattr(pgqueue, name)
                parameters = inspect.signature(thing).parameters
                assert hasattr(thing, plain[0]) or plain[0] in parameters, f"{name} has no {plain[0]}"
    function = pgqueue.App().step(name="some_step")(lambda: None)
    for row in table(section(page, "Functions")):
        for member in code(row[0]):
            assert hasattr(function, member.partition("(")[0]), f"functions have no {member}"
    assert [code(row[0])[0] for row in table(section(page, "Options"))] == list(Options.__annotations__)
    arguments = table(section(page, "`App`").partition("Decorators are used")[2])
    assert {code(row[0])[0] for row in arguments} == {field.name for field in dataclasses.fields(Definition)}


def test_sql_reference_is_true(conn: psycopg.Connection[Any]) -> None:
    page = DOCS / "reference" / "sql.md"
    headings = [code(h)[0] for h in HEADING.findall(CODE.sub("", page.read_text())) if code(h)]
    views = dict(
        conn.execute("""
            SELECT c.table_name, array_agg(c.column_name::text ORDER BY c.ordinal_position)
              FROM information_schema.columns c JOIN information_schema.views v USING (table_schema, table_name)
             WHERE c.table_schema = 'pgqueue' GROUP BY 1""").fetchall()
    )
    verbs = dict(
        conn.execute(
            "SELECT proname, proargnames[:pronargs] FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace"
        ).fetchall()
    )
    assert headings
    for heading in headings:
        name = heading.removeprefix("pgqueue.")
        rows = [code(row[0])[0] for row in table(section(page, f"`{heading}`"))]
        assert name in views or name in verbs, f"there is no {heading}"
        if rows:
            assert rows == (views.get(name) or verbs[name]), heading


# ------------------------------------------------------------------------------------------------------------ docstrings

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "pgqueue").rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NOT_AS_DOCTEST])
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", pgqueue.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    thing = getattr(pgqueue, name)
    if name == "__version__":
        assert isinstance(thing, str)
        return
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        assert thing.__doc__, f"{name} has none of its own"
        for member, value in vars(thing).items():
            if not member.startswith("_") and inspect.isfunction(value):
                assert value.__doc__, f"{name}.{member} has no docstring"
