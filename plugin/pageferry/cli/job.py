"""The commands about a job's memory: where it is, what a move would do, and the move.

What is heavy (numpy, rich, psutil) is imported inside the commands, so that `--version`, `--help` and a hook start
fast.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageferry.errors import Denied, PageferryError, UsageError

if TYPE_CHECKING:
    from pageferry.ferry import Request
    from pageferry.kernel.topology import Topology
    from pageferry.targets import Found, Route
    from pageferry_planner.model import Snapshot

STRATEGIES = ("relative", "local", "interleave", "pack")
WHEN_FULL = ("refuse", "partial", "spill")
ORDERS = ("worth", "address")

Command = Callable[..., Any]


def complain(text: str) -> None:
    """Say something on standard error, as one line that a terminal shows as it stands."""
    click.echo(f"pageferry: {one_line(text)}", err=True)


def one_line(text: str) -> str:
    """Return a text, with hostile names in it, as one line that a terminal shows as it stands."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def warn_of_gaps() -> None:
    """Say once, on standard error, what does not work without the capabilities that we lack."""
    from pageferry.kernel import capabilities

    for gap in capabilities.missing(capabilities.effective()):
        complain(f"without {gap.capability}: {gap.lost}")


def warn_of_use(request: Request, snapshot: Snapshot) -> None:
    """Say, on standard error, that it is not known what the job uses, if that was asked for."""
    from pageferry import hotness

    if request.hot_seconds is not None and snapshot.referenced is None:
        none = hotness.means() is hotness.Means.NONE
        why = "this kernel does not tell" if none else "it used nothing, or we may not mark its pages"
        complain(f"--hot: what the job uses is not known ({why}): what most processes map goes first")


def named(command: Command) -> Command:
    """Have a command be about a job, processes or a cgroup."""
    for option in (
        click.option("--cgroup", type=click.Path(), help="All processes of a cgroup (absolute, or below the mount)."),
        click.option("--pid", type=click.IntRange(min=1), multiple=True, help="A process and all its children."),
        click.argument("job", required=False),
    ):
        command = option(command)
    return command


def _target(command: Command) -> Command:
    return named(click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command))


FROM_SNAPSHOT = click.option(
    "--from-snapshot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of a job: what `pageferry snapshot` wrote, on any host.",
)


def _request(command: Command) -> Command:
    return request_options(command, where_to=True)


def request_options(command: Command, *, where_to: bool = False) -> Command:
    """Have a command take what a plan is to be for; `where_to`: it must be said."""
    for option in (
        click.option("--no-xattrs", is_flag=True, help="Do not ask files for user.pageferry, trusted.pageferry."),
        click.option("--no-reference-count", is_flag=True, help="Move files that other processes map, too."),
        click.option("--stay", multiple=True, metavar="GLOB", help="Files that never move (may be repeated)."),
        click.option(
            "--reserve",
            metavar="SIZE",
            help="Left free on each target node, as 512M [default: 1/64 of it].",
        ),
        click.option("--spill-to", metavar="NODES", help="Nodes that --when-full spill may use [default: all]."),
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
        click.option("--when-full", type=click.Choice(WHEN_FULL), default="refuse", show_default=True),
        click.option("--strategy", type=click.Choice(STRATEGIES), default="relative", show_default=True),
        click.option("--from", "sources", metavar="NODES", help="Old nodes of the relative map [default: by memory]."),
        click.option(
            "--to", "nodes", metavar="NODES", required=where_to, help="Target nodes, as 2-3 (pack: in order)."
        ),
    ):
        command = option(command)
    return command


