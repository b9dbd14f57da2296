"""A snapshot file → a plan's inputs. The file may be damaged, cut short or hostile: one line says what is wrong where.

No more is allocated than the limits of `lines` allow, now or when the planner cuts the runs; what a line alone may
hold is said there, what lines say of one another is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from pageferry.errors import KernelError, UsageError, Vanished
from pageferry.ferry import Inputs, Request
from pageferry.kernel.files import open_file, printable
from pageferry.kernel.lists import parse_list
from pageferry.kernel.topology import Node, Topology
from pageferry.replay import lines as form
from pageferry.replay.write import Recorded
from pageferry_planner.capacity import HUGE_PAGES
from pageferry_planner.columns import Ints
from pageferry_planner.model import (
    ANONYMOUS,
    SELF,
    Backing,
    HugePages,
    Kind,
    Order,
    Process,
    Ranges,
    Runs,
    Snapshot,
    Strategy,
    Target,
    Verdict,
    WhenFull,
)
from pageferry_planner.policy import Facts

Written = TypeVar("Written", bound=form.Line)
Table = TypeVar("Table", Ranges, Runs)


_FOLIOS = {"unit", "kind", "folio"}


def read(path: Path) -> Recorded:
    """Return what a file says. Raises UsageError, with file and line, for whatever is wrong with it."""
    try:
        with open_file(path) as file:
            return _Reader(file, printable(path)).whole()
    except OSError as error:
        raise UsageError(f"{printable(path)}: {error.strerror}") from error
    except (KernelError, Vanished) as error:
        raise UsageError(str(error)) from error


class _Reader:
    """Reads one file, from its first line to its last."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        self._line = 0
        self._bytes = 0
        self._sets: dict[str, frozenset[int]] = {}
        self._members = 0
        self._outsiders = 0

    def whole(self) -> Recorded:
        head = self._head()
        topology, kept_free, free_huge = self._nodes(head.nodes)
        processes = tuple(self._process() for _ in range(head.processes))
        files = [self._backing() for _ in range(head.backings)]
        backings, facts, verdicts = zip(*files, strict=True) if files else ((), (), ())
        vmas, _ = _table(Ranges, self._columns(form.VmaRows, head.vmas, head))
        numbers = frozenset(node.number for node in topology.nodes)
        moving = {number for number, verdict in enumerate(verdicts) if verdict.moves}
        unmapped = frozenset(moving.difference(vmas.backing.tolist()))
        runs, referenced = _table(Runs, self._columns(form.RunRows, head.runs, head, numbers, unmapped))
        if self._file.read(1):
            self._line += 1
            raise self._fault("more lines than the first one says")
        if _cuts(runs, vmas) > form.MOST_CUTS:
            raise UsageError(f"{self._name}: its runs have more pages, or parts, than any host's memory")
        snapshot = Snapshot(
            page_bytes=head.page_bytes,
            processes=processes,
            backings=backings,
            verdicts=verdicts,
            vmas=vmas,
            runs=runs,
            asked_per_process=head.asked_per_process,
            referenced=referenced,
            unread=head.unread,
            folios=head.folios,
        )
        request = Request(_target(head.target), head.rules, reserve_bytes=head.reserve_bytes)
        inputs = Inputs(snapshot, facts, topology, kept_free, request, free_huge)
        return Recorded(head.of, inputs, head.anonymised)

    def _fault(self, what: str) -> UsageError:
        return UsageError(f"{self._name}:{self._line}: {what}")

    def _object(self) -> Any:
        """Return the next line's object: JSON, of a size that a line may have."""
        self._line += 1
        raw = self._file.readline(form.MOST_LINE_BYTES + 1)
        self._bytes += len(raw)
        if len(raw) > form.MOST_LINE_BYTES or self._bytes > form.MOST_BYTES:
            raise self._fault("too long for a snapshot")
        if not raw.endswith(b"\n"):
            raise self._fault("the file ends here, and is not whole")
        try:
            found = json.loads(raw.decode("ascii"))
            if b"\\ud" in raw.lower():  # of lone surrogates, only those that stand for a byte
                json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except (ValueError, RecursionError) as error:
            raise self._fault("not a line of JSON in ASCII") from error
        return found

    def _next(self, kind: type[Written]) -> Written:
        return self._understood(self._object(), kind)

    def _understood(self, found: Any, kind: type[Written]) -> Written:
        try:
            return msgspec.convert(found, kind)
        except UnicodeError as error:  # where msgspec compares a name with what it knows
            raise self._fault("a word that is not UTF-8") from error
        except msgspec.ValidationError as error:
            what = str(error).replace("`", "")
            raise self._fault(printable((what[:1].lower() + what[1:200]).encode("utf-8", "surrogateescape"))) from error

    def _head(self) -> form.Head:
        found = self._object()
        version = found.get("pageferry_snapshot") if isinstance(found, dict) else None
        if type(version) is not int:
            raise self._fault("not a snapshot of pageferry's")
        if version != form.VERSION:
            raise self._fault(f"a snapshot of version {version}; this pageferry reads version {form.VERSION}")
        return self._understood(found, form.Head)

    def _nodes(self, count: int) -> tuple[Topology, dict[int, int], dict[int, int]]:
        rows = []
        for _ in range(count):
            rows.append(self._next(form.NodeLine))
            if len(rows[-1].distances) != count:
                raise self._fault(f"not one distance for each of the {count} nodes")
            if len(rows) > 1 and rows[-1].node <= rows[-2].node:
                raise self._fault("nodes are not in ascending order")
        numbers = [row.node for row in rows]
        nodes = tuple(
            Node(
                number=row.node,
                cpus=self._set(row.cpus),
                total_bytes=row.total_bytes,
                free_bytes=row.free_bytes,
                file_cache_bytes=row.file_cache_bytes,
                distances=dict(zip(numbers, row.distances, strict=True)),
                free_hugepages=dict(row.free_hugepages),
            )
            for row in rows
        )
        kept_free = {row.node: row.kept_free_bytes for row in rows}
        return Topology(nodes), kept_free, {row.node: row.free_huge_pages for row in rows if row.free_huge_pages}

    def _process(self) -> Process:
        row = self._next(form.ProcessLine)
        return Process(row.pid, row.start_time, row.name, self._set(row.nodes), self._set(row.mems_allowed))

    def _set(self, text: str) -> frozenset[int]:
        """Return the members of a list; processes of a job have the same few."""
        if text not in self._sets:
            try:
                self._sets[text] = parse_list(text)
            except ValueError as error:
                raise self._fault(str(error)) from error
            self._members += len(self._sets[text])
            if self._members > form.MOST_MEMBERS:
                raise self._fault("too many different lists of nodes")
        return self._sets[text]

    def _backing(self) -> tuple[Backing, Facts, Verdict]:
        row = self._next(form.BackingLine)
        self._outsiders += len(row.facts.external_pids)
        if self._outsiders > form.MOST_OUTSIDERS:
            raise self._fault("too many processes outside the job")
        return (
            Backing(row.device, row.inode, row.space, row.path),
            row.facts,
            Verdict(row.moves, row.rule, row.detail),
        )

    def _columns(
        self,
        line: type[form.VmaRows | form.RunRows],
        rows: int,
        head: form.Head,
        nodes: frozenset[int] = frozenset(),
        unmapped: frozenset[int] = frozenset(),
    ) -> Mapping[str, Ints]:
        """Return the columns of a table, from all of its lines; none if it has no rows.

        Of runs: on `nodes`, and of none of the backings that no mapping shows.
        """
        parts: list[Mapping[str, Ints]] = []
        first = 0
        while first < rows:
            found = msgspec.structs.asdict(self._next(line))
            at = found.pop(line.__struct_fields__[0])
            columns = {name: np.array(values, np.int64) for name, values in found.items() if values is not None}
            lengths = {len(column) for column in columns.values()}
            if at != first or len(lengths) != 1 or lengths == {0} or first + max(lengths) > rows:
                raise self._fault(f"not the next rows, from {first} on, of {rows}, or columns of different lengths")
            if parts and columns.keys() != parts[0].keys():
                raise self._fault("other columns than in the lines before")
            self._check(columns, head, nodes, unmapped)
            first += max(lengths)
            parts.append(columns)
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def _check(
        self, columns: Mapping[str, Ints], head: form.Head, nodes: frozenset[int], unmapped: frozenset[int]
    ) -> None:
        least = {"process": SELF, "backing": ANONYMOUS, "count": 1, "unit": 1}
        below = {"process": head.processes, "backing": head.backings, "private": 2, "kind": len(Kind)}
        for name, column in columns.items():
            if column.min() < least.get(name, 0) or (name in below and column.max() >= below[name]):
                raise self._fault(f"{name}: a number that nothing has")
        if "referenced" in columns and (columns["referenced"] > columns["count"]).any():
            raise self._fault("referenced: more pages than there are")
        if columns.keys() & _FOLIOS and not _folios(columns):
            raise self._fault("unit, kind, folio: no folios, or parts of some")
        if nodes and not nodes.issuperset(columns["node"].tolist()):
            raise self._fault("node: a number that no node has")
        if not unmapped.isdisjoint(columns["backing"].tolist()):  # what stays may be mapped outside the job alone
            raise self._fault("backing: a file that no mapping shows")


