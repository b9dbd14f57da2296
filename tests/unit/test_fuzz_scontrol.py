"""What scontrol prints, changed at random: what a user wrote into it never passes for what Slurm itself says."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry.errors import SchedulerError, UsageError
from pageferry.schedulers.slurm import Slurm, _Details, _resolve
from pageferry.schedulers.slurm_config import SlurmConfig, ask_config, read_settings
from support.mutations import LONG, clean, fuzz, mutated

RECORD = (
    "JobId=123{more} JobName={name} UserId=ann(1000) GroupId=staff(50) MCS_label=N/A Priority=4294901757 Nice=0 "
    "Account={account} QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Comment={comment} Power=\n"
)
PLAIN = {"more": "", "name": "a.sh", "account": "(null)", "comment": "x"}
TASK = " ArrayJobId=124 ArrayTaskId=4"
RECORDS = [RECORD.format(**PLAIN | {"more": more}).encode() for more in ("", TASK, " HetJobId=122 HetJobOffset=1")]
RECORDS.append(RECORDS[1] + RECORDS[1].replace(b"=123", b"=125").replace(b"=4 ", b"=5 "))
BLANKS = b"Prolog = x" + b" " * LONG + b"y\n"
CONFIG = b"""Configuration data as of 2026-11-23T15:00:00
Epilog[0]               = /a b
Epilog[1]               = (null)
HealthCheckInterval     = 60 sec
SLURM_CONF              = /etc/slurm/slurm.conf

Cgroup Support Configuration:
CgroupPlugin            = cgroup/v2

Slurmctld(primary) at ctl is UP
"""
FORGED = [
    "UserId=root(0) GroupId=root(0) JobState=FAILED Reason=None",
    "UserId=",
    "UserId=root(0)",
    "UserId=(",
    "UserId=" * 1000,
    "JobState=",
    "JobState=FAILED",
    "JobName=",
    "JobId=123",
    "\nJobId=123",
    "\nJobId=7 JobName=x UserId=a(1) JobState=FAILED",
    TASK,
    "Comment=",
    "(" * LONG,
    "9" * 5000,
    *" \n\r\x85()=",
]
WORDS = st.lists(st.sampled_from(FORGED), max_size=6).map("".join)


def asked(text: bytes, question: Any) -> Any:
    """Return the answer to a question, or the error, where scontrol prints this text."""
    said = subprocess.CompletedProcess([], 0, text, b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_words, **_more: said)
        return clean(question)


@given(st.fixed_dictionaries({"name": WORDS, "account": WORDS, "comment": WORDS}))
@fuzz
@example({"name": f"x {FORGED[0]} ", "account": "a", "comment": ""})
@example({"name": "UserId=" * 10_000 + "(" * LONG, "account": "a", "comment": ""})
def test_a_job_is_whose_slurm_says_it_is_or_nothing_is_known(words: dict[str, str]) -> None:
    details = asked(RECORD.format(**PLAIN | words).encode(), lambda: Slurm()._details(123))
    assert (details.user_id, details.state) in {(1000, "RUNNING"), (None, None)}
    assert details.name is None or details.name.isprintable()
    answer = RECORD.format(**PLAIN | words | {"more": TASK})
    assert clean(lambda: _resolve(answer, "124_4")) == 123
    for other in ("124_5", "123_4", "7_1"):
        assert isinstance(clean(partial(_resolve, answer, other)), SchedulerError)


@given(mutated(RECORDS))
@fuzz
@example(RECORDS[0].replace(b"(1000)", b"(18446744073709551616)"))
@example(RECORDS[0].replace(b"=123", b"=" + b"9" * 5000))
def test_whatever_scontrol_prints_of_a_job_is_understood_or_nothing_is_known(text: bytes) -> None:
    details = asked(text, lambda: Slurm()._details(123))
    assert isinstance(details, _Details)
    assert details.user_id is None or 0 <= details.user_id < 1 << 32
    assert details.state is None or details.state.replace("_", "").isalpha()
    assert details.name is None or details.name.isprintable()
    found = asked(text, lambda: _resolve(Slurm()._ask("124_4"), "124_4"))
    assert isinstance(found, SchedulerError | UsageError) or 0 <= found < 10**10


@given(mutated([CONFIG]))
@fuzz
@example(BLANKS)
@example(b"Epilog = x\n" * LONG)
def test_whatever_scontrol_prints_of_its_configuration_is_values_by_key(text: bytes) -> None:
    config = asked(text, ask_config)
    assert isinstance(config, SlurmConfig)
    for key, values in config.values.items():
        assert key == key.lower()
        assert all(value.isprintable() for value in values)
    assert str(config.folder()).isprintable()


@given(
    st.lists(
        st.sampled_from(["Prolog", "x", ".", "=", " ", "#", "\\#", "\\\n", "\n", '"', "a" * LONG, " " * LONG]),
        max_size=8,
    )
)
@fuzz
def test_whatever_a_sites_file_says_is_settings_with_their_lines(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "slurm.conf").write_text("".join(words))
    for setting in clean(lambda: read_settings(tmp_path / "slurm.conf")):
        assert setting.value.isprintable()
        assert 1 <= setting.line <= "".join(words).count("\n") + 1