@click.command()
@_target
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.2, 60),
    metavar="[SECONDS]",
    help="Show nodes, jobs, moves and events every 2 seconds, or as many, until Ctrl-C; JOB comes before it.",
)
def status(job: str | None, pid: tuple[int, ...], cgroup: str | None, as_json: bool, watch: float | None) -> int:
    """Show where a job's memory is, per node, against where its CPUs are.

    JOB is an ID of Slurm's or PBS's; without any target, all of their jobs on this host. With --watch it is told by
    the kernel's counters, which cost little and may be seconds old; users see their own jobs.
    """
    if watch is not None:
        if pid or cgroup:
            raise UsageError("--watch: shows batch jobs; name one by its id, or none")
        return _watch(job, watch, as_json)
    from pageferry import ferry, report, targets
    from pageferry_planner.policy import Rules

    found = targets.find_all() if not (job or pid or cgroup) else [targets.find(job, pid, cgroup)]
    tended = _tended()
    answers = []
    for target in found:
        snapshot, topology = ferry.survey(target.pids, Rules())
        state = tended.get(target.name.removeprefix("job "))
        answers.append(report.status_json(target.name, snapshot, topology) | {"agent": state})
    if as_json:
        click.echo(json.dumps(answers))
    elif not answers:
        click.echo("no batch job on this host")
    else:
        from pageferry.cli import tables

        for answer in answers:
            tables.show(tables.status_table(answer))
    return 0


def _watch(job: str | None, seconds: float, as_json: bool) -> int:
    from pageferry import overview, targets
    from pageferry.cli import live

    name = targets.scheduled(job).id if job else None
    return live.watch(lambda: overview.look(name), seconds, as_json=as_json)


def _tended() -> dict[str, Any]:
    """Return how the jobs of this host stand with its agent, by job ID; nothing if there is none to ask."""
    from pageferry import wire

    with suppress(PageferryError):
        jobs: dict[str, Any] = wire.ask(wire.PATH, {"verb": "status"}, timeout=2)["jobs"]
        return jobs
    return {}


@click.command()
@_target
@FROM_SNAPSHOT
@request_options
def plan(
    *,
    job: str | None,
    pid: tuple[int, ...],
    cgroup: str | None,
    as_json: bool,
    from_snapshot: Path | None,
    **options: Any,
) -> int:
    """Show what a move would do, and move nothing.

    What would move, from where to where and by which carrier; what stays and why; whether it fits. Exit code 1 if
    the target has no room. With --from-snapshot, for the job, the host and the request of a file, where the options
    do not say otherwise.
    """
    from pageferry import ferry, report

    if from_snapshot is not None:
        from pageferry.cli import replay

        snapshot, made = replay.plan_of(from_snapshot, job, pid, cgroup, options)
    else:
        from pageferry import targets

        if options["nodes"] is None:
            raise click.UsageError("Missing option '--to'.", click.get_current_context())
        target, request = targets.find(job, pid, cgroup), read_request(**options)
        warn_of_gaps()
        snapshot, made = ferry.plan(target.pids, request)
        warn_of_use(request, snapshot)
    answer = report.plan_json(snapshot, made)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        from pageferry.cli import tables

        tables.show(tables.plan_table(answer))
    return 1 if made.lacking else 0


@click.command()
@_target
@_request
@click.option("--cpus", metavar="LIST", help="CPUs to give the job first: its cpusets and, thread by thread, its pins.")
@click.option("--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop after so long, between calls.")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that move [default: by CPUs and pages].")
@click.option("--freeze", is_flag=True, help="Hold the job while its memory moves.")
@click.option("--precopy", is_flag=True, help="Move what can be while it runs; hold it for its CPUs and the rest.")
@click.option("--wait", type=click.FloatRange(min=0), default=600, show_default=True, help="Seconds, for other hosts.")
def move(
    *,
    job: str | None,
    pid: tuple[int, ...],
    cgroup: str | None,
    as_json: bool,
    cpus: str | None,
    budget: float | None,
    workers: int | None,
    freeze: bool,
    precopy: bool,
    wait: float,
    **options: Any,
) -> int:
    """Move a job's memory, each page once.

    Exit code 1 if not all of it moved; the tally says what became of every page. With the host's agent running, --cpus
    goes through it, which keeps jobs apart. A Slurm job that is not on this host is suspended, moved by its hosts'
    agents, and resumed; that takes the rights to do these things, and --to, --cpus and --strategy alone.
    """
    from pageferry import targets

    route = targets.route(job, pid, cgroup, with_cpus=cpus is not None)
    if route is targets.Route.DIRECT:
        found = targets.find(job, pid, cgroup)
        words = {"budget": budget, "workers": workers, **options}
        return _directly(found, as_json, cpus, freeze=freeze or precopy, precopy=precopy, **words)
    assert job is not None
    words = {"nodes": options["nodes"], "cpus": cpus} | given({"strategy": options["strategy"]})
    if route is targets.Route.AGENT:
        _only(route, {"freeze", "precopy"})
        return _through_agent(job, words | {"hold": freeze or precopy, "precopy": precopy}, as_json)
    _only(route, {"wait"})
    return _remotely(job, words, wait, as_json)


