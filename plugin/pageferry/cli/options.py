"""The options that several commands take: which settings, which job, what a plan is to be for; the request they make.

What is heavy is imported when it is needed, as in the commands.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageferry.cli.says import complain
from pageferry.errors import PageferryError, UsageError

if TYPE_CHECKING:
    from pageferry.ferry import Request
    from pageferry.kernel.topology import Topology

STRATEGIES = ("relative", "local", "interleave", "pack", "weighted")
WHEN_FULL = ("refuse", "partial", "spill")
HUGE_PAGES = ("split", "keep")
ORDERS = ("worth", "address")

Command = Callable[..., Any]

CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="PAGEFERRY_CONFIG",
    show_envvar=True,
    help="The settings; beside them, policy.d [default: /etc/pageferry/pageferry.toml].",
)
"""A unit's drop-in that sets the variable has said it once: for the agent, and for what checks them at a reload."""


def settings_path(config: Path | None) -> Path:
    """Return which settings a command reads; where none were named, complain if the agent of this host reads others."""
    from pageferry import wire
    from pageferry.config import PATH

    if config is not None:
        return config
    with suppress(PageferryError, OSError):
        theirs = wire.ask(wire.PATH, {"verb": "status"}, timeout=2.0).get("settings", str(PATH))
        if theirs != str(PATH):
            complain(f"the agent reads {theirs}, and this is about {PATH}: --config, or PAGEFERRY_CONFIG, names it")
    return PATH


FROM_SNAPSHOT = click.option(
    "--from-snapshot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of a job: what `pageferry snapshot` wrote, on any host.",
)


def named(command: Command) -> Command:
    """Have a command be about a job, processes or a cgroup."""
    for option in (
        click.option("--cgroup", type=click.Path(), help="All processes of a cgroup (absolute, or below the mount)."),
        click.option("--pid", type=click.IntRange(min=1), multiple=True, help="A process and all its children."),
        click.argument("job", required=False),
    ):
        command = option(command)
    return command


def request_options(command: Command, *, where_to: bool = False) -> Command:
    """Have a command take what a plan is to be for; `where_to`: it must be said."""
    for option in (
        CONFIG,
        click.option("--no-xattrs", is_flag=True, help="Do not ask files for user.pageferry, trusted.pageferry."),
        click.option("--no-reference-count", is_flag=True, help="Move files that other processes map, too."),
        click.option("--stay", multiple=True, metavar="GLOB", help="Files that never move (may be repeated)."),
        click.option(
            "--reserve",
            metavar="SIZE",
            help="Left free on each target node, as 512M [default: 1/64 of it].",
        ),
        click.option(
            "--spill-to", metavar="NODES", help="Nodes that --when-full spill may use [default: all but special ones]."
        ),
        click.option(
            "--order",
            type=click.Choice(ORDERS),
            default="worth",
            show_default=True,
            help="What goes first: what most processes map, or what comes first.",
        ),
        click.option(
            "--hot",
            type=click.FloatRange(0.1, 3600),
            metavar="SECONDS",
            help="First see for so long what the job uses, while it runs: that goes first.",
        ),
        click.option(
            "--huge-pages",
            type=click.Choice(HUGE_PAGES),
            default="split",
            show_default=True,
            help="Huge pages for which the target has none free: move split, or stay whole.",
        ),
        click.option(
            "--hugetlb-surplus",
            is_flag=True,
            help="hugetlb pages for which the target's pool has none free: move, and the pools of the nodes change.",
        ),
        click.option("--when-full", type=click.Choice(WHEN_FULL), default="refuse", show_default=True),
        click.option(
            "--weights", metavar="WEIGHTS", help="Nodes' shares, as 0:3,2:1 (weighted) [default: the kernel's]."
        ),
        click.option("--strategy", type=click.Choice(STRATEGIES), default="relative", show_default=True),
        click.option(
            "--from",
            "sources",
            metavar="NODES",
            help="Old nodes of the relative map; memory leaves special nodes that are named here [default: by memory].",
        ),
        click.option(
            "--to", "nodes", metavar="NODES", required=where_to, help="Target nodes, as 2-3 (pack: in order)."
        ),
    ):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that were typed: where they were not, the site's policy has a word."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in options.items() if source(name) is click.core.ParameterSource.COMMANDLINE}


