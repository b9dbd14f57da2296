"""Puts plain text into the man(7) macros, so that no character of it is taken for one of roff's own.

Sources: man(7), groff_char(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pageferry import __version__

_CHARACTERS = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq"}


def escaped(text: str) -> str:
    """Return text as roff prints it, on one line."""
    line = "".join(_CHARACTERS.get(character, character) for character in " ".join(text.split()))
    return f"\\&{line}" if line.startswith(".") else line


def prose(text: str) -> str:
    """Return a paragraph, with what stands in `backticks` in bold."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    marked = [
        f"\\fB{escaped_within(part)}\\fR" if number % 2 else escaped_within(part) for number, part in enumerate(parts)
    ]
    line = "".join(marked)
    return f"\\&{line}" if line.startswith(".") else line


def escaped_within(text: str) -> str:
    """Return text as roff prints it within a line: blanks at its ends stay."""
    return "".join(_CHARACTERS.get(character, character) for character in text)


def page(name: str, section: int, summary: str, sections: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Return a page: its title, NAME, and sections of lines that are roff already."""
    lines = [
        f'.TH "{escaped(name.upper())}" {section} "" "pageferry {escaped(__version__)}" "pageferry"',
        ".SH NAME",
        f"{escaped(name)} \\- {prose(summary)}",
    ]
    for title, body in sections:
        if text := list(body):
            lines += [f".SH {escaped(title)}", *text]
    return "\n".join(lines) + "\n"


def paragraphs(text: str) -> list[str]:
    """Return a text whose paragraphs are parted by empty lines."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines += [".PP", prose(paragraph)]
    return lines[1:]  # the heading above begins the first


def items(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return a list of terms, in bold, each with what it means."""
    lines: list[str] = []
    for term, meaning in found:
        lines += [".TP", f"\\fB{escaped(term)}\\fR", prose(meaning) or "\\&"]
    return lines


def references(names: Iterable[tuple[str, int]]) -> list[str]:
    """Return a line of other pages."""
    return [", ".join(f"\\fB{escaped(name)}\\fR({section})" for name, section in names)]
