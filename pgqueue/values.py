"""Values on their way into the database and back: JSON, and what type hints say about it.

The rule: a value is accepted only if decoding what was stored gives back an equal value of the same types. Whatever does
not (a tuple that would come back as a list, NaN that would come back as null) is an error at the door, unless a type hint
says how to decode it. The code that produced a value gets the decoded copy too: a first run and a replay see the same.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from pgqueue.errors import BadValue, ValueTooLarge

MAX_ERROR = 64 * 1024
_ADVICE = "Use JSON types, or give it a type hint that says how to read it back."
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode


def check_size(data: bytes, what: str, limit: int) -> None:
    """ValueTooLarge above so many bytes."""
    if len(data) > limit:
        raise ValueTooLarge(
            f"{what} has {len(data)} bytes, the limit is {limit}. Keep large data in a table of your own and pass its key."
        )


class Codec:
    """Encodes and decodes the values of one type hint.

    >>> Codec(tuple[int, str]).encode((1, "a"), "the result")
    '[1,"a"]'
    >>> Codec(Any).encode((1, "a"), "the result")
    Traceback (most recent call last):
    pgqueue.errors.BadValue: the result would not come back unchanged from JSON: it is a tuple. Use JSON types, \
or give it a type hint that says how to read it back.
    """

    def __init__(self, hint: Any) -> None:
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Any if _unbound(hint) else hint)
        except (TypeError, NameError):  # a hint that JSON knows nothing about, such as Iterator[int]
            self._decoder = msgspec.json.Decoder(Any)

    def encode(self, value: Any, what: str, limit: int | None = None) -> str:
        """JSON text of a value. BadValue if it would not come back unchanged; ``what`` names it in the message."""
        if value is None:
            return "null"
        try:
            data = _encode(value)
            text = data.decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadValue(f"{what} cannot be stored as JSON: {_reason(error)}. {_ADVICE}") from None
        if limit is not None:
            check_size(data, what, limit)
        try:
            if "\\u0000" in text and _contains_nul(value):
                raise BadValue(f"{what} contains a NUL character, which PostgreSQL cannot store in a text")
            if not self._unchanged(value, self.decode(text, what)):
                raise BadValue(f"{what} would not come back unchanged from JSON: {_difference(value)}. {_ADVICE}")
        except RecursionError as error:
            raise BadValue(f"{what} cannot be stored as JSON: {_reason(error)}") from None
        return text

    def _unchanged(self, value: Any, read: Any) -> bool:
        return _same(value, read)

    def decode(self, text: str, what: str) -> Any:
        """The value of a stored JSON text, as the type hint says. BadValue where it does not fit."""
        try:
            return self._decoder.decode(text)
        except msgspec.ValidationError as error:
            raise BadValue(f"{what} does not fit its type: {error}") from None
        except (ValueError, TypeError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
            raise BadValue(f"{what} cannot be read: {_reason(error)}") from None


def key_text(key: object, what: str) -> str:
    """The key of an event, or the like. BadValue unless it is a text of 1 to 512 bytes."""
    if not isinstance(key, str) or "\0" in key or _LONE_SURROGATE.search(key) or not 1 <= len(key.encode()) <= 512:
        raise BadValue(f"{what} {key!r} has to be a text of 1 to 512 bytes, without NUL or half a character")
    return key


class InputCodec(Codec):
    """The input of a function: its arguments by name, checked against its parameters in one go.

    >>> def add(a: int, b: int = 2) -> int: ...
    >>> codec = InputCodec(inspect.signature(add).parameters, {"a": int, "b": int})
    >>> codec.decode('{"a": 1}', "the input")
    {'a': 1, 'b': 2}
    """

    def __init__(self, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]) -> None:
        fields: list[Any] = []
        for name, parameter in parameters.items():
            hint = hints.get(name, Any)
            hint = Any if _unbound(hint) else hint
            if parameter.default is inspect.Parameter.empty:
                fields.append((name, hint))
            else:
                fields.append((name, hint, msgspec.field(default_factory=_constant(parameter.default))))
        self._names = tuple(parameters)
        try:
            super().__init__(msgspec.defstruct("Input", fields, forbid_unknown_fields=True, kw_only=True))
        except (TypeError, NameError):
            raise TypeError("a parameter's type hint cannot be used to read stored values") from None

    def decode(self, text: str, what: str) -> dict[str, Any]:
        struct = super().decode(text, what)
        return {name: getattr(struct, name) for name in self._names}

    def _unchanged(self, value: Any, read: Any) -> bool:
        return all(_same(given, read[name]) for name, given in value.items())  # the others have their defaults


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _unbound(hint: Any) -> bool:
    return hint is inspect.Parameter.empty or isinstance(hint, (str, TypeVar))


def _reason(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__


def _same(given: Any, read: Any) -> bool:
    """Equal, with equal types all the way down (== alone says that True is 1). An int may come back as the float it equals."""
    kind = type(given)
    if kind is not type(read):
        return kind is int and type(read) is float and given == read
    if kind is float:
        return bool(given == read) and math.copysign(1, given) == math.copysign(1, read)
    if kind is list or kind is tuple:
        return len(given) == len(read) and all(map(_same, given, read))
    if kind is dict:
        return len(given) == len(read) and all(k in read and _same(v, read[k]) for k, v in given.items())
    return bool(given == read)


def _difference(value: Any, path: str = "it") -> str:
    """Which part of a value JSON would change, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}"
    if type(value) is dict:
        for key, inner in value.items():
            if type(key) is not str:
                return f"{path} has the key {key!r}, which is not a string"
            if not _plain(inner):
                return _difference(inner, f"{path}[{key!r}]")
    if type(value) is list:
        for index, inner in enumerate(value):
            if not _plain(inner):
                return _difference(inner, f"{path}[{index}]")
    return f"{path} is a {type(value).__name__}"


def _plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _plain(inner) for key, inner in value.items())
    if type(value) is list:
        return all(map(_plain, value))
    return type(value) in (str, int, bool, type(None)) or (type(value) is float and math.isfinite(value))


def _contains_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(map(_contains_nul, value)) or any(map(_contains_nul, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_contains_nul, value))
    return not isinstance(value, (int, float, type(None))) and "\\x00" in repr(value)


def clean(value: Any) -> Any:
    """A value whose texts hold nothing that PostgreSQL cannot store: NUL and lone surrogates become U+FFFD.

    For results and errors: the run has happened, and recording it must not fail.
    """
    if type(value) is str:
        return _LONE_SURROGATE.sub("\ufffd", value.replace("\0", "\ufffd"))
    if type(value) is dict:
        return {clean(key): clean(inner) for key, inner in value.items()}
    if type(value) is list:
        return [clean(inner) for inner in value]
    return value


def error_text(type_name: str, message: str, traceback: str = "") -> str:
    """The description of an error as it is stored. Never fails: what cannot be stored is replaced, what is long is cut."""

    def fit(text: str, limit: int) -> str:
        text = clean(str(text))
        return text if len(text) <= limit else f"{text[: limit // 2]} … (cut) … {text[-limit // 2 :]}"

    return _encode(
        {"type": fit(type_name, 200), "message": fit(message, MAX_ERROR // 8), "traceback": fit(traceback, MAX_ERROR // 8)}
    ).decode()


def read_error(text: str | None) -> dict[str, Any]:
    """The description of an error that was stored; never fails."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"type": "Exception", "message": str(text)}
