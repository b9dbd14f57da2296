"""The agent's verbs on stand-ins that note what they are told, in place of what does the work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.service import Service
from pageferry.agent.tending import Tending
from pageferry.agent.wire_server import Reply
from pageferry.comment import Wish
from pageferry.config import Agent as AgentSettings
from pageferry.config import Settings
from pageferry.cpus.assignments import Assignments
from pageferry.history.store import Store

SLURM_USER = 1
SETTINGS = Settings(agent=AgentSettings(slurm_user="daemon"))
JOB, OTHERS_JOB = 7, 8
VERBS: dict[str, dict[str, Any]] = {
    "starting": {"job": JOB},
    "ended": {"job": JOB},
    "poke": {"job": JOB},
    "status": {"job": JOB},
    "cpus": {},
    "history": {"job": JOB},
    "move": {"job": JOB, "nodes": "0"},
}


@dataclass
class Told:
    """Stands in for what does the work: it notes what it is told."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def known(self) -> tuple[int, ...]:
        return (JOB, OTHERS_JOB)

    def status(self) -> dict[str, Any]:
        return {str(job): {"phase": "runs"} for job in self.known()}

    def view(self) -> dict[str, Any]:
        return {"map": {}, "jobs": {}}

    def ended(self) -> None:
        self.calls.append(("ended",))

    def rescan(self) -> None:
        self.calls.append(("rescan",))

    def poke(self, jobs: Iterable[int]) -> None:
        self.calls.append(("poke", tuple(jobs)))

    def request(self, job: int, wish: Wish, reply: Reply, *, hold: bool, precopy: bool) -> None:
        self.calls.append(("request", job, wish, hold, precopy))
        reply({"outcome": {}})


def made(told: Told, store: Store) -> Service:
    one = Service(SETTINGS, cast(Assignments, told), Chronicle(store), told.rescan)
    one.tending = cast(Tending, told)
    return one
