"""Where each job's memory belongs at present: the nodes that it was last brought to, or began on.

They are the sources of the relative map when a job gets other nodes, so that what it laid out by first touch keeps
its layout. Kept for as long as the host runs, so that a new agent knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Homes:
    """The home nodes of jobs, in a file of `folder`; one that cannot be read or written costs no more than that."""

    def __init__(self, folder: Path = Path("/run/pageferry")) -> None:
        self._path = folder / "homes.json"
        self._nodes: dict[int, tuple[int, ...]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            read = json.loads(self._path.read_text())
            self._nodes = {int(job): tuple(map(int, nodes)) for job, nodes in read.items()}

    def get(self, job: int) -> tuple[int, ...] | None:
        """Return a job's home nodes, None if it was never seen."""
        return self._nodes.get(job)

    def put(self, job: int, nodes: tuple[int, ...]) -> None:
        """Say where a job's memory belongs from now on."""
        if self._nodes.get(job) != nodes:
            self._nodes[job] = nodes
            self._write()

    def keep(self, jobs: Iterable[int]) -> None:
        """Forget all other jobs."""
        left = {job: nodes for job, nodes in self._nodes.items() if job in set(jobs)}
        if left != self._nodes:
            self._nodes = left
            self._write()

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        with suppress(OSError):
            fresh.write_text(json.dumps(self._nodes))
            os.replace(fresh, self._path)  # noqa: PTH105
