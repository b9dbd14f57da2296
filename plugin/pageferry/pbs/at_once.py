"""What is seen to at once when PBS's hook says something: MoM waits, so few files are read, and nothing is moved.

What takes longer is `serve`'s, if there is anything left to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pageferry.kernel.topology import read_topology
from pageferry.pbs import record
from pageferry.pbs.asked import understood, unfit
from pageferry.pbs.case import Case, known_at_once
from pageferry.pbs.event import PbsJob
from pageferry.pbs.record import FOLDER, Record
from pageferry.policy import Mode
from pageferry.schedulers.pbs import is_stopped, job_nodes


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether nothing is left to do for a job that is about to run again; `refused`: why its fresh request is."""

    settled: bool
    refused: str = ""


def ready(case: Case) -> Ready:
    """See whether a job that is about to run again has all of its memory where it belongs, since it was suspended.

    So it has if its policy is not to move it, and it asks for nothing. A request that makes no sense is refused. What
    is known of the job says so, and that it runs. Few files are read, and no page table: MoM waits for this.
    """
    job, hosts, folder = case.job, case.hosts, case.folder
    known = record.load(job.id, folder)
    asked = understood(job, hosts, known, case.policy)
    topology = read_topology()
    refused = ""
    if asked.fresh and (error := asked.error or unfit(asked.wish, topology)):
        from pageferry import report

        refused = report.told(None, (), error)
        known = msgspec.structs.replace(known, served=asked.text, told=refused)
        record.save(job.id, known, folder)
        asked = understood(job, hosts, known, case.policy)
    if case.policy.mode is not Mode.MOVE and not asked.fresh and not known.parked:
        return Ready(True, refused)
    where = asked.wish.nodes if asked.wish else job_nodes(job.id, job.exec_vnode, hosts, topology)
    if not where and not asked.text:
        return Ready(True, refused)  # neither PBS nor anybody says where its memory belongs
    if not known.settled or known.settled != where or asked.fresh or asked.error:
        return Ready(False, refused)
    record.save(job.id, msgspec.structs.replace(known, settled=()), folder)
    return Ready(True, refused)


def stands(job: PbsJob) -> bool:
    """Say whether all of a job stands still, as MoM has it stopped."""
    return is_stopped(known_at_once(job))


def begin(job: PbsJob, hosts: frozenset[str], folder: Path = FOLDER) -> None:
    """Take note of where a job begins, which may have run here before under the same ID."""
    nodes = job_nodes(job.id, job.exec_vnode, hosts, read_topology())
    record.save(job.id, Record(homes=nodes, placed=nodes, facts=job.facts()), folder)


def unsettle(job: PbsJob, folder: Path = FOLDER) -> None:
    """Take note that a job was suspended again: what was known of an earlier suspension holds no more."""
    known = record.load(job.id, folder)
    if known.settled:
        record.save(job.id, msgspec.structs.replace(known, settled=()), folder)


def take_note(job: PbsJob, hosts: frozenset[str], folder: Path = FOLDER) -> bool:
    """Look at the nodes that PBS gives a job, and say whether they are others than at the last look (drift).

    So it is with one that runs with its memory parked: nobody told us that it was to be resumed.
    """
    known = record.load(job.id, folder)
    if known.parked and not is_stopped(known_at_once(job)):
        return True
    nodes = job_nodes(job.id, job.exec_vnode, hosts, read_topology())
    if not nodes or nodes == known.placed:
        return False
    if known.placed:
        return True
    noted = msgspec.structs.replace(known, placed=nodes, homes=known.homes or nodes, facts=job.facts())
    record.save(job.id, noted, folder)
    return False
