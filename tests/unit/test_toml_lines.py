"""What must hold of the lines of keys: each is found where its statement begins, however the text is written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from pageferry.toml_lines import Key, key_lines, line_of

STATEMENTS = st.one_of(
    st.sampled_from(["", "# a = 1", "  "]),
    st.builds(
        lambda name, value: f"{name} = {value}",
        st.sampled_from(["{}", "t{}.x", '"q{}"']),
        st.sampled_from(["1", '"""\nv1 = 2\n[z]\n"""', "[\n 1, # ]\n 2\n]", "{ i = 1 }", "'''\n\n'''"]),
    ),
)


@given(st.lists(STATEMENTS, max_size=20))
def test_the_line_of_a_key_is_where_its_statement_begins(statements: list[str]) -> None:
    text, starts = "[top]\n", {}
    for number, statement in enumerate(statements):
        name = f"v{number}"
        if "{}" in statement:
            path = {"{}": (name,), "t{}.x": (f"t{name}", "x"), '"q{}"': (f"q{name}",)}[statement.partition(" = ")[0]]
            starts["top", *path] = text.count("\n") + 1
        text += statement.replace("{}", name) + "\n"
    for key, line in starts.items():
        assert line_of(key_lines(text), key) == line
    assert line_of(key_lines(text), ("top",)) == 1


def test_the_line_of_a_key_in_a_long_file_is_found_at_once() -> None:
    text = "".join(f"[t{number}]\nx = {number}\n" for number in range(5000))
    assert line_of(key_lines(text), ("t4321", "x")) == 2 * 4321 + 2


def keys(data: Any, key: Key = ()) -> Iterator[Key]:
    yield key
    for step, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from keys(value, (*key, step))


def has(data: Any, key: Key) -> bool:
    try:
        for step in key:
            data = data[step]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def first_line(text: str, key: Key) -> int:
    """Return the line of a key by trying: a text up to the end of any statement is valid, and no other beginning is."""
    lines, begins = text.split("\n"), 1
    for count in range(1, len(lines) + 1):
        try:
            data = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        if has(data, key):
            return begins
        begins = count + 1
    raise AssertionError(key)


NAMES = st.sampled_from(["a", "b", "rule", '"q # ["', "'l \"'", '"\\""', "1"])
DOTTED = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
STRINGS = st.sampled_from(
    [
        '"]"',
        "'['",
        '"\\"["',
        "'\\'",
        '"""\n[x]\n"""',
        '"""a""\n"" b\\""""""',
        '""""""',
        "'''\n{\n'''''",
        "''''''",
        '"# no comment"',
        '"""\\\n  \n x"""""',
    ]
)
VALUES = st.recursive(
    STRINGS | st.sampled_from(["1", "true", "1979-05-27 07:32:00", "inf"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda members: "[\n # ]\n" + ",\n".join(members) + "\n]")
        | st.lists(st.tuples(NAMES, inner.filter(lambda value: "\n" not in value)), max_size=2).map(
            lambda pairs: "{" + ", ".join(f"{name} = {value}" for name, value in pairs) + "}"
        )
    ),
    max_leaves=4,
)
LINES = st.one_of(
    st.tuples(DOTTED, VALUES).map(" = ".join),
    DOTTED.map("[{}]".format),
    DOTTED.map(" [[ {} ]] # [".format),
    st.sampled_from(["", "# [a]", "\t# '", "[[rule]]", "[rule.match]"]),
)


@given(st.lists(LINES, max_size=12))
@example(["[[a]]", "[[a.b]]", "x = 1", "[[a]]", "[a.b]", "x = 1"])
@example(["[a.b.c]", "[a]", "x = 1", "[a.b]", "y = 2"])
def test_the_line_of_any_key_is_that_of_the_statement_that_gives_it_first(lines: list[str]) -> None:
    kept: list[str] = []
    for line in lines:  # what contradicts the lines before it is left out
        try:
            tomllib.loads("\n".join([*kept, line]))
        except tomllib.TOMLDecodeError:
            continue
        kept.append(line)
    text = "\n".join(kept)
    found = key_lines(text)
    for key in keys(tomllib.loads(text)):
        if key:
            assert line_of(found, key) == first_line(text, key), (text, key)


def test_a_key_of_thousands_of_parts_takes_no_longer_than_the_text() -> None:
    found = key_lines(".".join("a" * 3000) + " = 1\n")
    assert sum(map(len, found)) < 1000
