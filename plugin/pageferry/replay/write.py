"""A plan's inputs → the lines of a snapshot file, and the file: whole or not at all, for its owner alone.

What a line holds is `lines`'.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from pageferry import __version__
from pageferry.errors import KernelError, UsageError
from pageferry.ferry import Inputs
from pageferry.kernel.files import printable, translated
from pageferry.kernel.lists import format_list
from pageferry.replay import lines as form
from pageferry_planner.columns import Columns
from pageferry_planner.model import Target
from pageferry_planner.policy import MOVE, STAY, Facts


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a snapshot file says: the inputs of a plan, of whom, and whether names in it were replaced."""

    of: str
    inputs: Inputs
    anonymised: bool = False


def lines(recorded: Recorded, most_bytes: int = form.MOST_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file. Raises UsageError where that would be more than a reader takes."""
    left = most_bytes
    for kind in _content(recorded):
        line = json.dumps(kind, separators=(",", ":")).encode() + b"\n"  # ASCII: a terminal shows it as it stands
        left -= len(line)
        if left < 0 or len(line) > form.MOST_LINE_BYTES:
            raise UsageError(f"{recorded.of} is too much for a snapshot: more than {most_bytes >> 20} MiB of text")
        yield line


def save(path: Path, text: Iterable[bytes]) -> None:
    """Write a file, readable for us alone; one of that name is replaced when all is written.

    Raises KernelError, and UsageError for what is there and no file: a device would be replaced, too.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{printable(path)}: there, and not a file")
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=".snapshot.", dir=path.parent)  # 0600
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(text)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise KernelError(str(translated(error, path))) from error
        raise


def _content(recorded: Recorded) -> Iterator[Any]:
    inputs = recorded.inputs
    snapshot, nodes = inputs.snapshot, inputs.topology.nodes
    if max(len(snapshot.vmas), len(snapshot.runs)) > form.MOST_ROWS:
        raise UsageError(f"{recorded.of} is too much for a snapshot: more than {form.MOST_ROWS} mappings or runs")
    yield msgspec.to_builtins(
        form.Head(
            pageferry_snapshot=form.VERSION,
            pageferry=__version__,
            of=printable(recorded.of),
            anonymised=recorded.anonymised,
            page_bytes=snapshot.page_bytes,
            asked_per_process=snapshot.asked_per_process,
            reserve_bytes=inputs.request.reserve_bytes,
            target=_target(inputs.request.target),
            rules=inputs.request.rules,
            nodes=len(nodes),
            processes=len(snapshot.processes),
            backings=len(snapshot.backings),
            vmas=len(snapshot.vmas),
            runs=len(snapshot.runs),
            unread=snapshot.unread,
            folios=snapshot.folios,
        )
    )
    for node in nodes:
        yield {
            "node": node.number,
            "total_bytes": node.total_bytes,
            "free_bytes": node.free_bytes,
            "file_cache_bytes": node.file_cache_bytes,
            "kept_free_bytes": inputs.kept_free.get(node.number, 0),
            "distances": [node.distances[other.number] for other in nodes],
            "free_huge_pages": inputs.free_huge.get(node.number, 0),
            "cpus": format_list(node.cpus),
            "free_hugepages": [[size, free] for size, free in node.free_hugepages.items()],
        }
    for process in snapshot.processes:
        yield {
            "pid": process.pid,
            "start_time": process.start_time,
            "name": process.name,
            "nodes": format_list(process.nodes),
            "mems_allowed": format_list(process.mems_allowed),
        }
    for backing, facts, verdict in zip(snapshot.backings, inputs.facts, snapshot.verdicts, strict=True):
        yield {
            "device": backing.device,
            "inode": backing.inode,
            "space": backing.space,
            "path": backing.path,
            "facts": msgspec.to_builtins(_opinions(facts)),
            "moves": verdict.moves,
            "rule": verdict.rule,
            "detail": verdict.detail,
        }
    yield from _rows("vmas", snapshot.vmas)
    for rows in _rows("runs", snapshot.runs):
        part = slice(rows["runs"], rows["runs"] + form.PIECE_ROWS)
        yield rows if snapshot.referenced is None else rows | {"referenced": snapshot.referenced[part].tolist()}


def _rows(what: str, table: Columns) -> Iterator[dict[str, Any]]:
    for first in range(0, len(table), form.PIECE_ROWS):
        columns = (column[first : first + form.PIECE_ROWS].astype(int).tolist() for column in table.columns())
        yield {what: first} | dict(zip(type(table).__annotations__, columns, strict=True))


def _target(target: Target) -> form.TargetPart:
    sources = tuple(sorted(target.sources)) if target.sources is not None else None
    spill = tuple(sorted(target.spill))
    return form.TargetPart(
        target.nodes,
        target.strategy.value,
        sources,
        target.when_full.value,
        spill,
        target.order.value,
        target.huge_pages.value,
        target.weights,
        tuple(sorted(target.special)),
        target.hugetlb_surplus,
    )


def _opinions(facts: Facts) -> Facts:
    """Return the facts without what files say in their attributes that no rule asks for."""
    trusted, user = (text if text in {STAY, MOVE} else "" for text in (facts.xattr_trusted, facts.xattr_user))
    return replace(facts, xattr_trusted=trusted, xattr_user=user)
