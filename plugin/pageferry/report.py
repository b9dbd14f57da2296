"""What is said of a status, a plan and an outcome: an object for a program, and plain lines.

Tables are made of the same objects, in `tables`. Names from /proc and cgroups are hostile text: they are escaped here,
at the last moment.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pageferry import ledger_json, pool_report
from pageferry.comment import outcome_text
from pageferry.ferry import Outcome
from pageferry.kernel.files import printable
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import Topology
from pageferry_planner.model import ANONYMOUS, SELF, Bucket, Plan, Runs, Snapshot, Verdict

OUTCOMES = ("complete", "in place", "partial", "refused", "failed", "nothing", "observed")
"""What `outcome_word` may say."""

_STAYS = ("pinned", "no_room", "no_huge_page", "denied", "not_reached")
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Return bytes as people read them."""
    value = count / 1024
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def safe(name: str) -> str:
    """Return a hostile name as one line that a terminal shows as it stands."""
    return printable(name)


def pages_per_node(runs: Runs) -> dict[int, int]:
    """Return pages by node, ascending."""
    counted: Counter[int] = Counter()
    for node, count in zip(runs.node.tolist(), runs.count.tolist(), strict=True):
        counted[node] += count
    return dict(sorted(counted.items()))


def status_json(
    name: str, snapshot: Snapshot, topology: Topology, special: frozenset[int] = frozenset()
) -> dict[str, Any]:
    """Return where a job's memory is, against where its CPUs are, for a program; on `special` nodes it is in place."""
    cpu_nodes = frozenset().union(*(process.nodes for process in snapshot.processes))
    movable = snapshot.runs.take(snapshot.movable())
    here = pages_per_node(snapshot.runs)
    mine = pages_per_node(movable)
    away = {node: count for node, count in mine.items() if node not in cpu_nodes}
    on_purpose = sum(count for node, count in away.items() if node in special)
    return {
        "target": name,
        "processes": len(snapshot.processes),
        "page_bytes": snapshot.page_bytes,
        "cpu_nodes": sorted(cpu_nodes),
        "nodes": {
            str(node.number): {
                "bytes": here.get(node.number, 0) * snapshot.page_bytes,
                "movable_bytes": mine.get(node.number, 0) * snapshot.page_bytes,
                "free_bytes": node.free_bytes,
                "total_bytes": node.total_bytes,
                "special": node.number in special,
            }
            for node in topology.nodes
        },
        "bytes": snapshot.runs.pages() * snapshot.page_bytes,
        "remote_bytes": (sum(away.values()) - on_purpose) * snapshot.page_bytes,
        "special_bytes": on_purpose * snapshot.page_bytes,
        **_unread(snapshot),
    }


def _unread(of: Snapshot | Plan) -> dict[str, int]:
    return {"not_found_bytes": of.unread * of.page_bytes} if of.unread else {}


def unread_words(said: Mapping[str, Any]) -> list[str]:
    """Return, as a line if there is one, how much of sparse mappings nobody has found."""
    found = said.get("not_found_bytes")
    return [f"{size(found)} more are in memory, and were not found in time: mappings of terabytes"] if found else []


def plan_json(snapshot: Snapshot, plan: Plan) -> dict[str, Any]:
    """Return a plan for a program: what moves, by which carrier, what stays and why, and what that saves."""
    page = plan.page_bytes
    return {
        "from_nodes": list(plan.sources),
        "moves": [
            {"what": what, "pid": pid, "from": here, "to": there, "bytes": pages * page}
            for (what, pid, here, there), pages in _moves(snapshot, plan)
        ],
        "stays": [
            {"what": what, "rule": rule, "detail": detail, "bytes": pages * page}
            for (what, rule, detail), pages in _stays(snapshot)
        ],
        "move_bytes": plan.moves.pages() * page,
        "in_place_bytes": plan.in_place * page,
        "special_bytes": plan.special * page,
        "excluded_bytes": {rule: pages * page for rule, pages in plan.excluded.items()},
        "no_room_bytes": plan.no_room * page,
        "no_huge_page_bytes": plan.no_huge_page * page,
        "in_use_bytes": _in_use(snapshot),
        "lacking_bytes": {str(node): pages * page for node, pages in plan.lacking.items()},
        "nodes": {
            str(node): {"need_bytes": plan.need.get(node, 0) * page, "room_bytes": room * page}
            | pool_report.needed(plan, node)
            for node, room in sorted(plan.room.items())
        },
        "total_bytes": plan.total() * page,
        "requested_pages": plan.moves.pages(),
        "asked_per_process_pages": plan.asked_per_process,
        **_unread(plan),
    }


def _in_use(snapshot: Snapshot) -> int | None:
    """Return the bytes of what may move that were used of late; None: not known."""
    if snapshot.referenced is None:
        return None
    return int(snapshot.referenced[snapshot.movable()].sum()) * snapshot.page_bytes


