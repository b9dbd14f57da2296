"""What must hold of the agent's log: one line for each event, with job, rule and outcome, at the level that was set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pageferry.agent import loop
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.tended import Tended
from pageferry.cli import main as cli
from pageferry.cli import site
from pageferry.history import store
from pageferry.history.store import Store

OUTCOME = {"moved_bytes": 3 << 20, "refused": False, "complete": True, "pages": {}, "excluded": {}}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


def served(**more: Any) -> dict[str, Any]:
    told = {"job": "12.server", "uid": 1, "event": "postsuspend", "began": 0.0, "seconds_stopped": 0.0}
    told |= {"sources": (0,), "nodes": (2, 3), "outcome": OUTCOME, "error": None, "request": ""}
    return told | {"rule": "", "moments": {}} | more


@pytest.mark.parametrize("journal", [True, False])
def test_an_event_is_one_line_whatever_is_in_it(
    log: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], journal: bool
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1") if journal else monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    site.start_log("info")
    chronicle = Chronicle(Store(tmp_path / "history.sqlite3"))
    chronicle.tell(Tended(4711), "not held", "no such file: a\nb\x1b[2J\u202e\ud800")
    chronicle.served(served())
    chronicle.served(served(outcome=None, error="node 9\n<0>job 1: held"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "job 4711: not held: no such file: a\\nb\\x1b[2J\\u202e\\ud800" in lines[0]
    assert "job 12.server: postsuspend: complete, moved 3 MiB to 2-3 in " in lines[1]
    assert "job 12.server: postsuspend: failed, moved 0 KiB" in lines[2]
    assert lines[2].endswith(": node 9\\n<0>job 1: held")
    if journal:
        assert [line[:3] for line in lines] == ["<6>", "<6>", "<4>"]


def test_a_rule_that_decided_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    row = store.Migration(4711, 0, "node01", "suspend", "big jobs", 0.0, 0.5, 0.0, "0", "2", "complete")
    Chronicle(Store(tmp_path / "history.sqlite3"))._record(OUTCOME, row)
    assert caplog.messages == ["job 4711: suspend: complete, moved 3 MiB to 2 in 0.50 s (rule big jobs)"]


@pytest.mark.parametrize(
    ("words", "setting", "level"),
    [
        ((), "", "INFO"),
        ((), "log_level = 'debug'", "DEBUG"),
        ((), "log_level = 'error'", "ERROR"),
        (("--log-level", "warning"), "log_level = 'debug'", "WARNING"),
        (("--verbose",), "", "DEBUG"),
    ],
)
def test_the_level_is_the_commands_or_else_the_sites(
    log: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], setting: str, level: str
) -> None:
    settings = tmp_path / "pageferry.toml"
    settings.write_text(f"[agent]\n{setting}\n")
    monkeypatch.setattr(loop, "run", lambda *_: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    said = CliRunner().invoke(cli.commands, ["agent", "--config", str(settings), *words], standalone_mode=False)
    assert said.exception is None
    assert logging.getLevelName(logging.getLogger().level) == level


def test_a_level_that_is_none_is_a_fault_of_the_file(log: None, tmp_path: Path) -> None:
    settings = tmp_path / "pageferry.toml"
    settings.write_text("[agent]\nlog_level = 'loud'\n")
    said = CliRunner().invoke(cli.commands, ["agent", "--config", str(settings)], standalone_mode=False)
    assert str(said.exception) == (
        f'{settings}:2: agent.log_level = "loud": expected one of debug, info, warning, error'
    )
