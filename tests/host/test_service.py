"""What must hold of the agent's verbs: who may ask for what, and that no message harms the agent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pageferry.agent import service, site
from pageferry.agent.service import Service
from pageferry.agent.site import slurm_user
from pageferry.comment import Wish
from pageferry.config import Agent as AgentSettings
from pageferry.config import Settings
from pageferry.errors import ConfigError, Denied, UsageError
from pageferry.history.store import Migration, Store
from pageferry.wire import Peer
from pageferry_planner.model import Strategy
from support.service_agent import JOB, OTHERS_JOB, SETTINGS, SLURM_USER, VERBS, Told, made

OWNER, STRANGER = 1000, 1001
NOBODY = 65534


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history.sqlite3")


@pytest.fixture
def verbs(told: Told, store: Store, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The verbs, where job 7 is `OWNER`'s and nobody knows whose the others are."""
    monkeypatch.setattr(service, "slurm_job_owner", {JOB: OWNER}.get)
    return made(told, store)


def ask(verbs: Service, uid: int, message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the answer, at once or later, to a user's message."""
    later: list[Mapping[str, Any]] = []
    answer = verbs.handle(Peer(1, uid, uid), dict(message), later.append)
    return answer if answer is not None else later[0]


# Who may ask


@pytest.mark.parametrize("uid", [0, SLURM_USER])
@pytest.mark.parametrize("verb", VERBS)
def test_root_and_slurm_user_may_ask_for_everything(verbs: Service, verb: str, uid: int) -> None:
    assert ask(verbs, uid, {"verb": verb, **VERBS[verb]}) is not None
    assert verbs.trusted == {0, SLURM_USER}


@pytest.mark.parametrize("verb", VERBS)
def test_an_owner_may_read_of_their_job_and_have_it_looked_at(verbs: Service, told: Told, verb: str) -> None:
    message = {"verb": verb, **VERBS[verb]}
    if verb in {"poke", "status", "history", "request"}:
        assert ask(verbs, OWNER, message) is not None
    else:
        with pytest.raises(Denied, match=f"^{verb}: for root and SlurmUser"):
            ask(verbs, OWNER, message)
        assert not told.calls


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("job", [None, JOB, OTHERS_JOB])
def test_a_stranger_may_ask_for_nothing_but_their_own_history(
    verbs: Service, told: Told, verb: str, job: int | None
) -> None:
    message = {"verb": verb, **VERBS[verb]}
    message = message | {"job": job} if job else {key: value for key, value in message.items() if key != "job"}
    if verb == "history":
        assert ask(verbs, STRANGER, message) == {"migrations": [], "events": [], "fault": None}
    else:
        with pytest.raises(Denied):
            ask(verbs, STRANGER, message)
    assert not told.calls


def test_an_owner_is_not_shown_all_jobs_where_they_name_none(verbs: Service, told: Told) -> None:
    for verb in ("status", "poke"):
        with pytest.raises(Denied):
            ask(verbs, OWNER, {"verb": verb})
    answer = ask(verbs, OWNER, {"verb": "status", "job": JOB})
    assert answer == {"jobs": {"7": {"phase": "runs"}}}, "nor the agent's counts"
    assert not told.calls


def test_everyone_sees_their_own_rows_of_the_history_and_root_sees_all(verbs: Service, store: Store) -> None:
    for job, uid in ((JOB, OWNER), (OTHERS_JOB, STRANGER), (9, OWNER)):
        store.record_event(job, uid, "held", "")
        store.record_migration(Migration(job, uid, "n1", "suspend", "", 0.0, 0.0, 0.0, "0", "1", "complete"))
    store.record_event(0, -1, "started", "")

    def jobs(uid: int, **words: Any) -> list[tuple[int, ...]]:
        answer = ask(verbs, uid, {"verb": "history", **words})
        assert answer is not None
        return [tuple(row["job"] for row in answer[table]) for table in ("migrations", "events")]

    assert jobs(OWNER) == [(9, JOB), (9, JOB)]
    assert jobs(STRANGER) == [(OTHERS_JOB,), (OTHERS_JOB,)]
    assert jobs(STRANGER, job=JOB) == [(), ()]
    assert jobs(NOBODY) == [(), ()]
    assert jobs(0) == [(9, OTHERS_JOB, JOB), (0, 9, OTHERS_JOB, JOB)]
    assert jobs(SLURM_USER, job=JOB) == [(JOB,), (JOB,)]
    assert jobs(OWNER, limit=1) == [(9,), (9,)]


def test_one_migration_is_told_with_its_ledger_to_whom_its_job_belongs(verbs: Service, store: Store) -> None:
    row = Migration(JOB, OWNER, "n1", "suspend", "", time.time(), 0.0, 0.0, "0", "1", "complete")
    row = replace(row, requested=4, asked_per_process=9, ledger={"page_bytes": 4096})
    number = store.record_migration(row)
    for uid, found in ((0, 1), (OWNER, 1), (STRANGER, 0), (NOBODY, 0)):
        answer = ask(verbs, uid, {"verb": "history", "migration": number})
        assert answer is not None
        assert [told["ledger"] for told in answer["migrations"]] == [{"page_bytes": 4096}] * found
        assert [told["requests_saved"] for told in answer["migrations"]] == [5] * found
    (told,) = (ask(verbs, 0, {"verb": "history"}) or {})["migrations"]
    assert told["ledger"] == {}, "it is long, and was not asked for"


# What is asked for


def test_a_request_is_handed_on_as_it_was_meant(verbs: Service, told: Told) -> None:
    words = {"verb": "move", "job": JOB, "nodes": "2-3", "cpus": "4,6", "strategy": "local", "hold": True}
    assert ask(verbs, 0, words) == {"outcome": {}}
    assert ask(verbs, 0, {"verb": "move", "job": JOB, "nodes": "1", "cpus": None}) == {"outcome": {}}
    assert ask(verbs, 0, {"verb": "move", "job": JOB, "nodes": "1", "precopy": True}) == {"outcome": {}}
    assert told.calls == [
        ("request", JOB, Wish((2, 3), frozenset({4, 6}), Strategy.LOCAL), True),
        ("request", JOB, Wish((1,)), False),
        ("request", JOB, Wish((1,)), False, "precopy"),
    ]


def test_an_owners_request_is_for_memory_alone_and_known_to_be_the_owners(verbs: Service, told: Told) -> None:
    words = {"verb": "request", "job": JOB, "nodes": "2-3", "cpus": "4,6", "strategy": "local", "hold": True}
    assert ask(verbs, OWNER, words) == {"outcome": {}}
    assert ask(verbs, 0, {"verb": "request", "job": JOB, "nodes": "1"}) == {"outcome": {}}
    assert told.calls == [
        ("request", JOB, Wish((2, 3), None, Strategy.LOCAL), False, "memory_only", "by_owner"),
        ("request", JOB, Wish((1,)), False, "memory_only"),
    ]


def test_nodes_keep_the_order_in_which_they_were_asked_for(verbs: Service, told: Told) -> None:
    ask(verbs, 0, {"verb": "move", "job": JOB, "nodes": "3,0-1", "strategy": "pack"})
    assert told.calls[0][2].nodes == (3, 0, 1)


def test_a_poke_without_a_job_is_for_all(verbs: Service, told: Told) -> None:
    ask(verbs, 0, {"verb": "poke"})
    ask(verbs, OWNER, {"verb": "poke", "job": JOB})
    assert told.calls == [("poke", (JOB, OTHERS_JOB)), ("poke", (JOB,))]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"verb": None},
        {"verb": ["poke"]},
        {"verb": "nonsense"},
        {"verb": "__class__"},
        {"verb": "_move", "job": JOB, "nodes": "0"},
        {"verb": "poke\n", "job": JOB},
        {"verb": "x" * 60000},
        {"verb": "poke", "job": -1},
        {"verb": "poke", "job": "7"},
        {"verb": "poke", "job": 7.0},
        {"verb": "poke", "job": True},
        {"verb": "poke", "job": None},
        {"verb": "poke", "job": 1 << 40},
        {"verb": "status", "job": [7]},
        {"verb": "history", "limit": "all"},
        {"verb": "history", "limit": -1},
        {"verb": "history", "migration": "1 OR 1"},
        {"verb": "history", "migration": -1},
        {"verb": "move"},
        {"verb": "move", "job": JOB},
        {"verb": "move", "nodes": "0"},
        {"verb": "move", "job": JOB, "nodes": ""},
        {"verb": "move", "job": JOB, "nodes": 3},
        {"verb": "move", "job": JOB, "nodes": [0]},
        {"verb": "move", "job": JOB, "nodes": "0-"},
        {"verb": "move", "job": JOB, "nodes": "3-0"},
        {"verb": "move", "job": JOB, "nodes": "0-99999999999999"},
        {"verb": "move", "job": JOB, "nodes": "0-4294967295"},
        {"verb": "move", "job": JOB, "nodes": "-1"},
        {"verb": "move", "job": JOB, "nodes": "0," * 30000},
        {"verb": "move", "job": JOB, "nodes": "0", "cpus": ""},
        {"verb": "move", "job": JOB, "nodes": "0", "cpus": 3},
        {"verb": "move", "job": JOB, "nodes": "0", "cpus": "0-4294967295"},
        {"verb": "move", "job": JOB, "nodes": "0", "strategy": "scatter"},
        {"verb": "move", "job": JOB, "nodes": "0", "strategy": {}},
    ],
    ids=lambda message: json.dumps(message)[:60],
)
def test_what_makes_no_sense_is_refused_in_one_short_line(verbs: Service, told: Told, message: dict[str, Any]) -> None:
    for uid in (0, OWNER):
        with pytest.raises((UsageError, Denied)) as raised:
            ask(verbs, uid, message)
        said = str(raised.value)
        assert said.isprintable()
        assert len(said) < 300
        assert uid or isinstance(raised.value, UsageError)
    assert not told.calls


