"""What is to be known of jobs for as long as the host runs, also by the next agent.

Home nodes: where a job's memory belongs at present, those that it was last brought to, or began on. They are the
sources of the relative map when the job gets other nodes, so that what it laid out by first touch keeps its layout.
Where it is parked, and has to come back from. And the requests that were served last, the operator's and the owner's,
which may still stand in the job's comments.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pageferry.errors import PageferryError, Vanished
from pageferry.kernel.files import printable, read_file
from pageferry.kernel.lists import MOST_NODES

_log = logging.getLogger(__name__)

_Job = Annotated[int, Meta(ge=1, lt=1 << 32)]
_Nodes = tuple[Annotated[int, Meta(ge=0, lt=MOST_NODES)], ...]


class Homes:
    """The home nodes, parked memory and served requests of jobs, in a file of `folder`.

    One that cannot be read or written costs no more than that.
    """

    def __init__(self, folder: Path = Path("/run/pageferry")) -> None:
        self.folder = folder
        self._path = folder / "homes.json"
        tables = _Tables(self._path)
        self._nodes: dict[int, tuple[int, ...]] = tables.of("nodes", _Nodes)
        self._served: dict[int, str] = tables.of("served", str)
        self._owners: dict[int, str] = tables.of("owners", str)
        self._parked: dict[int, tuple[int, ...]] = tables.of("parked", _Nodes)
        self._left: dict[int, tuple[int, ...]] = tables.of("left", _Nodes)
        if tables.damaged:
            _log.warning("%s: damaged, %d of its entries not used", printable(self._path), tables.damaged)

    def get(self, job: int) -> tuple[int, ...] | None:
        """Return a job's home nodes, None if it was never seen."""
        return self._nodes.get(job)

    def put(self, job: int, nodes: tuple[int, ...]) -> None:
        """Say where a job's memory belongs from now on; it is not parked."""
        if self._nodes.get(job) != nodes or job in self._parked:
            self._nodes[job] = nodes
            self._parked.pop(job, None)
            self._write()

    def parked(self, job: int) -> tuple[int, ...]:
        """Return the nodes that a job's memory is parked on, as far as they had room; none: it is not."""
        return self._parked.get(job, ())

    def park(self, job: int, nodes: tuple[int, ...]) -> None:
        """Say that a job's memory is parked on these nodes from now on, or (none) no longer."""
        if self._parked.get(job, ()) != nodes:
            self._parked[job] = nodes
            if not nodes:
                del self._parked[job]
            self._write()

    def left(self, job: int) -> tuple[int, ...]:
        """Return the nodes that a job was parked on and has not all come back from."""
        return self._left.get(job, ())

    def leave(self, job: int, nodes: tuple[int, ...]) -> None:
        """Say that what a job could not bring back from these nodes is there; none: it is all back."""
        if self._left.get(job, ()) != nodes:
            self._left[job] = nodes
            if not nodes:
                del self._left[job]
            self._write()

    def served(self, job: int) -> str:
        """Return the request of a job that was served last, "" if none was."""
        return self._served.get(job, "")

    def put_served(self, job: int, text: str) -> None:
        """Say which request of a job was served last."""
        if self._served.get(job) != text:
            self._served[job] = text
            self._write()

    def owners(self, job: int) -> str:
        """Return the request of a job's owner that was served last, "" if none was."""
        return self._owners.get(job, "")

    def put_owners(self, job: int, text: str) -> None:
        """Say which request of a job's owner was served last."""
        if self._owners.get(job) != text:
            self._owners[job] = text
            self._write()

    def keep(self, jobs: Iterable[int]) -> None:
        """Forget all other jobs."""
        left = set(jobs)
        before = self._count()
        self._nodes = {job: nodes for job, nodes in self._nodes.items() if job in left}
        self._served = {job: text for job, text in self._served.items() if job in left}
        self._owners = {job: text for job, text in self._owners.items() if job in left}
        self._parked = {job: nodes for job, nodes in self._parked.items() if job in left}
        self._left = {job: nodes for job, nodes in self._left.items() if job in left}
        if self._count() != before:
            self._write()

    def _count(self) -> int:
        return len(self._nodes) + len(self._served) + len(self._owners) + len(self._parked) + len(self._left)

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        with suppress(OSError):
            told = {"nodes": self._nodes, "served": self._served, "owners": self._owners, "parked": self._parked}
            fresh.write_text(json.dumps(told | {"left": self._left}))
            os.replace(fresh, self._path)  # noqa: PTH105


class _Tables:
    """What was read of a file: entries by job, in tables; `damaged`: how many cannot be used."""

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        self._tables: dict[str, Any] = {}
        try:
            read = json.loads(read_file(path))  # not msgspec's: a comment may have held bytes that are no UTF-8
            self._tables = msgspec.convert(read, dict[str, Any])
        except Vanished:
            pass
        except PageferryError as error:
            _log.warning("cannot be read: %s", error)
        except (ValueError, RecursionError) as error:
            _log.warning("%s: damaged, not used: %s", printable(path), error)

    def of(self, name: str, kind: Any) -> dict[int, Any]:
        """Return the entries of a table, by job; each is read alone."""
        table = self._tables.get(name, {})
        if not isinstance(table, dict):
            self.damaged += 1
            return {}
        found: dict[int, Any] = {}
        for key, value in table.items():
            try:
                found[_job(key)] = msgspec.convert(value, kind)
            except (msgspec.ValidationError, ValueError):
                self.damaged += 1
        return found


def _job(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= len(str(1 << 32))):
        raise ValueError("not a job")
    return msgspec.convert(int(key), _Job)
