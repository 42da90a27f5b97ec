"""Errors of user code, described so that they can be stored and read by people."""

from __future__ import annotations

import os
import traceback
from typing import Any

import msgspec
import psycopg

from pgqueue.errors import JobCancelled, JobFailed, StepFailed
from pgqueue.values import error_text

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep


def describe(error: BaseException) -> str:
    """The error as JSON text: its type, message, and the user's part of the traceback. Never fails."""
    return error_text(type(error).__qualname__, _message(error), _traceback(error))


def _message(error: BaseException) -> str:
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary  # without DETAIL, which quotes whole rows
    try:
        return str(error)
    except Exception:  # noqa: BLE001 -- a __str__ of the user's
        return f"(no message: str() of this {type(error).__qualname__} fails)"


def _traceback(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__, limit=-40) if not f.filename.startswith(_OURS)]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    text = "".join(traceback.format_list(frames))
    if cause is not None and not isinstance(cause, StepFailed):
        text += f"caused by {type(cause).__qualname__}: {_message(cause)[:500]}\n"
    return text


def failed_steps(error: BaseException) -> list[int]:
    """The steps whose error this is, also through ``raise ... from``, and of a group all: what a requeue has to run again. Not
    those that were handled when this one failed."""
    return sorted(_failed(error, set()))


def _failed(error: BaseException | None, seen: set[int]) -> set[int]:
    if error is None or id(error) in seen:
        return set()
    seen.add(id(error))
    if isinstance(error, (StepFailed, JobFailed, JobCancelled)) and error.seq is not None:
        return {error.seq}
    if isinstance(error, BaseExceptionGroup):
        return set().union(*(_failed(inner, seen) for inner in error.exceptions))
    return _failed(error.__cause__ or error.__context__, seen)


def described(error: BaseException) -> dict[str, Any]:
    """An error as an entry of the errors of a settlement."""
    return {"error": msgspec.Raw(describe(error).encode())}
