"""The manual page of the settings and their sample file, from the structs that read them.

What a setting means stands in its struct (`pageferry.config`): its description, its limits, its default.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as structs

from manual.roff import items, page, paragraphs, references
from pageferry.toml_file import Bytes

_COLUMNS = 100
_UNITS = ((40, "T"), (30, "G"), (20, "M"), (10, "K"))
_DESCRIPTION = """
`/etc/pageferry/pageferry.toml` has the settings of pageferry on this host, in TOML, and after it each
`/etc/pageferry/policy.d/*.toml`, by name: a key that comes later takes the place of an earlier one, and so does a rule
of the same name. Where PAGEFERRY_CONFIG or `--config` names another file, it is read instead, with the `policy.d`
beside that one. A file that is not there is all defaults. The agent reads them when it starts, and again at
`systemctl reload pageferry`. A fault (an unknown key, too) keeps the agent from starting, and at a reload from using
any of what is new; `pageferry check-config` names each with file, line, key and value.

Sizes are bytes, or text such as "512M" (K, M, G, T: powers of 1024).
"""


@dataclass(frozen=True, slots=True)
class Key:
    """A setting: what it is for, what it may be ("" if its type says all), and its default in TOML; None: none."""

    name: str
    meaning: str
    limits: str
    default: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the file; `repeated`: an array of tables, none by default."""

    name: str
    meaning: str
    repeated: bool
    keys: tuple[Key, ...]

    @property
    def head(self) -> str:
        """The line that begins it."""
        return f"[[{self.name}]]" if self.repeated else f"[{self.name}]"


def pages(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the page about the settings, by file name."""
    sections = [
        (
            "DESCRIPTION",
            paragraphs(_DESCRIPTION),
        )
    ]
    for table in tables(kind):
        said = [(key.name, " ".join([*_said(key), *_more(key)])) for key in table.keys]
        sections.append((table.head, [*paragraphs(_sentence(table.meaning)), *items(said)]))
    sections.append(("SEE ALSO", references([("pageferry", 8), ("pageferry-agent", 8)])))
    summary = "settings of pageferry on a host"
    return {"man5/pageferry.toml.5": page("pageferry.toml", 5, summary, sections)}


def sample(kind: type[msgspec.Struct]) -> str:
    """Return a settings file that has every key with its default, as a comment. Rules have files of their own."""
    lines = [
        "# The settings of pageferry on this host: see pageferry.toml(5). A key that is a comment has the default that",
        "# stands there. The agent reads this file again at systemctl reload pageferry, which checks it first. Rules",
        "# for some jobs go to policy.d/*.toml beside it: /usr/share/doc/pageferry has examples, and all they may say.",
    ]
    found = list(tables(kind))
    several = tuple(f"{table.name}." for table in found if table.repeated)
    for table in found:
        if f"{table.name}.".startswith(several):
            continue
        lines += ["", *_comment(_sentence(table.meaning)), table.head]
        for key in table.keys:
            lines += _comment(" ".join([*_said(key), *([f"({key.limits})"] if key.limits else [])]))
            lines.append(f"#{key.name} = {key.default}" if key.default is not None else f"# {key.name}: not set")
    return "\n".join(lines) + "\n"


def tables(kind: type[msgspec.Struct], above: str = "") -> Iterator[Table]:
    """Yield the tables of a struct, in its order."""
    info = structs.type_info(kind)
    assert isinstance(info, structs.StructType)
    for field in info.fields:
        inner, repeated = _struct(field.type)
        if inner is None:
            continue
        name = above + field.encode_name
        meaning = re.sub(r"^`\[[^`]*`: ", "", " ".join((inner.__doc__ or "").split()))
        below = structs.type_info(inner)
        assert isinstance(below, structs.StructType)
        keys = tuple(_key(one) for one in below.fields if _struct(one.type)[0] is None)
        yield Table(name, meaning, repeated, keys)
        yield from tables(inner, f"{name}.")


def _struct(kind: structs.Type) -> tuple[type[msgspec.Struct] | None, bool]:
    """Return the struct that a field is a table of, and whether it is one of many."""
    kind, _ = _plain(kind)
    if isinstance(kind, structs.StructType):
        return kind.cls, False
    if isinstance(kind, structs.ListType | structs.VarTupleType):
        return _struct(kind.item_type)[0], True
    return None, False


def _key(field: structs.Field) -> Key:
    kind, description = _plain(field.type)
    default = field.default if field.default is not msgspec.NODEFAULT else None
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return Key(field.encode_name, description, _limits(kind), _toml(default))


def _plain(kind: structs.Type) -> tuple[structs.Type, str]:
    """Return a type without its wrapping, and the description that was found on the way."""
    description = ""
    while True:
        if isinstance(kind, structs.Metadata):
            description = description or (kind.extra_json_schema or {}).get("description", "")
            kind = kind.type
        elif isinstance(kind, structs.UnionType):
            some = [one for one in kind.types if not isinstance(one, structs.NoneType)]
            if len(some) != 1:
                return kind, description
            (kind,) = some
        else:
            return kind, description


def _limits(kind: structs.Type) -> str:
    if isinstance(kind, structs.LiteralType):
        return "one of " + ", ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, structs.CustomType) and issubclass(kind.cls, Bytes) and kind.cls.least:
        return f"at least {_toml(Bytes(kind.cls.least))}"
    if isinstance(kind, structs.IntType | structs.FloatType):
        said = [("more than", kind.gt), ("at least", kind.ge), ("less than", kind.lt), ("at most", kind.le)]
        return ", ".join(f"{word} {limit}" for word, limit in said if limit is not None)
    return ""


def _toml(value: Any) -> str | None:
    """Return a value as TOML has it; None for one that it has not."""
    if value is None:
        return None
    if isinstance(value, Bytes):
        shift, unit = next(((shift, unit) for shift, unit in _UNITS if value and not value % (1 << shift)), (0, ""))
        return f'"{value >> shift}{unit}"' if unit else str(int(value))
    if isinstance(value, list | tuple | frozenset):
        return (
            "[" + ", ".join(str(_toml(one)) for one in (sorted(value) if isinstance(value, frozenset) else value)) + "]"
        )
    return json.dumps(value)


def _said(key: Key) -> list[str]:
    """Return what a key is for; one that says nothing is its table's."""
    return [key.meaning] if key.meaning else []


def _more(key: Key) -> Iterator[str]:
    if key.limits:
        yield _sentence(key.limits)
    yield f"Default: {key.default}." if key.default is not None else "Not set by default."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _COLUMNS)]
