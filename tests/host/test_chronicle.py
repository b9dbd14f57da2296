"""What must hold of what the agent tells: all that is known is written down, and nothing that cannot be stops it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pageferry.agent import tending as tending_module
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.placing import Placing
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Stop, Tended
from pageferry.agent.tending import Tending
from pageferry.config import Settings
from pageferry.gate.gate import Gate
from pageferry.history.store import Store

LEDGER = {"page_bytes": 4096, "backings": [{"what": "private memory", "flows": [[0, 2, "moved", 4]]}], "rest": None}
OUTCOME: Mapping[str, Any] = {
    "complete": True,
    "refused": False,
    "pages": {"moved": 4},
    "excluded": {},
    "moved_bytes": 4 * 4096,
    "requested_pages": 4,
    "calls": 1,
    "asked_per_process_pages": 9,
    "seconds": 1.0,
    "ledger": LEDGER,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "history.sqlite3")
    yield made
    made.close()


def ended(stop: Stop | None = None) -> Migration:
    return Migration(
        Cause.SUSPEND, Stage.MOVES, nodes=(2,), sources=(0,), outcome=OUTCOME, moments={"moving": 3.0}, stop=stop
    )


def test_a_migration_is_written_down_with_its_cost_its_ledger_and_the_name_of_its_job(store: Store) -> None:
    Chronicle(store).ended(Tended(7, uid=1000, name="cfd"), ended())
    (row,) = store.migrations()
    assert (row.job, row.uid, row.event, row.nodes_from, row.nodes_to) == (7, 1000, "suspend", "0", "2")
    assert (row.bytes, row.requested, row.requests_saved) == (16384, 4, 5)
    assert (row.ledger, row.moments, row.details["name"]) == (LEDGER, {"moving": 3.0}, "cfd")


def test_what_becomes_known_after_a_migration_is_added_to_it_once(store: Store) -> None:
    chronicle, stop = Chronicle(store), Stop({"suspended": 1.0, "held": 2.0})
    chronicle.ended(Tended(7), ended(stop))
    stop.moments |= {"resumed": 4.0, "released": 5.0}
    chronicle.over(stop)
    assert store.migrations()[0].moments == {
        "moving": 3.0,
        "suspended": 1.0,
        "held": 2.0,
        "resumed": 4.0,
        "released": 5.0,
    }
    assert stop.told == []


@pytest.mark.parametrize("what", ["garbage", "folder"])
def test_no_state_of_the_history_keeps_a_migration_from_being_told(tmp_path: Path, what: str) -> None:
    path = tmp_path / "history.sqlite3"
    path.mkdir() if what == "folder" else path.write_bytes(b"garbage" * 1000)
    chronicle, stop = Chronicle(Store(path)), Stop({"held": 2.0})
    chronicle.ended(Tended(7), ended(stop))
    chronicle.served({"job": "7.srv", "event": "execjob_resize", "outcome": OUTCOME} | PBS)
    stop.moments["released"] = 3.0
    chronicle.over(stop)
    assert chronicle.counts.as_dict()["migrations complete"] == 2
    assert chronicle.lost() == (2 if what == "folder" else 0)


PBS = {
    "uid": -1,
    "began": 1.0,
    "seconds_stopped": 0.0,
    "sources": (0,),
    "nodes": (2,),
    "error": None,
    "request": "",
    "rule": "",
    "moments": {"held": 1.0},
}


class Silent:
    """Stands for whatever is told something."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_words: None


class Slurm:
    """What Slurm wants of a job."""

    suspended = True


def test_the_moments_of_a_stop_come_in_order_and_are_complete_when_the_job_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm()
    monkeypatch.setattr(tending_module, "slurm_job_user_groups", lambda _job: ())
    monkeypatch.setattr(
        tending_module, "slurm_suspension", lambda _groups: SimpleNamespace(asked=slurm.suspended), raising=True
    )
    placing = cast(Any, Silent())
    placing.nodes, placing.home = (lambda _job: (2,)), (lambda _job: (0,))
    gate = cast(Any, Silent())
    gate.frozen, gate.held = (lambda _job: True), (lambda: ())
    ours = Tending(cast(Gate, gate), cast(Placing, placing), Chronicle(store), Site(Settings()))
    began = time.time()
    ours.look(7)  # it is held, and an errand asks Slurm for a request
    (job,) = ours._jobs.values()
    assert job.phase is Phase.HELD
    migration = job.migration
    assert migration is not None
    ours.errands.close()
    migration.reached("moving")
    migration.outcome, migration.nodes = OUTCOME, (2,)
    ours._migrations._finish(job, migration)  # its memory is there while Slurm has it suspended
    assert list(store.migrations()[0].moments) == ["suspended", "moving", "held"]
    slurm.suspended = False
    ours.look(7)
    ours.errands.close()
    moments = store.migrations()[0].moments
    in_order = ["suspended", "held", "moving", "resumed", "released"]
    assert sorted(moments, key=moments.__getitem__) == in_order
    assert began <= moments["suspended"] <= moments["released"] <= time.time()
    assert job.stop is None
