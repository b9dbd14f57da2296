"""What PBS's hook says, changed at random: an event is understood as a whole, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from pageferry.agent.pbs import has_given_up
from pageferry.errors import UsageError
from pageferry.kernel.topology import Node, Topology
from pageferry.pbs import event as events
from pageferry.pbs.asked import understood
from pageferry.pbs.event import Event, Kind
from pageferry.pbs.record import Record
from pageferry.policy import Policy
from pageferry.schedulers.pbs import job_nodes
from pageferry.wire import decoded
from support.mutations import LONG, clean, fuzz, mutated
from support.requests import BAD, GOOD, OTHERS
from support.trees import FIXTURES

RECORDED = json.loads((FIXTURES / "openpbs.json").read_text())["jobs"]
JOBS = [
    {
        "id": job["id"],
        "exec_vnode": job["exec_vnode"],
        "session": job["session_id"] or 0,
        "user": job["euser"],
        "asked": "nodes=1",
        "comment": "pageferry:nodes=2-3",
        "queue": "workq",
        "account": "",
        "project": job["project"],
        "name": job["Job_Name"],
        "nodes": 1,
        "cpus": int(job["Resource_List"]["ncpus"]),
    }
    for job in RECORDED
]
MESSAGE = {"verb": "pbs", "hosts": ["guest", "guestb"], "until": 12.5}
MESSAGES = [{**MESSAGE, "event": kind.value, "jobs": [job]} for kind in Kind for job in JOBS[:2]]
MESSAGES.append({**MESSAGE, "event": "exechost_periodic", "jobs": JOBS, "keep": [job["id"] for job in JOBS]})
LINES = [json.dumps(message).encode() for message in MESSAGES]
NODES = Topology(tuple(Node(node, frozenset({node}), 1 << 30, 1 << 30, 0, {}, {}) for node in range(4)))
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([*GOOD, *BAD, *OTHERS, "²", "1.s", "7[3].s", "1.\n", "\ud800", "\udcff", "x" * LONG, "12.e5"]),
    st.sampled_from(["(guest[0]:ncpus=1)", "(guest[9999]:x+guest[1]:x)", "+guest[" * 4000, "(" + "g" * 32767]),
)
VALUES = st.one_of(
    TEXTS,
    st.none() | st.booleans() | st.floats() | st.integers(),
    st.sampled_from([-1, 0, 1 << 31, 1 << 63, 1 << 64, 10**400]),
    st.lists(TEXTS, max_size=3) | st.dictionaries(TEXTS, TEXTS, max_size=2),
)
SPOILT = st.builds(
    lambda message, job, top: {**message, "jobs": [{**JOBS[0], **job}], **top},
    st.sampled_from(MESSAGES),
    st.dictionaries(st.sampled_from(sorted(JOBS[0])) | TEXTS, VALUES, max_size=2),
    st.dictionaries(st.sampled_from([*MESSAGES[-1]]) | TEXTS, VALUES, max_size=2),
)


def check(message: Mapping[str, Any]) -> None:
    """Assert that an event of a message is one that all who are handed it can live with, or that it was refused."""
    found = clean(lambda: events.parse(message))
    if isinstance(found, UsageError):
        return
    assert isinstance(found, Event)
    assert found.event is Kind.PERIODIC or len(found.jobs) == 1
    hosts = frozenset(found.hosts)
    assert has_given_up(found, 0) in {False, True}
    assert found.until == found.until, "a time that is no number never comes"
    for job in found.jobs:
        assert job.id.isascii()
        assert not set(job.id) & set("/\0\n ")
        facts = job.facts()
        assert all(name is None or name.isprintable() for name in (facts.user, facts.job_name, facts.partition))
        assert set(job_nodes(job.id, job.exec_vnode, hosts, NODES)) <= {0, 1, 2, 3}
        for policy in (Policy(), Policy(owners_may_ask=True)):
            asked = understood(job, hosts, Record(), policy)
            assert asked.error is None or (asked.error.isprintable() and asked.wish is None)
            assert asked.wish is None or (asked.wish.cpus is None and not asked.wish.now)


@given(mutated(LINES))
@fuzz
def test_whatever_line_the_hook_sends_is_an_event_or_refused(line: bytes) -> None:
    message = clean(lambda: decoded(line))
    if isinstance(message, dict):
        check(message)


@given(SPOILT)
@fuzz
@example({**MESSAGES[0], "until": float("nan")})
def test_values_that_no_hook_sends_are_refused(message: dict[str, Any]) -> None:
    check(message)
