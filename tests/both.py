"""Runs the tests of a module twice: as they are written, and with the jobs in them as ``async def``.

    colour, pytest_generate_tests = both.colour, both.pytest_generate_tests       # that is all that a module says

The tests are written with ``def``. For the other half the module is compiled a second time, changed: functions that a decorator
of the App makes a step, transaction or workflow, and functions that take the connection of one (a parameter ``tx``), become
coroutines, which await whatever they call, if it can be awaited. The rest of a test (enqueue, drain, look) stays as it is.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

COLOURS = ["def", "async def"]
DECORATORS = {"workflow", "step", "transaction"}
TWINS = {"enqueue", "enqueue_many", "send_event"}
DURABLE = {"sleep", "sleep_until", "wait_event", "receive", "gather", "patched"}
AWAITED = "awaited"
F = TypeVar("F", bound=Callable[..., Any])


def def_only(reason: str) -> Callable[[F], F]:
    """A test that has no ``async def`` half, and why not."""
    assert reason
    return lambda test: setattr(test, "def_only", reason) or test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """To be found by pytest in the module of the tests."""
    metafunc.parametrize("colour", COLOURS[:1] if hasattr(metafunc.function, "def_only") else COLOURS, indirect=True)


@pytest.fixture(autouse=True)
def colour(request: pytest.FixtureRequest) -> str:
    """Which half this is. Puts the changed test in place of the one that is written."""
    if request.param == "async def":
        request.node.obj = _changed(request.module)[request.function.__name__]
    return str(request.param)


@cache
def _changed(module: ModuleType) -> dict[str, Any]:
    """What the module would define if its jobs were written with ``async def``."""
    path = inspect.getfile(module)
    tree = ast.fix_missing_locations(_ToAsync().visit(ast.parse(Path(path).read_text())))
    namespace = {"__name__": module.__name__, "__file__": path, AWAITED: awaited}
    exec(compile(tree, path, "exec"), namespace)
    return namespace


async def awaited(value: Any) -> Any:
    """What ``await`` would give, or the value itself."""
    return await value if inspect.isawaitable(value) else value


class _ToAsync(ast.NodeTransformer):
    """Makes the functions of jobs coroutines."""

    def __init__(self) -> None:
        self._inside = False  # the body of a job

    def visit_FunctionDef(self, function: ast.FunctionDef) -> ast.AST:
        outer, self._inside = self._inside, _is_job(function)
        function.body = [self.visit(statement) for statement in function.body]
        changed: ast.AST = function
        if self._inside:
            for parameter in function.args.args:
                parameter.annotation = parameter.annotation and _AsyncNames().visit(parameter.annotation)
            changed = ast.AsyncFunctionDef(**{field: getattr(function, field) for field in function._fields})
        self._inside = outer
        return ast.copy_location(changed, function)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node  # what it returns is awaited by whoever calls it

    def visit_Call(self, call: ast.Call) -> ast.AST:
        self.generic_visit(call)
        if not self._inside:
            return call
        if isinstance(call.func, ast.Attribute) and (call.func.attr in TWINS or _root(call.func) == "stream"):
            call.func.attr = "a" + call.func.attr
        if isinstance(call.func, ast.Name) and call.func.id in DURABLE:
            call.func = ast.Attribute(call.func, "aio", ast.Load())
        value = ast.Call(ast.Name(AWAITED, ast.Load()), [call], [])
        return ast.copy_location(ast.Await(value), call)

    def visit_With(self, block: ast.With) -> ast.AST:
        is_async = self._inside and all(_root(item.context_expr) in ("tx", "cursor") for item in block.items)
        if not is_async:
            return self.generic_visit(block)
        block.body = [self.visit(statement) for statement in block.body]
        return ast.copy_location(ast.AsyncWith(block.items, block.body), block)


class _AsyncNames(ast.NodeTransformer):
    """psycopg.Connection -> psycopg.AsyncConnection"""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr == "Connection":
            node.attr = "AsyncConnection"
        return node


def _is_job(function: ast.FunctionDef) -> bool:
    decorated = any(
        isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) and d.func.attr in DECORATORS
        for d in function.decorator_list
    )
    return decorated or any(parameter.arg == "tx" for parameter in function.args.args)


def _root(expression: ast.expr) -> str:
    """The name at the left end of ``name.attribute(...).other(...)``."""
    while isinstance(expression, ast.Call | ast.Attribute):
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return expression.id if isinstance(expression, ast.Name) else ""