def _directly(target: Found, as_json: bool, cpus: str | None, *, freeze: bool, precopy: bool, **options: Any) -> int:
    from pageferry import ferry, report, strays
    from pageferry.cpus import assign
    from pageferry.gate import gate
    from pageferry.kernel.topology import read_topology
    from pageferry.mems.narrowing import Mems
    from pageferry.pbs import by_hand

    request = asked = read_request(**options)
    warn_of_gaps()
    ferry.check(request.target, read_topology())
    wanted = _list(cpus, "--cpus") if cpus is not None else None
    if target.slurm_job:
        with suppress(Denied):  # where nobody but root may look, nobody else may widen: the ferry says what that means
            Mems(target.slurm_job).admit(request.target)
    first: dict[str, Any] | None = None

    def seen(inputs: ferry.Inputs) -> None:
        warn_of_use(asked, inputs.snapshot)

    with ExitStack() as during:
        went = during.enter_context(by_hand.moving(target.pbs_job)) if target.pbs_job else None
        progress = during.enter_context(_progress(as_json))
        if precopy:
            copied = ferry.move(target.pids, request, progress, seen)
            first, request = report.outcome_json(copied), ferry.after(request, copied.plan)
        elif freeze:
            request = ferry.watch(target.pids, request)
        with ExitStack() as still:
            if freeze:
                still.enter_context(gate.held(target.holds, target.pids if not target.holds else ()))
            began = time.monotonic()
            if wanted is not None:
                assign.assign(wanted, target.pids, target.cpusets)
            stopped = None
            if precopy and strays.few(target.holds, request.target.nodes):
                still.close()
                stopped = time.monotonic() - began
            outcome = ferry.move(target.pids, request, progress, *(() if precopy else (seen,)))
            stopped = time.monotonic() - began if stopped is None else stopped
        if went is not None and not outcome.plan.lacking:
            went(request.target.nodes)
    answer = report.outcome_json(outcome)
    answer = report.joined(first, answer) if first is not None else answer
    return show_outcome(answer | ({"seconds_stopped": round(stopped, 6)} if freeze else {}), as_json)


def _through_agent(job: str, words: dict[str, Any], as_json: bool) -> int:
    from pageferry import wire
    from pageferry.schedulers.slurm import Slurm

    message = {"verb": "move", "job": int(Slurm().find(job).id), **words}
    return show_outcome(wire.ask(wire.PATH, message, timeout=3600)["outcome"], as_json)


def _remotely(job: str, words: dict[str, Any], seconds: float, as_json: bool) -> int:
    from pageferry import comment, remote
    from pageferry.schedulers import slurm_api
    from pageferry_planner.model import Strategy

    cpus = _list(words["cpus"], "--cpus") if words["cpus"] is not None else None
    nodes = _ordered(words["nodes"])
    control = slurm_api.choose()
    strategy = Strategy(words["strategy"]) if "strategy" in words else None
    request = comment.Request(comment.Wish(nodes, cpus, strategy))
    said = remote.move(control, job, request, seconds, tell=complain)
    if as_json:
        click.echo(json.dumps({"told": said or None}))
    elif said:
        click.echo(said)
    if not said:
        complain("its hosts have not said yet what became of it: see scontrol show job, or pageferry history there")
        return 1
    return 1 if any(word in said for word in ("failed: ", "refused: ", " stayed (")) else 0


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that were typed: where they were not, the site's policy has a word."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in options.items() if source(name) is not click.core.ParameterSource.DEFAULT}


