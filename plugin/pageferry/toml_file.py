"""Reads a site's TOML file into structs, and says of every fault where it is: file, line, key and value.

tomllib reads the text to plain data, msgspec turns the data into frozen structs and refuses what does not fit. Which
keys there are is the structs' business.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from types import NoneType
from typing import Any, TypeVar, get_args

import msgspec

from pageferry.kernel.files import printable, shown
from pageferry.toml_lines import Key, key_lines, line_of

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SHOWN_CHARACTERS = 60
_MOST_DEPTH = 16

MOST_FAULTS = 50
"""Of one file: with more of them it is left at that, since each costs another look at the whole file."""

_MOST_PARTS = 64
_LONG_KEY = re.compile(
    rf"""(?m)(?:^|[\[{{,])[ \t]*+(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{_MOST_PARTS}}}"""
)
"""Of a key of thousands of parts, tomllib looks at all for each."""

_FAULTY = object()
"""Stands for a value with a fault, where there must be one."""

Kind = TypeVar("Kind", bound=msgspec.Struct)


class Bytes(int):
    """A number of bytes: a number, or text such as "512M" (K, M, G, T: powers of 1024)."""

    least = 0

    @classmethod
    def parse(cls, value: object) -> Bytes:
        """Return the bytes that a file's value means. Raises ValueError, which says what would be right."""
        match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", str(value)) if isinstance(value, int | str) else None
        if match is None:
            raise ValueError('expected bytes, such as "512M"')
        count = int(match[1]) << _UNITS[match[2]]
        if not cls.least <= count < 1 << 63:
            raise ValueError(f"expected at least {cls.least} bytes and less than 2^63")
        return cls(count)


def parse(raw: bytes, name: str, kind: type[Kind]) -> tuple[Kind | None, list[str]]:
    """Return what a file's bytes mean as `kind`, and every fault, one line each, in the file's order.

    A key with a fault has its default in the result. None: the text is not TOML, or lacks a key that has no default.
    """
    data, faults = read(raw, name, kind)
    return None if data is None else convert(data, kind), faults


def read(
    raw: bytes, name: str, kind: type[Kind], check: Callable[[Kind], Iterable[tuple[Key, str]]] = lambda _value: ()
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the plain data of a file's bytes, without what cannot be converted to `kind`, and every fault.

    `check` yields what is wrong beyond single values, by key. Of more than MOST_FAULTS faults, those that are found
    first are told, and there is no data. Else as `parse`.
    """
    name = printable(name)
    try:
        text = raw.decode().replace("\r\n", "\n")
        if long := _LONG_KEY.search(text):
            return None, [f"{name}:{_lines(text[: long.start()].encode())}: a key of more than {_MOST_PARTS} parts"]
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        return None, [f"{name}:{_lines(raw[: error.start])}: not UTF-8"]
    except (ValueError, RecursionError) as error:
        return None, [_syntax_fault(error, raw, name)]
    if (odd := _beyond_toml(data)) is not None:
        return None, [f"{name}: {_dotted((odd[0],))}: {odd[1]}"]
    faults: list[tuple[int, str]] = []
    lines = cache(lambda: key_lines(text))

    def found(key: Key, what: str) -> None:
        line = line_of(lines(), key)
        faults.append((line, f"{name}:{line}: {_dotted(key)} = {_shown(_value(data, key))}: {what}"))

    converted: Kind | None = None
    while converted is None and len(faults) <= MOST_FAULTS:
        try:
            converted = convert(data, kind)
        except msgspec.ValidationError as error:
            key, what = _explained(str(error), kind)
            if not _has(data, key):  # an unknown key that looks like msgspec's own text
                faults.append((1, f"{name}: {shown(str(error), 2 * _SHOWN_CHARACTERS)}"))
                break
            found(key, what)
            _drop(data, key, what, kind)
        else:
            for key, what in islice(check(converted), MOST_FAULTS + 1 - len(faults)):
                found(key, what)
    told = [fault for _, fault in sorted(faults[:MOST_FAULTS])]
    if len(faults) > MOST_FAULTS:
        return None, [*told, f"{name}: more faults than these {MOST_FAULTS}"]
    return None if converted is None else data, told


def convert(data: dict[str, Any], kind: type[Kind]) -> Kind:
    """Return what plain data means as `kind`. Raises msgspec.ValidationError for the first fault."""
    return msgspec.convert(data, kind, dec_hook=_decoded)


def _decoded(kind: type, value: object) -> object:
    parse_value = getattr(kind, "parse", None)
    if parse_value is None:
        raise NotImplementedError(kind)  # a field of a type that nobody reads: a fault of this file, not of the site's
    return kind() if value is _FAULTY else parse_value(value)


def _beyond_toml(data: dict[str, Any]) -> tuple[str, str] | None:
    """Return the first key with a value that no setting can have, and why; None: there is none.

    TOML's numbers have 64 bits, which tomllib does not ask for; what is nested deep ends in Python's own limits.
    """
    values = list(data.items())
    for _ in range(_MOST_DEPTH):
        for key, value in values:
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                return key, "a number of more than 64 bits"
        values = [
            (key, part)
            for key, value in values
            if isinstance(value, list | dict)
            for part in (value if isinstance(value, list) else value.values())
        ]
    return (values[0][0], "tables or lists nested too deeply") if values else None


def _syntax_fault(error: Exception, raw: bytes, name: str) -> str:
    if not isinstance(error, tomllib.TOMLDecodeError):  # int() refuses thousands of digits; brackets go too deep
        return f"{name}: a number is too long, or a list nested too deeply"
    text = str(error)
    place = re.search(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$", text)
    if place is None:
        return f"{name}: {shown(text, 2 * _SHOWN_CHARACTERS)}"
    what = shown(text[: place.start()], 2 * _SHOWN_CHARACTERS)
    if place[1] is None:
        return f"{name}:{_lines(raw)}: {what} at the end of the file"
    return f"{name}:{place[1]}: {what} (column {place[2]})"


def _lines(raw: bytes) -> int:
    return raw.count(b"\n") + 1


def _explained(message: str, kind: type) -> tuple[Key, str]:
    """Return the key and the fault of msgspec's message, in a TOML writer's words."""
    place = re.search(r" - at `\$([^`]*)`$", message)
    what, path = (message[: place.start()], place[1]) if place else (message, "")
    key: Key = tuple(int(number) if number else word for word, number in re.findall(r"\.(\w+)|\[([0-9]+)\]", path))
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown is not None:
        known = ", ".join(field.name for field in msgspec.structs.fields(_type(kind, key)))
        return (*key, unknown[1]), f"unknown key; there are {known}"
    if what.startswith("Invalid enum value"):
        return key, "expected one of " + ", ".join(get_args(_type(kind, key)))
    what = what.replace("`object`", "`table`").replace(" | null", "").replace("`", "")
    return key, what[:1].lower() + what[1:]


def _type(kind: Any, key: Key) -> Any:
    """Return the type of a known key below `kind`: limits and None taken off."""
    for step in key:
        if isinstance(step, int):
            kind = get_args(kind)[0]
        else:
            kind = next(field.type for field in msgspec.structs.fields(kind) if field.name == step)
        kind = bare(kind)
    return kind


def bare(kind: Any) -> Any:
    """Return a field's type without limits (Annotated) and None."""
    while True:
        if hasattr(kind, "__metadata__"):
            kind = kind.__origin__
        elif NoneType in get_args(kind):
            kind = next(part for part in get_args(kind) if part is not NoneType)
        else:
            return kind


def _is_needed(kind: type, key: Key) -> bool:
    fields = {field.name: field for field in msgspec.structs.fields(_type(kind, key[:-1]))}
    field = fields.get(str(key[-1]))
    return field is not None and field.required and hasattr(bare(field.type), "parse")


def _value(data: Any, key: Key) -> Any:
    for step in key:
        data = data[step]
    return data


def _has(data: Any, key: Key) -> bool:
    try:
        _value(data, key)
    except (KeyError, IndexError, TypeError):
        return False
    return bool(key)


def _drop(data: dict[str, Any], key: Key, what: str, kind: type) -> None:
    """Take a faulty key out, so that the next fault shows; a member of a list goes with its list.

    A key of a type of our own that must be there is marked instead: that it is not there is no further fault.
    """
    missing = re.fullmatch(r"object missing required field (\w+)", what)
    needed = (*key, missing[1]) if missing is not None else key
    if hasattr(_type(kind, needed[:-1]), "__struct_fields__") and _is_needed(kind, needed):
        _value(data, needed[:-1])[needed[-1]] = _FAULTY
        return
    while isinstance(key[-1], int):
        key = key[:-1]
    del _value(data, key[:-1])[key[-1]]


def _dotted(key: Key) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key).removeprefix(".")
    return shown(text, _SHOWN_CHARACTERS)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else "{...}" if isinstance(value, dict) else str(value)
    return shown(text, _SHOWN_CHARACTERS)