def test_the_history_is_never_more_than_a_thousand_rows_and_fifty_with_their_ledgers(
    verbs: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(job: int | None, user: int | None, limit: int, *, ledgers: bool) -> list[Migration]:
        asked.append(limit)
        return []

    monkeypatch.setattr(store, "migrations", note)
    ask(verbs, 0, {"verb": "history", "limit": 100_000})
    ask(verbs, 0, {"verb": "history"})
    ask(verbs, 0, {"verb": "history", "limit": 100_000, "ledgers": True})
    assert asked == [1000, 100, 50]


# SlurmUser


def test_slurm_user_is_that_of_the_settings_else_of_slurm_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "slurm.conf"
    monkeypatch.setattr(site, "SLURM_CONF", conf)
    assert slurm_user(Settings()) is None
    for text, uid in (
        ("SlurmUser=daemon\n", 1),
        ("slurmuser=daemon(1)\n", 1),
        ("#SlurmUser=daemon\n", None),
        ("SlurmUser=nobody-here\n", None),
        ("SlurmUser=\n", None),
        ("\0\xff", None),
    ):
        conf.write_bytes(text.encode("latin1"))
        assert slurm_user(Settings()) == uid, text
    assert slurm_user(SETTINGS) == 1
    with pytest.raises(ConfigError, match=r"agent\.slurm_user: no such user: 'nobody-here'"):
        slurm_user(Settings(agent=AgentSettings(slurm_user="nobody-here")))
