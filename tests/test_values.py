"""The value rule, by property: what is accepted comes back equal and of the same types, everything else is refused."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.errors import BadValue, ValueTooLarge
from pgqueue.values import MAX_ERROR, Codec, clean, error_text, read_error

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | plain_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(plain_text, inner, max_size=5),
    max_leaves=20,
)
wild = st.recursive(
    json_values
    | st.text()
    | st.floats()
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.just(object())
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text() | st.none(), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=10,
)


def identical(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    return bool(a == b)


@given(json_values)
def test_json_comes_back(value: Any) -> None:
    try:
        text = Codec(Any).encode(value, "it")
    except BadValue as error:
        assert "Integer value out of range" in str(error)  # noqa: PT017 -- the one thing that JSON could and this cannot
        return
    assert identical(Codec(Any).decode(text, "it"), value)


@settings(max_examples=500)
@given(wild)
def test_what_is_accepted_comes_back_and_the_rest_is_refused(value: Any) -> None:
    try:
        text = Codec(Any).encode(value, "it")
    except BadValue:
        return
    assert identical(Codec(Any).decode(text, "it"), value)


@pytest.mark.parametrize(
    ("hint", "strategy"),
    [
        (datetime, st.datetimes()), (date, st.dates()), (timedelta, st.timedeltas()),
        (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
        (UUID, st.uuids()), (bytes, st.binary()), (tuple[int, str], st.tuples(st.integers(-(2**62), 2**62), plain_text)),
        (set[int], st.sets(st.integers(-(2**62), 2**62))),
        (dict[int, str], st.dictionaries(st.integers(-(2**62), 2**62), plain_text)),
        (int | None, st.none() | st.integers(-(2**62), 2**62)),
        (list[tuple[str, ...]], st.lists(st.lists(plain_text).map(tuple))),
    ],
)  # fmt: skip
def test_hints_say_how_to_read_back(hint: Any, strategy: st.SearchStrategy[Any]) -> None:
    codec = Codec(hint)

    @given(strategy)
    def check(value: Any) -> None:
        assert codec.decode(codec.encode(value, "it"), "it") == value

    check()


@given(st.text(), st.text(), st.text())
def test_describing_an_error_never_fails(kind: str, message: str, traceback: str) -> None:
    text = error_text(kind, message, traceback)
    assert "\0" not in text
    assert "\\u0000" not in text.replace("\\\\", "")
    assert set(read_error(text)) == {"type", "message", "traceback"}


def test_long_errors_are_cut() -> None:
    assert len(error_text("E", "é" * 10**6, "t" * 10**6).encode()) <= MAX_ERROR


@given(wild)
def test_clean_leaves_nothing_that_cannot_be_stored(value: Any) -> None:
    cleaned = clean(value)
    if isinstance(cleaned, str):
        cleaned.encode()
        assert "\0" not in cleaned


def test_numbers_at_the_edges() -> None:
    codec = Codec(Any)
    for value in (1e16, -0.0, 2**64 - 1, -(2**63), 5e-324, 1.7976931348623157e308):
        assert identical(codec.decode(codec.encode(value, "it"), "it"), value)
    for value in (math.nan, math.inf, -math.inf, 10**5000):
        with pytest.raises(BadValue):
            codec.encode([value], "it")
    assert Codec(float).decode(Codec(float).encode(1, "it"), "it") == 1.0


def test_size_limit() -> None:
    with pytest.raises(ValueTooLarge, match="the limit is 10"):
        Codec(Any).encode("x" * 100, "it", limit=10)


def test_the_message_says_where() -> None:
    with pytest.raises(BadValue, match=r"it\['a'\]\[1\] is a tuple"):
        Codec(Any).encode({"a": [1, (2, 3)]}, "it")
