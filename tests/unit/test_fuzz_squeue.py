"""What Slurm's controller says of jobs, changed at random: it is read as it stands, or refused in one line."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry import comment
from pageferry.errors import SchedulerError, UsageError
from pageferry.schedulers.control import JobRecord
from pageferry.schedulers.slurm_api import SlurmApi
from pageferry.schedulers.slurm_commands import _FIELDS, SlurmCommands
from support.mutations import NUMBERS, WORDS, clean, fuzz, mutated
from support.requests import BAD, GOOD, OTHERS
from support.squeue import ROW, answer_with, printed
from support.trees import FIXTURES

PRINTED = printed(
    [ROW, ROW | {"JobID": "8", "JobArrayID": "8"}], ",".join(f"{name}:{_FIELDS[name]}" for name in _FIELDS)
)
VALUES = st.one_of(
    st.sampled_from([*NUMBERS, *WORDS, b"7", b"7_1", b"7_[1-9]", b"(null)", "²".encode(), b"None assigned"]),
    st.binary(max_size=40),
    st.sampled_from([*GOOD, *BAD, *OTHERS]).map(str.encode),
    st.tuples(st.binary(min_size=1, max_size=8), st.sampled_from((15, 16, 17, 64, 256, 1024, 4096, 9000))).map(
        lambda given: (given[0] * given[1])[: given[1]]
    ),
)
ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(ROW, VALUES)), max_size=3)
LOADED = [
    json.dumps({"ok": answer["returns"]}).encode()
    for situation in json.loads((FIXTURES / "pyslurm_25_11.json").read_text())["situations"].values()
    for call, answer in situation.items()
    if call.startswith("Job.load") and "returns" in answer
]
ANSWERED = {
    "id": 1,
    "array_id": 1,
    "array_task_id": None,
    "state": "RUNNING",
    "user_id": 0,
    "hosts": ["n1"],
    "admin_comment": "pageferry:nodes=1-2",
    "features": ["a"],
    "num_nodes": 1,
    "num_cpus": 4,
    **dict.fromkeys(("partition", "name", "qos", "account", "user_name"), "x"),
}


def check(found: Any) -> None:
    """Assert that what was read of a job is a job's, or that it was refused as what cannot be read is."""
    if not isinstance(found, JobRecord):
        assert isinstance(found, SchedulerError | UsageError)
        return
    for number in (found.id, found.user_id, found.num_nodes, found.num_cpus):
        assert number is None or 0 <= number < 1 << 32
    names = (found.address, found.state, found.partition, found.name, found.qos, found.account, found.user_name)
    assert all(name.isprintable() for name in (*names, *found.hosts, *found.features))
    for text in (found.admin_comment, found.comment):
        clean(lambda text=text: comment.parse(text))  # type: ignore[misc]
        comment.merge_outcome(text, "n1", "moved", found.hosts)


@given(ROWS)
@fuzz
@example([{"JobID": b"", "JobArrayID": b"7"}])
@example([{"UserID": "²".encode()}])
def test_a_job_is_what_its_record_says(rows: list[dict[str, bytes]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        answer_with(patch, [{**ROW, **row} for row in rows])
        found = clean(lambda: SlurmCommands().job(7))
    check(found)
    if isinstance(found, JobRecord):
        told = [row.get("JobID", b"7").rstrip(b" ") for row in rows]
        assert str(found.id).encode() in [number.lstrip(b"0") or b"0" for number in told]


@given(mutated([PRINTED, PRINTED[: len(PRINTED) // 2]]))
@fuzz
def test_whatever_squeue_prints_is_a_job_or_refused(text: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        answer_with(patch, [ROW], lambda said: text if len(said) > 1000 else said)
        check(clean(lambda: SlurmCommands().job(7)))
        answer_with(patch, [ROW], lambda said: text)
        check(clean(lambda: SlurmCommands().job(7)))


@given(mutated([*LOADED, json.dumps({"ok": ANSWERED}).encode(), b'{"error": "RPCError", "errno": 1, "text": "no"}']))
@fuzz
def test_whatever_pyslurm_answers_is_a_job_or_refused(text: bytes) -> None:
    said = subprocess.CompletedProcess([], 0, text, b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_words, **_more: said)
        check(clean(lambda: SlurmApi().job(1)))
        assert isinstance(clean(SlurmApi().describe), SchedulerError | UsageError | str)
