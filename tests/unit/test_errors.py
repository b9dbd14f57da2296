"""What must hold of each text that pageferry says: one line, of a length that has an end, in any encoding."""

from __future__ import annotations

import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry import wire
from pageferry.cli import site
from pageferry.cli.says import complain
from pageferry.errors import MOST_CHARACTERS, ConfigError, KernelError, PageferryError, UsageError, one_line, shown
from pageferry.kernel import files

KIB_70 = 70 * 1024
any_text = st.text(st.characters(), max_size=200)
"""Lone surrogates are among it."""


def is_one_line(text: str) -> bool:
    return text.isprintable() and bool(text.encode("utf-8") or not text)


@given(any_text)
@example("\ud800\udfff\udc80\n\r\x1b\u2028\u202e\0")
def test_any_text_becomes_one_line(text: str) -> None:
    assert is_one_line(one_line(text))
    assert one_line(one_line(text)) == one_line(text)
    assert is_one_line(str(PageferryError(text)))


@given(st.binary(max_size=200), st.integers(4, 100))
def test_any_bytes_become_one_line(raw: bytes, most: int) -> None:
    assert is_one_line(files.printable(raw))
    assert files.printable(raw) == files.printable(raw.decode("utf-8", "surrogateescape"))
    assert len(files.shown(raw, most)) <= most


@given(any_text, st.integers(4, 100))
def test_what_is_cut_says_so(text: str, most: int) -> None:
    said = shown(text, most)
    assert len(said) <= most
    assert said == one_line(text) or said.endswith("...")


def test_what_stands_for_a_byte_is_shown_as_that_byte() -> None:
    assert one_line("a\udcff\ud800\n") == r"a\xff\ud800\n"
    assert files.printable(b"a\xff\xed\xa0\x80\n") == r"a\xff\xed\xa0\x80\n"


@pytest.mark.parametrize("kind", [PageferryError, UsageError, ConfigError, KernelError])
@pytest.mark.parametrize("char", ["x", "\0", "\n", "\ud800", "\U000e0001"])
def test_an_error_is_one_line_whatever_it_carries(kind: type[PageferryError], char: str) -> None:
    said = str(kind(f"/proc/1/maps: not a mapping: {char * KIB_70}"))
    assert said.startswith("/proc/1/maps: not a mapping: ")
    assert is_one_line(said)
    assert len(said) <= MOST_CHARACTERS
    assert wire.decoded(wire.encoded({"error": said})[:-1]) == {"error": said}


def test_the_command_and_the_log_say_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("\ud800\n" * KIB_70)
    said = capsys.readouterr().err
    assert (said.count("\n"), len(said) < MOST_CHARACTERS + 40) == (1, True)
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "%s", ("\ud800\n" * KIB_70,), None)
    said = site._OneLine("%(levelname)s %(message)s").format(record)
    assert is_one_line(said)
    assert len(said) <= MOST_CHARACTERS
