"""What must hold of squeue's records: what was cut is not taken for whole, and what makes no sense is said so."""

from __future__ import annotations

import pytest

from pageferry.comment import FIELD_BYTES, merge_outcome, parse
from pageferry.errors import SchedulerError, UsageError
from pageferry.schedulers.slurm_commands import SlurmCommands
from support.squeue import ROW, answer_with

CUT = "; asked nodes=1-12"


@pytest.mark.parametrize("field", ["admin_comment", "Comment"])
@pytest.mark.parametrize("kept", range(len(CUT) + 1))
def test_no_request_is_read_from_a_comment_that_was_cut(monkeypatch: pytest.MonkeyPatch, field: str, kept: int) -> None:
    report = "[pageferry] n1: moved" + CUT
    before = "x" * (FIELD_BYTES - len(report) + len(CUT) - kept - 1)
    answer_with(monkeypatch, [ROW | {field: f"{before} {report}"}])
    job = SlurmCommands().job(7)
    text = job.admin_comment if field == "admin_comment" else job.comment
    assert len(text) >= FIELD_BYTES - 1, "but for a blank"
    assert parse(text) is None
    assert merge_outcome(text, "n2", "moved", ["n1", "n2"]) == text, "of other people's words nothing is lost"


@pytest.mark.parametrize("field", ["admin_comment", "Comment"])
@pytest.mark.parametrize("blanks", ["", "\n" * 900, " " * 4000, " " * 5000, " " * 4000 + "\n" * 200])
@pytest.mark.parametrize("length", [1024, 1025, 2048, 4096, 9000])
def test_a_request_that_was_cut_is_refused_or_not_there(
    monkeypatch: pytest.MonkeyPatch, field: str, blanks: str, length: int
) -> None:
    text = "pageferry:nodes=0" + ",1" * (length // 2) + "0-12"
    answer_with(monkeypatch, [ROW | {field: blanks + text}])
    job = SlurmCommands().job(7)
    read = job.admin_comment if field == "admin_comment" else job.comment
    if read.strip():
        with pytest.raises(UsageError, match="a request of more than 1024 bytes"):
            parse(read)


def test_a_list_of_features_that_was_cut_is_read_up_to_the_last_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_with(monkeypatch, [ROW | {"Feature": "a&" * 511 + "gpu-old"}])
    assert SlurmCommands().job(7).features == ("a",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"JobID": "", "JobArrayID": "7"},
        {"JobID": "²", "JobArrayID": "7"},
        {"JobID": "1_0", "JobArrayID": "7"},
        {"UserID": "²"},
        {"UserID": ""},
        {"UserID": "-1"},
        {"UserID": "\udcb2"},
        {"UserID": "9" * 15},
        {"UserID": "nobody"},
    ],
    ids=str,
)
def test_an_answer_that_names_no_job_or_no_user_is_an_error_of_the_schedulers(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]
) -> None:
    answer_with(monkeypatch, [ROW | wrong])
    with pytest.raises(SchedulerError) as failed:
        SlurmCommands().job(7)
    assert str(failed.value).isprintable()