def special_nodes(settings: Path, topology: Topology) -> frozenset[int]:
    """Return the special nodes of a host, as the site's settings name them. Raises ConfigError, UsageError."""
    from pageferry.config import load
    from pageferry.policy import CPULESS

    special = load(settings).host.special
    if special == CPULESS and not any(node.cpus for node in topology.nodes):
        raise UsageError(f'[nodes] special = "{CPULESS}": the snapshot does not say which nodes have CPUs')
    return special.on(topology)


def read_request(
    *,
    nodes: str | None,
    sources: str | None,
    strategy: str,
    order: str,
    when_full: str,
    huge_pages: str,
    hugetlb_surplus: bool,
    spill_to: str | None,
    reserve: str | None,
    weights: str | None,
    stay: tuple[str, ...],
    no_reference_count: bool,
    no_xattrs: bool,
    hot: float | None = None,
    workers: int | None = None,
    budget: float | None = None,
    config: Path | None = None,
    topology: Topology | None = None,
) -> Request:
    """Return what the options ask for, on a host of this topology (None: this one, its kernel and its site's settings).

    Raises UsageError, and ConfigError for faults in the settings.
    """
    from pageferry.ferry import Request
    from pageferry.kernel.topology import read_topology
    from pageferry.kernel.weights import read_weights
    from pageferry.mover import Limits
    from pageferry_planner.model import HugePages, Order, Strategy, Target, WhenFull
    from pageferry_planner.policy import Rules

    weighted = Strategy(strategy) is Strategy.WEIGHTED
    if weights is not None and not weighted:
        raise UsageError("--weights: for --strategy weighted")
    of_kernel = read_weights() if weighted and weights is None and topology is None else ()
    settings = settings_path(config) if topology is None else config
    topology = topology or read_topology()
    special = special_nodes(settings, topology) if settings is not None else frozenset()
    to = ordered_nodes(nodes) if nodes is not None else ()
    spill = topology.nodes_with_memory() - (special - {*to})
    return Request(
        target=Target(
            nodes=to,
            strategy=Strategy(strategy),
            sources=listed(sources, "--from") if sources is not None else None,
            when_full=WhenFull(when_full),
            spill=listed(spill_to, "--spill-to") if spill_to is not None else spill,
            order=Order(order),
            huge_pages=HugePages(huge_pages),
            weights=_weights(weights) if weights is not None else of_kernel,
            special=special,
            hugetlb_surplus=hugetlb_surplus,
        ),
        rules=Rules(stay=stay, reference_count=not no_reference_count, xattrs=not no_xattrs),
        limits=Limits(workers=workers, seconds=budget),
        reserve_bytes=_size(reserve, "--reserve") if reserve is not None else None,
        hot_seconds=hot,
    )


def ordered_nodes(nodes: str) -> tuple[int, ...]:
    """Return the nodes of --to in the order asked, each once. Raises UsageError."""
    return tuple(dict.fromkeys(node for part in nodes.split(",") for node in sorted(listed(part, "--to", whole=nodes))))


def listed(text: str, option: str, whole: str | None = None) -> frozenset[int]:
    """Return the members of an option's list; an error shows all of its text, `whole`. Raises UsageError."""
    from pageferry.kernel.lists import parse_list

    try:
        members = parse_list(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    if not members:
        raise UsageError(f"{option}: names nothing: {(whole or text)[:80]!a}")
    return members


def _weights(text: str) -> tuple[tuple[int, int], ...]:
    from pageferry.kernel.weights import parse_weights

    try:
        return parse_weights(text)
    except ValueError as error:
        raise UsageError(f"--weights: {error}, not {text[:80]!a}") from error


def _size(text: str, option: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number = text[:-1] if text[-1:].upper() in units else text
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise UsageError(f"{option}: not a size such as 512M: {text[:80]!a}")
    return int(number) * units.get(text[-1:].upper(), 1)
