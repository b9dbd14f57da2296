"""Tables for a terminal, made of the same objects that a program gets from `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pageferry.kernel.lists import format_list
from pageferry.report import safe, size, tally_words, timestamp, unread_words, why

ROWS = 10
"""Rows of a table at most; what is left out is said in the last one."""

_BAR = 24
_HISTORY_WIDTH = 130
_PLAIN_WIDTH = 8000
"""Of what is no terminal: a row is a line there."""


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """Return the table of one job's status, with a bar for each node."""
    total = max(status["bytes"], 1)
    title = f"{safe(status['target'])}: {status['processes']} processes, {size(status['bytes'])}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading, side in (("node", "right"), ("CPUs", "left"), ("memory", "right"), ("", "left"), ("free", "right")):
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    for number, node in status["nodes"].items():
        local = int(number) in status["cpu_nodes"]
        bar = Text("█" * round(_BAR * node["bytes"] / total), style="green" if local or node["special"] else "yellow")
        table.add_row(
            number,
            "yes" if local else "special" if node["special"] else "-",
            size(node["bytes"]),
            bar,
            size(node["free_bytes"]),
        )
    remote = status["remote_bytes"]
    word = f"{size(remote)} ({remote * 100 / total:.0f} %) of it away from its CPUs" if remote else "all of it in place"
    word += f", {size(status['special_bytes'])} on special nodes" if status["special_bytes"] else ""
    parts: list[RenderableType] = [table, Text(word, style="yellow" if remote else "green")]
    parts += map(Text, unread_words(status))
    if (agent := status["agent"]) is not None and agent["phase"] != "runs":
        what = f", and its memory {agent['stage']}" if agent["stage"] else ""
        where = f", parked on {format_list(agent['parked_nodes'])}" if agent.get("parked_nodes") else ""
        parts.append(Text(f"the agent holds it ({agent['phase']}{where}){what}", style="yellow"))
    return Group(*parts)


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """Return the tables of a plan."""
    moves = table_of("moves", "by pid", "from", "to", "size")
    _fill(moves, [(m["what"], _pid(m["pid"]), str(m["from"]), str(m["to"]), size(m["bytes"])) for m in plan["moves"]])
    stays = table_of("stays", "by rule", "because", "size")
    _fill(stays, [(s["what"], s["rule"], safe(s["detail"]), size(s["bytes"])) for s in plan["stays"]])
    rooms = table_of("node", "needs", "has room for")
    for node, entry in plan["nodes"].items():
        if entry["need_bytes"]:
            rooms.add_row(node, size(entry["need_bytes"]), size(entry["room_bytes"]))
        for pages, pool in entry.get("hugetlb", {}).items():
            rooms.add_row(node, *(f"{pool[key]} hugetlb pages of {size(int(pages))}" for key in ("need", "free")))
    asked, naive = plan["requested_pages"], plan["asked_per_process_pages"]
    words = [
        f"{size(plan['move_bytes'])} to move from node {format_list(plan['from_nodes']) or 'none'}, "
        f"{size(plan['in_place_bytes'])} in place"
        + (f" ({size(plan['special_bytes'])} on special nodes)" if plan["special_bytes"] else "")
        + f", {size(sum(plan['excluded_bytes'].values()))} stay by rule"
        + (f", {size(plan['no_room_bytes'])} without room" if plan["no_room_bytes"] else "")
        + (f", {size(plan['no_huge_page_bytes'])} without a free huge page" if plan["no_huge_page_bytes"] else ""),
        f"{asked} pages to request; asking every process for all that it maps would be {naive}",
    ]
    if plan["in_use_bytes"] is not None:
        words.append(f"{size(plan['in_use_bytes'])} of what may move was in use; that goes first")
    words += unread_words(plan)
    words += [f"REFUSED: node {node} lacks {size(lack)}" for node, lack in plan["lacking_bytes"].items()]
    parts: list[RenderableType] = [table for table in (moves, stays, rooms) if table.row_count]
    return Group(*parts, *map(Text, words))


