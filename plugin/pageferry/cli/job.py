"""The commands about a job's memory: where it is, what a move would do, and the move.

What is heavy (numpy, rich, psutil) is imported inside the commands, so that `--version`, `--help` and a hook start
fast.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageferry.cli.options import (
    CONFIG,
    FROM_SNAPSHOT,
    Command,
    given,
    listed,
    named,
    ordered_nodes,
    read_request,
    request_options,
    settings_path,
)
from pageferry.cli.says import complain, progress, show_outcome, warn_of_gaps, warn_of_use
from pageferry.errors import ConfigError, Denied, KernelError, PageferryError, UsageError, Vanished

if TYPE_CHECKING:
    from pageferry.kernel.topology import Topology
    from pageferry.targets import Found, Route
    from pageferry_planner.model import Snapshot


def _target(command: Command) -> Command:
    return named(click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command))


def _request(command: Command) -> Command:
    return request_options(command, where_to=True)


@click.command()
@_target
@CONFIG
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.2, 60),
    metavar="[SECONDS]",
    help="Show nodes, jobs, moves and events every 2 seconds, or as many, until Ctrl-C; JOB comes before it.",
)
def status(
    *,
    job: str | None,
    pid: tuple[int, ...],
    cgroup: str | None,
    as_json: bool,
    config: Path | None,
    watch: float | None,
) -> int:
    """Show where a job's memory is, per node, against where its CPUs are.

    JOB is an ID of Slurm's or PBS's; without any target, all of their jobs on this host. Of one target it also names
    the memory policies (numactl, mbind). With --watch it is told by the kernel's counters, which cost little and may
    be seconds old; users see their own jobs.
    """
    if watch is not None:
        if pid or cgroup:
            raise UsageError("--watch: shows batch jobs; name one by its id, or none")
        return _watch(job, watch, config, as_json)
    from pageferry import report, targets
    from pageferry.cli import mempolicy

    one = bool(job or pid or cgroup)
    found = [targets.find(job, pid, cgroup)] if one else targets.find_all()
    tended, special_of = _tended(), _special_of(config)
    answers = []
    for target, snapshot, topology in [_survey(found[0])] if one else _survey_all(found):
        state = tended.get(target.name.removeprefix("job "))
        policies = mempolicy.of_job(target.pids, snapshot) if one else {}
        answer = report.status_json(target.name, snapshot, topology, special_of(topology))
        answers.append((target, answer | {"agent": state} | policies))
    if as_json:
        click.echo(json.dumps([answer for _, answer in answers]))
    elif not answers:
        click.echo("no batch job on this host" if not found else "no batch job on this host can be shown")
    else:
        from pageferry.cli import tables

        for target, answer in answers:
            tables.show(tables.status_table(answer))
            mempolicy.show(answer, narrows=bool(target.slurm_job))
    return 0


def _survey(target: Found) -> tuple[Found, Snapshot, Topology]:
    from pageferry import ferry
    from pageferry_planner.policy import Rules

    return target, *ferry.survey(target.pids, Rules())


def _survey_all(targets: Iterable[Found]) -> Iterator[tuple[Found, Snapshot, Topology]]:
    """Look at jobs; say, on standard error, which of them cannot be looked at. One that ends meanwhile is left out."""
    denied = []
    for target in targets:
        try:
            yield _survey(target)
        except Vanished:
            continue
        except Denied:
            denied.append(target.name)
        except KernelError as error:
            complain(f"{target.name}: {error}")
    if denied:
        complain(f"not shown, as you may not look at their memory: {', '.join(denied)}")


def _watch(job: str | None, seconds: float, config: Path | None, as_json: bool) -> int:
    from pageferry import overview, targets
    from pageferry.cli import live

    name = targets.scheduled(job).id if job else None
    special_of = _special_of(config)
    return live.watch(lambda: overview.look(name, special_of=special_of), seconds, as_json=as_json)


def _special_of(config: Path | None) -> Callable[[Topology], frozenset[int]]:
    """Return what says which nodes of a host are special: none, with a complaint, where the settings have faults."""
    from pageferry.config import load

    try:
        return load(settings_path(config)).host.special.on
    except ConfigError as error:
        complain(str(error))
        return lambda _topology: frozenset()


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
    from pageferry.cli import mempolicy
    from pageferry.cpus import assign
    from pageferry.gate import gate
    from pageferry.kernel.topology import read_topology
    from pageferry.mems.narrowing import Mems
    from pageferry.pbs import by_hand

    request = asked = read_request(**options)
    warn_of_gaps()
    ferry.check(request.target, read_topology())
    wanted = listed(cpus, "--cpus") if cpus is not None else None
    if target.slurm_job:
        try:
            Mems(target.slurm_job).admit(request.target)
        except Denied:
            pass  # where nobody but root may look, nobody else may widen: the ferry says what that means
        except KernelError as error:
            complain(str(error))
    first: dict[str, Any] | None = None

    def seen(inputs: ferry.Inputs) -> None:
        warn_of_use(asked, inputs.snapshot)

    with ExitStack() as during:
        went = during.enter_context(by_hand.moving(target.pbs_job)) if target.pbs_job else None
        advance = during.enter_context(progress(as_json))
        if precopy:
            copied = ferry.move(target.pids, request, advance, seen)
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
            if precopy and strays.few(target.holds, {*request.target.nodes, *request.target.left_alone}):
                still.close()
                stopped = time.monotonic() - began
            outcome = ferry.move(target.pids, request, advance, *(() if precopy else (seen,)))
            stopped = time.monotonic() - began if stopped is None else stopped
        if went is not None and not outcome.plan.lacking:
            went(request.target.nodes)
    answer = report.outcome_json(outcome)
    answer = report.joined(first, answer) if first is not None else answer
    answer |= {"seconds_stopped": round(stopped, 6)} if freeze else {}
    answer |= mempolicy.after_move(target.pids, request.target.nodes) if answer["moved_bytes"] else {}
    if not as_json:
        mempolicy.show(answer, narrows=bool(target.slurm_job))
    return show_outcome(answer, as_json)


def _through_agent(job: str, words: dict[str, Any], as_json: bool) -> int:
    from pageferry import wire
    from pageferry.schedulers.slurm import Slurm

    message = {"verb": "move", "job": int(Slurm().find(job).id), **words}
    return show_outcome(wire.ask(wire.PATH, message, timeout=3600)["outcome"], as_json)


def _remotely(job: str, words: dict[str, Any], seconds: float, as_json: bool) -> int:
    from pageferry import comment, remote
    from pageferry.schedulers import slurm_api
    from pageferry_planner.model import Strategy

    cpus = listed(words["cpus"], "--cpus") if words["cpus"] is not None else None
    nodes = ordered_nodes(words["nodes"])
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


def _only(route: Route, also: set[str]) -> None:
    """Raise UsageError for options that were given and that an agent does not take: the site's settings hold there."""
    taken = {"job", "as_json", "nodes", "cpus", "strategy", *also}
    options = {option.name or "": option.opts[0] for option in click.get_current_context().command.params}
    typed = given({name: shown for name, shown in options.items() if name not in taken})
    if typed:
        raise UsageError(
            f"{', '.join(typed.values())}: not through {route.value}; the settings of the job's hosts hold there"
        )
