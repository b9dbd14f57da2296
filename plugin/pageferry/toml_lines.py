"""Says on which line of a TOML text a key is given, which tomllib does not tell.

The text is cut into its statements, and each is read alone by tomllib, once: that takes as long as the text is, however
many keys are asked for. The text is one that tomllib has read as a whole.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Key = tuple[str | int, ...]
"""The way to a value: names of tables and keys, and the numbers of list members."""

_MOST_STEPS = 16
"""Of a key. No setting lies deeper, and without a limit a key of thousands of parts would be copied for each part."""

# What may hold a line end that ends no statement, or may look as if it did: strings, comments and brackets.
_TOKEN = re.compile(
    r'''"""(?:[^"\\]|\\.|""?(?!"))*"{3,5}|\'\'\'(?:[^']|''?(?!'))*'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|'''
    r"#[^\n]*|[\[\]{}\n]",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Key, int]:
    """Return the line (from 1) on which the statement begins that first gives a key, for all keys of a TOML text.

    What a value holds (members of a list, keys of a table in braces) is on the line of its statement: see `line_of`.
    """
    lines: dict[Key, int] = {(): 1}
    last: dict[Key, int] = {}  # of each array of tables, the number of the table that was begun last
    table: Key = ()
    for line, statement in _statements(text):
        said = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = _begun(said, last, lines, line)
        else:
            _note(table, said, lines, line)
    return lines


def line_of(lines: Mapping[Key, int], key: Key) -> int:
    """Return the line of a key, from those of all: that of the innermost value around it that a statement gives."""
    while key not in lines:
        key = key[:-1]
    return lines[key]


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the statements, each with its first line; lines without one are statements that say nothing."""
    begin, first, line, depth = 0, 1, 1, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
            case "\n" if depth == 0:
                yield first, text[begin : token.end()]
                begin, first = token.end(), line + 1
        line += token[0].count("\n")
    yield first, text[begin:]


def _begun(said: dict[str, Any], last: dict[Key, int], lines: dict[Key, int], line: int) -> Key:
    """Take note of the header of a table, or of the next one of an array of tables; return its key."""
    key: Key = ()
    value: Any = said
    while isinstance(value, dict) and value and len(key) < _MOST_STEPS:
        ((name, value),) = value.items()
        key = (*key, name)
        lines.setdefault(key, line)
        if isinstance(value, list):
            last[key] = last.get(key, -1) + 1
        if key in last:
            key = (*key, last[key])
            lines.setdefault(key, line)
    return key


def _note(table: Key, said: dict[str, Any], lines: dict[Key, int], line: int) -> None:
    for name, value in said.items():
        key = (*table, name)
        lines.setdefault(key, line)
        if isinstance(value, dict) and len(key) < _MOST_STEPS:
            _note(key, value, lines, line)
