"""What must hold of what `pageferry history` prints: all that is known of a migration, on any width of a terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from pageferry import report
from pageferry.cli import tables
from support.history_rows import HOSTILE, row

SAYS = ("suspend", "0-1", "2-3", "partial", "1.8 GiB", "0.25 s", "4.50 s", "2515000", "moved 481000", "pinned 31")


def printed(rows: list[dict[str, Any]], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(tables, "Console", lambda **_: console)
    with console.capture() as capture:
        tables.show_history(rows)
    return capture.get()


@pytest.mark.parametrize("width", [80, 100, 130, 220])
def test_all_is_said_at_any_width_and_no_line_is_longer(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = printed([row(), row(18)], width, monkeypatch)
    assert max(map(len, said.splitlines())) <= width
    flat = " ".join(said.split())
    assert all(word in flat for word in SAYS)
    assert "…" not in said
    assert len(re.findall(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", said)) == 2


def test_where_there_is_no_terminal_a_migration_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_history([row(words="x" * 1000), row(18)])
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("width", [80, 220])
def test_words_of_others_do_nothing_to_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = printed([row(words=HOSTILE, job="7[1].x\x1b")], width, monkeypatch)
    assert all(char.isprintable() for char in said.replace("\n", ""))


def test_the_rule_of_the_site_is_said_where_one_is_known() -> None:
    known = row()
    assert report.why(known) == "suspend"
    known["details"]["rule"] = "gpu"
    assert report.why(known) == "suspend, rule gpu"


def test_what_nobody_counted_is_not_said_to_be_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = printed([row(requests_saved=None)], 220, monkeypatch)
    assert said.splitlines()[1].split()[11:14] == ["4.50", "s", "-"]