def explain_table(answer: Mapping[str, Any]) -> RenderableType:
    """Return which rule holds for a job and why, what it says, and what of the job's memory may move."""
    lines = [f"{safe(answer['target'])}: {_decided(answer)}"]
    if answer["unknown"] is not None:
        lines.append(f"what it is, is not known ({safe(answer['unknown'])}): rules that ask for it do not match")
    lines += [f"not {safe(entry['rule'])}: {safe(entry['why'])}" for entry in answer["passed_over"]]
    if answer["park_lacks"]:
        lines.append(f"no memory on this host to park it on: node {format_list(answer['park_lacks'])}")
    said = [f"{key} {_shown(value)}" for key, value in answer["policy"].items() if key != "rule"]
    mappings = table_of("mapping", "moves", "by rule", "because", "size", "on nodes")
    for entry in answer["mappings"]:
        nodes = ", ".join(f"{node}: {size(count)}" for node, count in entry["nodes"].items())
        words = (entry["what"], "yes" if entry["moves"] else "stays", entry["rule"], safe(entry["detail"]))
        mappings.add_row(*map(Text, words), size(entry["bytes"]), nodes)
    return Group(*map(Text, lines), Text("; ".join(said)), mappings)


def _decided(answer: Mapping[str, Any]) -> str:
    return f"rule {safe(answer['rule'])}" if answer["rule"] else "no rule matches; the host's settings hold"


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "default"}[value]
    return safe(", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else safe(str(value)) or "none"


def cpus_table(view: Mapping[str, Any]) -> RenderableType:
    """Return which CPUs Slurm gave each job, and which it runs on."""
    table = table_of("job", "Slurm's CPUs", "runs on", "")
    for job, cpus in view["jobs"].items():
        moved = cpus["slurm"] != cpus["real"]
        words = "launching" if cpus["launching"] else "moved" if moved else ""
        table.add_row(job, cpus["slurm"], cpus["real"], words, style="yellow" if moved else "")
    return table


def history_table(migrations: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return a row for each migration, the newest first; `saved`: requests, against asking process by process."""
    table = table_of("id", "when", "job", "why", "from", "to", "outcome", "size", "stopped", "in all", "saved")
    table.add_column("pages", overflow="fold")
    for row in migrations:
        saved = row.get("requests_saved")
        words = [tally_words(row["pages"], row["details"].get("excluded", {})), safe(row["error"])]
        table.add_row(
            str(row["id"]),
            timestamp(row["began"]),
            safe(str(row["job"])),
            Text(why(row)),
            row["nodes_from"] or "-",
            row["nodes_to"] or "-",
            row["outcome"],
            size(row["bytes"]),
            f"{row['seconds_stopped']:.2f} s",
            f"{row['seconds']:.2f} s",
            "-" if saved is None else str(saved),
            Text("; ".join(word for word in words if word)),
        )
    return table


def history_blocks(migrations: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return the same in a few lines for each, where there is no room for the table."""
    parts: list[RenderableType] = []
    for row in migrations:
        saved, nodes = row.get("requests_saved"), (row["nodes_from"] or "-", row["nodes_to"] or "-")
        words = [
            f"{size(row['bytes'])} from {nodes[0]} to {nodes[1]}, stopped {row['seconds_stopped']:.2f} s, "
            f"{row['seconds']:.2f} s in all" + ("" if saved is None else f", {saved} requests saved"),
            tally_words(row["pages"], row["details"].get("excluded", {})),
            safe(row["error"]),
        ]
        head = f"{row['id']}  {timestamp(row['began'])}  job {safe(str(row['job']))}  {why(row)}: {row['outcome']}"
        parts += [Text(head), *(Padding(Text(word), (0, 0, 0, 4)) for word in words if word)]
    return Group(*parts)


def show_history(migrations: Sequence[Mapping[str, Any]]) -> None:
    """Print what was done, as there is room."""
    wide = not Console().is_terminal or Console().width >= _HISTORY_WIDTH
    show(history_table(migrations) if wide else history_blocks(migrations))


def _pid(pid: int) -> str:
    return str(pid) if pid else "pageferry"


def table_of(*headings: str) -> Table:
    """Return an empty table; columns of numbers are set to the right."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        right = heading in {
            *("size", "needs", "has room for", "by pid", "memory", "free", "mapped", "remote", "special"),
            *("id", "stopped", "in all", "saved"),
        }
        table.add_column(heading, justify="right" if right else "left", overflow="ellipsis", no_wrap=True)
    return table


def _fill(table: Table, rows: Sequence[tuple[str, ...]]) -> None:
    for row in rows[:ROWS]:
        table.add_row(*(Text(cell) for cell in row))
    if len(rows) > ROWS:
        table.add_row(f"and {len(rows) - ROWS} more")


def show(renderable: RenderableType) -> None:
    """Print to standard output, in colour and to the width of a terminal, wide and plain elsewhere."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_PLAIN_WIDTH)
    console.print(renderable)