def _table(kind: type[Table], columns: Mapping[str, Ints]) -> tuple[Table, Ints | None]:
    """Return a table, and what of its rows was referenced, if that is known."""
    if not columns:
        return kind.empty(), None
    nothing = np.zeros_like(columns["page"])
    pages = {"unit": nothing + 1, "kind": nothing, "folio": nothing}  # what older files are of
    typed: list[Any] = [(pages | dict(columns))[name] for name in kind.__annotations__]
    if "private" in columns:
        typed[-1] = typed[-1].astype(bool)
    return kind(*typed), columns.get("referenced")


def _folios(columns: Mapping[str, Ints]) -> bool:
    """Say whether each row is of ordinary pages, of whole folios, or of a part of one."""
    if not columns.keys() >= _FOLIOS:
        return False
    count, unit, kind, folio = (columns[name] for name in ("count", "unit", "kind", "folio"))
    single, part = kind == Kind.PAGE, kind == Kind.PART
    whole = np.where(part, count < unit, (count % unit == 0) & (folio == 0))
    return bool(((unit == 1) == single).all() and whole.all())


def _cuts(runs: Runs, vmas: Ranges) -> int:
    """Return into how many parts the runs can be cut at most, by huge pages and where mappings begin and end."""
    mapped = vmas.take(vmas.backing != ANONYMOUS)
    edge = np.concatenate([mapped.index, mapped.index + mapped.count])
    backing = np.concatenate([mapped.backing, mapped.backing])
    order = np.lexsort((edge, backing))
    edge, backing = edge[order], backing[order]
    fresh = np.append(True, (edge[1:] != edge[:-1]) | (backing[1:] != backing[:-1]))[: len(edge)]
    edges = np.bincount(backing[fresh], minlength=int(runs.backing.max(initial=0)) + 1)
    of_files = runs.take(runs.backing != ANONYMOUS)
    by_edges = np.minimum(of_files.count, edges[of_files.backing]).sum()
    return int((runs.count / HUGE_PAGES + 2).sum() + by_edges)


def _target(part: form.TargetPart) -> Target:
    return Target(
        nodes=tuple(dict.fromkeys(part.nodes)),
        strategy=Strategy(part.strategy),
        sources=frozenset(part.sources) if part.sources is not None else None,
        when_full=WhenFull(part.when_full),
        spill=frozenset(part.spill),
        order=Order(part.order),
        huge_pages=HugePages(part.huge_pages),
        weights=part.weights,
        special=frozenset(part.special),
        hugetlb_surplus=part.hugetlb_surplus,
    )
