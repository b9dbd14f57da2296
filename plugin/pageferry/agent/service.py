"""What the agent does for those who ask over its socket: each verb is a function, and who may use it is checked first.

How requests arrive and answers go is `wire_server`'s; what becomes of a job is `tending`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pageferry import wire
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.pbs import PbsEvents
from pageferry.agent.site import Site
from pageferry.agent.tending import Tending
from pageferry.agent.wire_server import Reply
from pageferry.comment import Wish
from pageferry.cpus.assignments import Assignments
from pageferry.errors import Denied, UsageError
from pageferry.history.store import Migration
from pageferry.kernel.lists import parse_list
from pageferry.schedulers.pbs import is_job_id
from pageferry.schedulers.slurm_cgroups import slurm_job_owner
from pageferry.wire import Peer, number, text
from pageferry_planner.model import Strategy

LEDGERS_AT_ONCE = 50
"""With their ledgers, migrations are longer than without by far: an answer is to be read in one piece."""


class Service:
    """The verbs. `tending` and `pbs` are set before the first request is served."""

    tending: Tending
    pbs: PbsEvents

    def __init__(self, site: Site, assignments: Assignments, chronicle: Chronicle, rescan: Callable[[], None]) -> None:
        self._assignments = assignments
        self._chronicle = chronicle
        self._rescan = rescan
        self._site = site
        self.faults: Callable[[], list[str]] = list
        """Why metrics do not go out, a line each; set once it is known."""

        self._verbs: Mapping[str, Callable[[Peer, dict[str, Any], Reply], Mapping[str, Any] | None]] = {
            "starting": self._starting,
            "ended": self._ended,
            "poke": self._poke,
            "status": self._status,
            "cpus": self._cpus,
            "history": self._history,
            "move": self._move,
            "request": self._request,
            "pbs": self._pbs,
        }

    @property
    def trusted(self) -> frozenset[int]:
        """The users who may do everything."""
        return self._site.trusted

    def handle(self, peer: Peer, message: dict[str, Any], reply: Reply) -> Mapping[str, Any] | None:
        """Answer a request, or reply later. Raises UsageError for one that makes no sense, Denied for others' jobs."""
        verb = text(message, "verb")
        if verb not in self._verbs:
            raise UsageError(f"no such verb: {verb[:80]!a}")
        if not wire.allowed(peer.uid, self._site.slurm_user, verb, self._owner(peer, verb, message)):
            raise Denied(f"{verb}: for root and SlurmUser, and some of it for a job's owner")
        return self._verbs[verb](peer, message, reply)

    def _owner(self, peer: Peer, verb: str, message: dict[str, Any]) -> int | None:
        """Return whose job a request is about. The history is asked for by user, so it shows each only their own."""
        if peer.uid in self.trusted:
            return None
        if verb == "history":
            return peer.uid
        return slurm_job_owner(number(message, "job")) if "job" in message else None

    def _starting(self, _peer: Peer, _message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        self._rescan()
        return {}

    def _ended(self, _peer: Peer, _message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        self.tending.ended()
        return {}

    def _poke(self, _peer: Peer, message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        self.tending.poke([number(message, "job")] if "job" in message else self.tending.known())
        return {}

    def _status(self, _peer: Peer, message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        jobs = self.tending.status()
        if "job" in message:
            return {"jobs": {job: state for job, state in jobs.items() if job == str(number(message, "job"))}}
        counted = {"counts": self._chronicle.counts.as_dict(), "history_lost": self._chronicle.lost()}
        return {"jobs": jobs, **counted, "metrics_faults": self.faults(), "settings": str(self._site.path.absolute())}

    def _cpus(self, _peer: Peer, _message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        return self._assignments.view()

    def _history(self, peer: Peer, message: dict[str, Any], _reply: Reply) -> Mapping[str, Any]:
        job = message.get("job") if is_job_id(str(message.get("job"))) else None
        if job is None and "job" in message:
            raise UsageError("job: expected the ID of a job")
        ledgers = message.get("ledgers") is True
        limit = min(number(message, "limit", 100), LEDGERS_AT_ONCE if ledgers else 1000)
        user = None if peer.uid in self.trusted else peer.uid
        if "migration" in message:
            rows = self._chronicle.read_one(number(message, "migration"), user)
            return {"migrations": _told(rows), "events": [], "fault": self._chronicle.fault()}
        rows, events = self._chronicle.read(job, user, limit, ledgers=ledgers)
        told = {"migrations": _told(rows), "events": [asdict(row) for row in events]}
        return told | {"fault": self._chronicle.fault()}

    def _pbs(self, peer: Peer, message: dict[str, Any], reply: Reply) -> Mapping[str, Any] | None:
        return self.pbs.happened(message, reply, peer.pid)

    def _move(self, _peer: Peer, message: dict[str, Any], reply: Reply) -> None:
        wish = Wish(
            nodes=_ordered(message, "nodes"),
            cpus=_list(message, "cpus") if message.get("cpus") is not None else None,
            strategy=_strategy(message),
        )
        hold, precopy = (message.get(word) is True for word in ("hold", "precopy"))
        self.tending.request(number(message, "job"), wish, reply, hold=hold, precopy=precopy)

    def _request(self, peer: Peer, message: dict[str, Any], reply: Reply) -> None:
        """Serve a job's owner, if the job's policy lets owners ask: memory alone, and nobody else's CPUs for it."""
        wish = Wish(nodes=_ordered(message, "nodes"), strategy=_strategy(message))
        by_owner = peer.uid not in self.trusted
        job = number(message, "job")
        self.tending.request(job, wish, reply, hold=False, precopy=False, memory_only=True, by_owner=by_owner)


def _told(rows: Iterable[Migration]) -> list[dict[str, Any]]:
    return [asdict(row) | {"requests_saved": row.requests_saved} for row in rows]


def _list(message: Mapping[str, Any], key: str) -> frozenset[int]:
    try:
        members = parse_list(text(message, key))
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from error
    if not members:
        raise UsageError(f"{key}: names nothing")
    return members


def _ordered(message: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return a list's members in the order asked, each once."""
    parts = [_list({key: part}, key) for part in text(message, key).split(",")]
    return tuple(dict.fromkeys(member for part in parts for member in sorted(part)))


def _strategy(message: Mapping[str, Any]) -> Strategy | None:
    """Return the strategy that was asked for, None if none was."""
    try:
        return Strategy(text(message, "strategy")) if "strategy" in message else None
    except ValueError as error:
        raise UsageError(f"strategy: not one of {', '.join(strategy.value for strategy in Strategy)}") from error