def _only(route: Route, also: set[str]) -> None:
    """Raise UsageError for options that were given and that an agent does not take: the site's settings hold there."""
    context = click.get_current_context()
    taken = {"job", "as_json", "nodes", "cpus", "strategy", *also}
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in taken
        and context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError(f"{', '.join(given)}: not through {route.value}; the settings of the job's hosts hold there")


def show_outcome(outcome: dict[str, Any], as_json: bool) -> int:
    """Print what became of every page; return the exit code."""
    from pageferry import report

    if as_json:
        click.echo(json.dumps(outcome))
    else:
        click.echo("\n".join(report.outcome_lines(outcome)))
    return 0 if outcome["complete"] else 1


def read_request(
    *,
    nodes: str | None,
    sources: str | None,
    strategy: str,
    order: str,
    when_full: str,
    spill_to: str | None,
    reserve: str | None,
    stay: tuple[str, ...],
    no_reference_count: bool,
    no_xattrs: bool,
    hot: float | None = None,
    workers: int | None = None,
    budget: float | None = None,
    topology: Topology | None = None,
) -> Request:
    """Return what the options ask for, on a host of this topology (None: this one). Raises UsageError."""
    from pageferry.ferry import Request
    from pageferry.kernel.topology import read_topology
    from pageferry.mover import Limits
    from pageferry_planner.model import Order, Strategy, Target, WhenFull
    from pageferry_planner.policy import Rules

    topology = topology or read_topology()
    spill = _list(spill_to, "--spill-to") if spill_to is not None else topology.nodes_with_memory()
    return Request(
        target=Target(
            nodes=_ordered(nodes) if nodes is not None else (),
            strategy=Strategy(strategy),
            sources=_list(sources, "--from") if sources is not None else None,
            when_full=WhenFull(when_full),
            spill=spill,
            order=Order(order),
        ),
        rules=Rules(stay=stay, reference_count=not no_reference_count, xattrs=not no_xattrs),
        limits=Limits(workers=workers, seconds=budget),
        reserve_bytes=_size(reserve, "--reserve") if reserve is not None else None,
        hot_seconds=hot,
    )


def _ordered(nodes: str) -> tuple[int, ...]:
    """Return the nodes of --to in the order asked, each once."""
    return tuple(dict.fromkeys(node for part in nodes.split(",") for node in sorted(_list(part, "--to", whole=nodes))))


def _list(text: str, option: str, whole: str | None = None) -> frozenset[int]:
    from pageferry.kernel.lists import parse_list

    try:
        members = parse_list(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    if not members:
        raise UsageError(f"{option}: names nothing: {(whole or text)[:80]!a}")
    return members


def _size(text: str, option: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number = text[:-1] if text[-1:].upper() in units else text
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise UsageError(f"{option}: not a size such as 512M: {text[:80]!a}")
    return int(number) * units.get(text[-1:].upper(), 1)


@contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told of the progress: a bar on a terminal, plain lines in a log, nothing for a program."""
    if as_json:
        yield lambda _done, _of: None
    elif not sys.stderr.isatty():
        yield _plain_progress()
    else:
        import mmap

        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("move", total=None)
            yield lambda done, of: bar.update(task, completed=done * mmap.PAGESIZE, total=of * mmap.PAGESIZE)


def _plain_progress() -> Callable[[int, int], None]:
    said = 0

    def say(done: int, of: int) -> None:
        nonlocal said
        tenth = done * 10 // max(of, 1)
        if tenth > said:
            said = tenth
            click.echo(f"pageferry: {done} of {of} pages", err=True)

    return say
