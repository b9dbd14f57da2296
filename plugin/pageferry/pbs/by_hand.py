"""A PBS job's move that somebody asked for on its host: nobody else moves it meanwhile, and it is known where it went.

What is known keeps the memory there when another job ends, until PBS gives the job other nodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pageferry.kernel.topology import read_topology
from pageferry.pbs import record
from pageferry.pbs.record import FOLDER
from pageferry.schedulers.pbs import job_nodes


@contextmanager
def moving(job_id: str, folder: Path = FOLDER) -> Iterator[Callable[[tuple[int, ...]], None]]:
    """Wait until nobody moves a job's memory, and keep others from it; yield what is to be told where it went.

    Without root's rights to the records there is nothing to wait for, and nothing to tell. Raises KernelError.
    """
    if os.geteuid() != 0:
        yield lambda _nodes: None
        return
    with record.alone(job_id, folder):

        def went(nodes: tuple[int, ...]) -> None:
            known = record.load(job_id, folder)
            placed = known.placed or job_nodes(job_id, "", frozenset(), read_topology())
            after = msgspec.structs.replace(known, homes=nodes, placed=placed, settled=(), begun=False, parked=())
            record.save(job_id, msgspec.structs.replace(after, left=known.parked_or_left), folder)

        yield went