def mappings_json(snapshot: Snapshot, mode: str) -> list[dict[str, Any]]:
    """Return for each of a job's mappings whether it may move, by which rule, and where it is; the largest first.

    `mode`: that of the job's policy; unless it is "move", nothing moves.
    """
    found: dict[tuple[str, Verdict], Counter[int]] = {}
    columns = (snapshot.runs.backing, snapshot.runs.node, snapshot.runs.count)
    for backing, node, count in zip(*(column.tolist() for column in columns), strict=True):
        verdict = snapshot.verdicts[backing] if backing != ANONYMOUS else Verdict(True, "job-only")
        verdict = verdict if mode == "move" else Verdict(False, "mode", mode)
        found.setdefault((_what(snapshot, backing), verdict), Counter())[node] += count * snapshot.page_bytes
    return [
        {
            "what": what,
            **asdict(verdict),
            "bytes": nodes.total(),
            "nodes": {str(node): count for node, count in sorted(nodes.items())},
        }
        for (what, verdict), nodes in sorted(found.items(), key=lambda entry: (-entry[1].total(), entry[0][0]))
    ]


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return what became of every page, for a program."""
    tally, page = outcome.tally, outcome.plan.page_bytes
    return {
        "complete": outcome.complete,
        "refused": bool(outcome.plan.lacking),
        "lacking_bytes": {str(node): pages * page for node, pages in outcome.plan.lacking.items()},
        "pages": {bucket.value: tally[bucket] for bucket in Bucket},
        "excluded": dict(tally.excluded),
        "total_pages": tally.total(),
        "page_bytes": page,
        "moved_bytes": tally[Bucket.MOVED] * page,
        "requested_pages": tally.requested,
        "retried_pages": tally.retried,
        "addresses": tally.addresses,
        "calls": tally.calls,
        **({"huge_pages_split": tally.split} if tally.split else {}),
        **_unread(outcome.plan),
        **pool_report.before_and_after(*outcome.pools),
        "asked_per_process_pages": outcome.plan.asked_per_process,
        "seconds": round(outcome.seconds, 6),
        "seconds_planning": round(outcome.seconds_planning, 6),
        "ledger": ledger_json.ledger_json(outcome.ledger, page),
    }


def joined(first: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """Return two outcomes of `outcome_json` as one: of a move while a job ran, and of the look at the rest of it.

    What the first brought to a target is in place at the second, unless the job has freed it since.
    """
    arrived = min(first["pages"]["moved"], again["pages"]["in_place"])
    ledger = {}
    if "ledger" in first and "ledger" in again:
        ledger = {"ledger": ledger_json.joined(first["ledger"], again["ledger"])}
        arrived = (
            ledger_json.of_bucket(ledger_json.every_flow(ledger["ledger"]), Bucket.MOVED) - again["pages"]["moved"]
        )
    pages = again["pages"] | {
        "moved": again["pages"]["moved"] + arrived,
        "in_place": again["pages"]["in_place"] - arrived,
    }
    split = first.get("huge_pages_split", 0) + again.get("huge_pages_split", 0)
    summed = ("requested_pages", "retried_pages", "addresses", "calls", "seconds", "seconds_planning")
    return {
        **again,
        **{key: first[key] + again[key] for key in summed},
        **({"huge_pages_split": split} if split else {}),
        **pool_report.joined(first, again),
        **ledger,
        "pages": pages,
        "moved_bytes": pages["moved"] * again["page_bytes"],
        "precopied_bytes": arrived * again["page_bytes"],
        "asked_per_process_pages": first["asked_per_process_pages"],
    }


def observed_json(plan: Plan, seconds: float) -> dict[str, Any]:
    """Return what would have been done, in the words of `outcome_json`: nothing has moved, and nothing was to.

    `would_move_bytes`, `would_request_pages`: what a move would have asked for.
    """
    pages = {
        Bucket.IN_PLACE: plan.in_place,
        Bucket.EXCLUDED: sum(plan.excluded.values()),
        Bucket.NO_ROOM: plan.no_room,
        Bucket.NO_HUGE_PAGE: plan.no_huge_page,
    }
    return {
        "complete": True,
        "observed": True,
        "refused": bool(plan.lacking),
        "lacking_bytes": {str(node): pages * plan.page_bytes for node, pages in plan.lacking.items()},
        "pages": {bucket.value: pages.get(bucket, 0) for bucket in Bucket},
        "excluded": dict(plan.excluded),
        "total_pages": plan.total(),
        "page_bytes": plan.page_bytes,
        "moved_bytes": 0,
        "would_move_bytes": 0 if plan.lacking else plan.moves.pages() * plan.page_bytes,
        "would_request_pages": 0 if plan.lacking else plan.moves.pages(),
        "requested_pages": 0,
        "retried_pages": 0,
        "addresses": 0,
        "calls": 0,
        "asked_per_process_pages": plan.asked_per_process,
        "seconds": round(seconds, 6),
        "seconds_planning": round(seconds, 6),
        **_unread(plan),
    }


def outcome_word(outcome: Mapping[str, Any] | None, error: str | None) -> str:
    """Return in one word what became of a migration; `outcome` as from `outcome_json`, None if nothing was asked."""
    if error:
        return "failed"
    if outcome is None:
        return "nothing"
    if outcome.get("observed"):
        return "observed"
    if outcome["refused"]:
        return "refused"
    if not outcome["complete"]:
        return "partial"
    return "complete" if outcome["moved_bytes"] else "in place"


def told(outcome: Mapping[str, Any] | None, nodes: Iterable[int], error: str | None) -> str:
    """Return what became of a migration as one line for the operator who asked for it."""
    at = time.strftime("%H:%M:%S")
    if outcome is None or error:
        return f"failed: {error}, {at}"
    observed = outcome.get("observed")
    if outcome["refused"]:
        lacking = ", ".join(f"node {node} ({size(lacks)})" for node, lacks in outcome["lacking_bytes"].items())
        return f"observed: would be refused, no room on {lacking}" if observed else f"refused: no room on {lacking}"
    if observed:
        return f"observed: would move {size(outcome['would_move_bytes'])} to nodes {format_list(nodes)}, {at}"
    stayed = {bucket: outcome["pages"][bucket] for bucket in _STAYS if outcome["pages"].get(bucket)}
    return outcome_text(outcome["moved_bytes"], nodes, stayed, at)


def timestamp(seconds: float, timespec: str = "seconds") -> str:
    """Return a time (seconds since 1970) as ISO 8601 has it, in the local time zone, with its offset."""
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec=timespec)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s"


def why(row: Mapping[str, Any]) -> str:
    """Return why a migration of the history was done: what happened, and the site's rule, if one is known."""
    rule = row["rule"] or row["details"].get("rule") or ""
    return safe(f"{row['event']}, rule {rule}" if rule else row["event"])


