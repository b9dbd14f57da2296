"""The commands about the site's policy: whether its files are right, what holds for a job, and an owner's request."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pageferry.cli.options import CONFIG, STRATEGIES, given, settings_path
from pageferry.cli.says import complain, show_outcome, warn_of_gaps
from pageferry.errors import ConfigError, PageferryError

if TYPE_CHECKING:
    from pageferry.policy import Facts
    from pageferry.schedulers.base import Job


@click.command("check-config")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1)
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check_config(files: tuple[Path, ...], config: Path | None, as_json: bool) -> int:
    """Say whether the settings are right: those that an agent here would read, or FILES, each over those before it.

    Each fault is one line, with file, line, key and value; exit code 3 if there is one.
    """
    from pageferry import config as settings

    reading = settings.read_files(files) if files else settings.read(settings_path(config), here=True)
    names = [str(path) for path in reading.files]
    if as_json:
        answer = {"files": names, "rules": [rule.name for rule in reading.settings.rule], "faults": reading.faults}
        click.echo(json.dumps(answer))
    for fault in reading.faults if not as_json else ():
        click.echo(fault, err=True)
    if not reading.faults and not as_json:
        from pageferry.report import safe

        for name in names:
            click.echo(f"read {safe(name)}")
        if not names:
            click.echo(f"there is no {safe(str(config or settings.PATH))}: all defaults")
        click.echo(f"{len(reading.settings.rule)} rules, no fault")
    return ConfigError.exit_code if reading.faults else 0


@click.command()
@click.argument("job")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(job: str, config: Path | None, as_json: bool) -> int:
    """Say which rule holds for a job of this host and why the earlier ones do not, and what of its memory may move.

    Also the memory policies (numactl, mbind) of its processes, which a move leaves as they are.
    """
    from pageferry import applied, ferry, report, targets
    from pageferry import config as settings
    from pageferry.cli import mempolicy
    from pageferry.policy import passed_over

    site = settings.load(settings_path(config))
    found = targets.scheduled(job)
    facts, unknown = _facts(found)
    policy = site.policy(facts)
    warn_of_gaps()
    pids = targets.find(found.id, (), None).pids
    snapshot, topology = ferry.survey(pids, applied.rules(policy))
    answer = {
        "target": f"job {found.id}",
        "rule": policy.rule or None,
        "unknown": unknown,
        "facts": asdict(facts),
        "passed_over": [{"rule": name, "why": why} for name, why in passed_over(site.rule, facts)],
        "policy": asdict(policy),
        "park_lacks": sorted(set(policy.park) - topology.nodes_with_memory()),
        "mappings": report.mappings_json(snapshot, policy.mode.value),
        **mempolicy.of_job(pids, snapshot),
    }
    if as_json:
        click.echo(json.dumps(answer))
    else:
        from pageferry.cli import tables

        tables.show(tables.explain_table(answer))
        mempolicy.show(answer, narrows=found.scheduler == "slurm")
    return 0


def _facts(job: Job) -> tuple[Facts, str | None]:
    """Return what is known of a job, and why that is nothing more, None if all is told."""
    from pageferry.pbs import record
    from pageferry.policy import Facts
    from pageferry.schedulers.slurm_commands import SlurmCommands
    from pageferry.schedulers.slurm_config import cluster_name

    if job.scheduler == "pbs":
        told = record.load(job.id).facts
        return told or Facts("pbs"), None if told else "MoM's hook has told nothing of it as yet"
    try:
        return SlurmCommands().job(job.id).facts(cluster_name()), None
    except PageferryError as error:
        return Facts("slurm"), str(error)


@click.command()
@click.argument("job", type=click.IntRange(min=1))
@click.option("--to", "nodes", metavar="NODES", required=True, help="Target nodes, as 2-3 (pack: in order).")
@click.option("--strategy", type=click.Choice(STRATEGIES), help="[default: the site's]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def request(job: int, nodes: str, strategy: str | None, as_json: bool) -> int:
    """Have the agent of this host move the memory of your own Slurm job, if the site's policy lets owners ask.

    The job runs on meanwhile, and keeps its CPUs. Exit code 1 if not all of it moved.
    """
    from pageferry import wire

    message: dict[str, Any] = {"verb": "request", "job": job, "nodes": nodes} | given({"strategy": strategy})
    outcome = wire.ask(wire.PATH, message, timeout=3600)["outcome"]
    if outcome.get("observed") and not as_json:
        complain("the site's policy only observes this job: nothing was moved")
    return show_outcome(outcome, as_json)
