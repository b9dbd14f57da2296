"""What must hold of `pageferry report`: it asks as history does, shows each only their own, and writes whole files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from pageferry.agent.service import Service
from pageferry.cli import report as cli_report
from pageferry.errors import UsageError
from pageferry.history.store import Migration, Store
from pageferry.wire import Peer
from support.service_agent import Told, made

OWNER, STRANGER = 1000, 1001
Report = Callable[..., int]


def migration(job: int | str, uid: int) -> Migration:
    return Migration(job, uid, "n1", "suspend", "", time.time(), 1.0, 0.5, "0", "1", "complete")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    store = Store(tmp_path / "state" / "history.sqlite3")
    for job, uid in ((7, OWNER), (8, STRANGER), (7, OWNER), ("7.server", OWNER)):
        store.record_migration(replace(migration(job, uid), ledger={"page_bytes": 4096, "backings": [], "rest": None}))
    return made(Told(), store)


@pytest.fixture
def report(service: Service, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The command, as a user gives it, with an agent to ask."""

    def run(*words: str, uid: int = 0) -> int:
        def ask(message: dict[str, Any]) -> dict[str, Any]:
            answer = service.handle(Peer(1, uid, uid), message, lambda _answer: None)
            return json.loads(json.dumps(answer))  # type: ignore[no-any-return]

        monkeypatch.setattr(cli_report, "ask", ask)
        code = cli_report.report.main(list(words), standalone_mode=False)
        assert isinstance(code, int)
        return code

    return run


def test_a_job_is_a_page_of_its_migrations_newest_first(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert report("7", "--html", str(path)) == 0
    page = path.read_text()
    assert page.index('id="m3"') < page.index('id="m1"')
    assert 'id="m2"' not in page
    assert 'id="m4"' not in page
    report("7", "--html", str(path), "--limit", "1")
    assert 'id="m1"' not in path.read_text()
    report("7.server", "--html", str(path))
    assert "Job 7.server" in path.read_text()


def test_a_migration_is_a_page_of_it_alone_on_standard_output_if_asked(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report("--migration", "2", "--html", "-") == 0
    page = capsys.readouterr().out
    assert page.startswith("<!DOCTYPE html>")
    assert 'id="m2"' in page
    assert "Job 8" in page
    assert report("--migration", "2", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["migrations"]
    assert (row["id"], row["ledger"]["page_bytes"]) == (2, 4096)


@pytest.mark.parametrize("words", [["7"], ["--migration", "1"]])
def test_users_see_their_own_jobs_and_not_whether_others_have_any(
    report: Report, tmp_path: Path, words: list[str]
) -> None:
    path = tmp_path / "report.html"
    assert report(*words, "--html", str(path), uid=OWNER) == 0
    path.unlink()
    with pytest.raises(UsageError, match=r"^no migration") as others:
        report(*words, "--html", str(path), uid=STRANGER)
    assert not path.exists()
    words = ["9"] if words == ["7"] else ["--migration", "99"]
    with pytest.raises(UsageError, match=r"^no migration") as none:
        report(*words, "--html", str(path), uid=STRANGER)
    assert str(none.value).replace("99", "1").replace("9", "7") == str(others.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name one: a JOB, or --migration ID"),
        (["7", "--migration", "1", "--json"], "name one"),
        (["7"], "say where to: --html FILE, or --json"),
        (["7", "--html", "x", "--json"], "say where to"),
        (["no job\n", "--json"], "job: expected the ID of a job"),
        (["--migration", "99999999999", "--json"], "migration: expected a whole number"),
    ],
)
def test_a_question_that_makes_no_sense_gets_one_line(report: Report, words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        report(*words)


def test_a_number_that_is_none_is_refused_before_anybody_is_asked(report: Report) -> None:
    with pytest.raises(click.BadParameter):
        report("--migration", "x", "--json")


def test_a_history_that_is_not_whole_is_said_to_be_so(
    report: Report, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service._chronicle, "fault", lambda: "database or disk is full")
    report("7", "--json")
    assert capsys.readouterr().err == "pageferry: the history is not whole: database or disk is full\n"