def tally_words(pages: Mapping[str, int], excluded: Mapping[str, int]) -> str:
    """Return how many pages ended in each bucket, and by which rules, as one line."""
    words = [f"{bucket} {count}" for bucket, count in pages.items() if count]
    rules = ", ".join(f"{safe(rule)} {count}" for rule, count in sorted(excluded.items()))
    return ", ".join(words) + (f" ({rules})" if rules else "")


def outcome_lines(outcome: Mapping[str, Any]) -> list[str]:
    """Return what `outcome_json` says as plain lines."""
    page, moved = outcome["page_bytes"], outcome["moved_bytes"]
    lines = []
    for node, lacks in outcome["lacking_bytes"].items():
        lines.append(f"refused: node {node} lacks {size(lacks)}; nothing was moved (see --when-full)")
    for bucket, pages in outcome["pages"].items():
        if pages:
            why = ", ".join(f"{rule} {count}" for rule, count in sorted(outcome["excluded"].items()))
            because = f"  ({why})" if bucket == Bucket.EXCLUDED.value else ""
            lines.append(f"{bucket:<12} {size(pages * page):>10}  {pages:>10} pages{because}")
    if "would_move_bytes" in outcome:
        lines.append(f"observed     {size(outcome['would_move_bytes']):>10}  would move; nothing was moved")
    total, seconds = outcome["total_pages"], outcome["seconds"]
    lines.append(f"{'total':<12} {size(total * page):>10}  {total:>10} pages")
    lines.append(
        f"requested {outcome['requested_pages']} pages ({outcome['retried_pages']} again) by {outcome['addresses']} "
        f"addresses in {outcome['calls']} calls; asking every process would be {outcome['asked_per_process_pages']}"
    )
    if (split := outcome.get("huge_pages_split")) is not None:
        lines.append(
            f"{split} huge pages were split on this host meanwhile, by this migration of memory or by another one"
        )
    lines += unread_words(outcome)
    lines += pool_report.changed(outcome, size)
    rate = f", {size(moved / seconds)}/s" if moved and seconds else ""
    lines.append(f"{seconds:.2f} s, {outcome['seconds_planning']:.2f} s of it to plan{rate}")
    if (stopped := outcome.get("seconds_stopped")) is not None:
        lines.append(f"the job stood still for {stopped:.2f} s")
    return lines


def _moves(snapshot: Snapshot, plan: Plan) -> list[tuple[tuple[str, int, int, int], int]]:
    counted: Counter[tuple[str, int, int, int]] = Counter()
    runs = plan.moves
    columns = (runs.backing, runs.process, runs.node, plan.target, runs.count)
    for backing, process, here, there, count in zip(*(column.tolist() for column in columns), strict=True):
        pid = plan.processes[process].pid if process != SELF else 0
        counted[_what(snapshot, backing), pid, here, there] += count
    return counted.most_common()


def _stays(snapshot: Snapshot) -> list[tuple[tuple[str, str, str], int]]:
    counted: Counter[tuple[str, str, str]] = Counter()
    for backing, count in zip(snapshot.runs.backing.tolist(), snapshot.runs.count.tolist(), strict=True):
        if backing != ANONYMOUS and not (verdict := snapshot.verdicts[backing]).moves:
            counted[_what(snapshot, backing), verdict.rule, verdict.detail] += count
    return counted.most_common()


def _what(snapshot: Snapshot, backing: int) -> str:
    return safe(snapshot.backings[backing].path) if backing != ANONYMOUS else "private memory"
