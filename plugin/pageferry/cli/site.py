"""The commands for a host and a site: the agent and what it knows, and the files that Slurm includes.

Those about a job's memory are in `cli.job`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from pageferry.cli.options import CONFIG
from pageferry.cli.says import complain
from pageferry.errors import MOST_CHARACTERS, KernelError, UsageError, shown

LOG_LEVELS = ("debug", "info", "warning", "error")


@click.command()
@CONFIG
@click.option("--run-folder", type=click.Path(path_type=Path), default=Path("/run/pageferry"), show_default=True)
@click.option(
    "--history-file",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/pageferry/history.sqlite3"),
    show_default=True,
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="How much to log [default: as the settings say].")
@click.option("--verbose", is_flag=True, help="As --log-level debug.")
def agent(config: Path | None, run_folder: Path, history_file: Path, log_level: str | None, verbose: bool) -> int:
    """Run the host's agent: it holds jobs that Slurm resumes until their memory has arrived.

    One for each host, as root, under systemd (hooks/systemd/pageferry.service). Ends on SIGTERM, holding nothing.
    """
    # Read once, when numpy is loaded: one thread can be forked, and the agent needs no more.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from pageferry import config as settings
    from pageferry.agent import loop as daemon
    from pageferry.agent.site import Site

    path = config or settings.PATH
    chosen = Site(settings.load(path, here=True), path)
    start_log(log_level or ("debug" if verbose else chosen.settings.agent.log_level))
    gc.collect()
    gc.freeze()  # what is there now is never looked at again, and stays shared with the errands
    daemon.run(chosen, daemon.Places(run_folder, history_file))
    return 0


@click.command()
@click.option("--run-folder", type=click.Path(path_type=Path), default=Path("/run/pageferry"), show_default=True)
@click.option("--force", is_flag=True, help="Also while an agent listens, which may hold them again.")
@click.option(
    "--cpus", is_flag=True, help="Also give jobs back Slurm's CPUs and cpuset.mems, since no agent will follow."
)
def release(run_folder: Path, force: bool, cpus: bool) -> int:
    """Release every job that an agent left held; for systemd's ExecStopPost=, and for emergencies."""
    from pageferry import wire
    from pageferry.gate import gate
    from pageferry.pbs import hold

    if (cpus or not force) and wire.present(run_folder / "agent.sock"):
        raise UsageError("the agent runs, and would hold them again: stop or restart it (systemctl restart pageferry)")

    code = 0
    for release_left, folder in ((gate.release_all, "holds"), (hold.release_left, "pbs")):
        try:
            for held in release_left(run_folder / folder):
                click.echo(f"job {held}: released")
        except KernelError as error:  # all else is still to be given back
            complain(str(error))
            code = KernelError.exit_code
    if cpus:
        from pageferry.cpus.assignments import Assignments
        from pageferry.mems import record
        from pageferry.mems.narrowing import Mems

        mems = run_folder / "mems"
        for job in record.jobs(mems):
            try:
                if Mems(job, mems).widen():
                    click.echo(f"job {job}: may allocate on all of Slurm's nodes again")
            except KernelError as error:  # the others and the CPUs are still to be given back
                complain(str(error))
                code = KernelError.exit_code
        assignments = Assignments(run_folder)
        for text in assignments.restore():
            complain(text)
        for moved in assignments.give_back():
            click.echo(f"job {moved}: on Slurm's CPUs again")
    return code


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cpus(as_json: bool) -> int:
    """Show which CPUs each job has: those that Slurm gave it, and those that it runs on."""
    answer = ask({"verb": "cpus"})
    if as_json:
        click.echo(json.dumps({"map": answer["map"], "jobs": answer["jobs"]}))
    elif not answer["jobs"]:
        click.echo("no Slurm job on this host; every CPU is Slurm's own")
    else:
        from pageferry.cli import tables

        tables.show(tables.cpus_table(answer))
    return 0


@click.command()
@click.argument("job", type=click.IntRange(min=1), required=False)
def poke(job: int | None) -> int:
    """Have the agent see whether a request that says `now` waits in the comment of a job, or of any job here."""
    ask({"verb": "poke"} | ({"job": job} if job else {}))
    return 0


@click.command()
@click.argument("job", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def history(job: str | None, limit: int, as_json: bool) -> int:
    """Show what was moved, when and why: the newest migrations of a job, or of all.

    For each the event (and the site's rule), from where to where, what became of the pages, bytes, seconds that the job
    stood still and in all, and how many requests were saved against asking process by process. `pageferry report
    --migration ID` has more of one.
    """
    answer = ask({"verb": "history", "limit": limit} | ({"job": job} if job else {}))
    if as_json:
        click.echo(json.dumps({"migrations": answer["migrations"], "events": answer["events"]}))
    else:
        from pageferry.cli import tables

        tables.show_history(answer["migrations"])
    if answer["fault"]:
        complain(f"the history is not whole: {answer['fault']}")
    return 0


@click.group()
def render() -> None:
    """Write configuration files for a batch scheduler, or the reference of our own."""


@render.command("slurm")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), show_default=True, help="Where to write them.")
@click.option("--hooks", type=click.Path(path_type=Path), help="Where hosts have the hooks [default: this package's].")
@click.option("--beside", type=click.Path(path_type=Path), metavar="DIR", help="Leave out what DIR/slurm.conf sets.")
@click.option("--without", multiple=True, metavar="KEY", help="Leave out this key (may be repeated).")
@click.option("--health-check", type=int, metavar="SECONDS", help="Also run the hook that often, for `now` requests.")
@click.option("--force", is_flag=True, help="Write over files that were edited.")
def render_slurm(  # noqa: PLR0917 - an argument for each option
    out: Path, hooks: Path | None, beside: Path | None, without: tuple[str, ...], health_check: int | None, force: bool
) -> int:
    """Write what slurm.conf and cgroup.conf are to Include; see contrib/slurm.conf.d/README.md."""
    from pageferry import render as rendering

    options = rendering.SlurmOptions(
        hooks=hooks or rendering.shipped("hooks") / "slurm",
        health_check_seconds=health_check,
        without=frozenset(without),
        beside=beside,
        force=force,
    )
    click.echo("\n".join(rendering.lines(rendering.render_slurm(out, options), options)))
    return 0


@render.command("reference")
def render_reference() -> int:
    """Print the reference of the settings, docs/policy.md, as the code that reads them has it."""
    from pageferry.policy_reference import reference

    click.echo(reference(), nl=False)
    return 0


@render.command("pbs")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), show_default=True, help="Where to write them.")
@click.option(
    "--hooks", type=click.Path(path_type=Path), help="Where the server has the hooks [default: this package's]."
)
@click.option(
    "--command",
    type=click.Path(path_type=Path),
    help="What the hook starts on a host without an agent [default: /usr/bin/pageferry where the Debian package is, "
    "else /usr/local/bin/pageferry].",
)
@click.option("--alarm", type=int, default=30, show_default=True, metavar="SECONDS", help="The hook's alarm.")
@click.option(
    "--freq", type=int, default=120, show_default=True, metavar="SECONDS", help="How often MoM looks for drift."
)
@click.option("--no-resources", is_flag=True, help="Define no resources for requests and outcomes.")
@click.option("--force", is_flag=True, help="Write over files that were edited.")
def render_pbs(  # noqa: PLR0917 - an argument for each option
    out: Path, hooks: Path | None, command: Path | None, alarm: int, freq: int, no_resources: bool, force: bool
) -> int:
    """Write a qmgr script that installs the hook, and the hook's configuration; see docs/openpbs.md."""
    from pageferry import render as rendering
    from pageferry import render_pbs as pbs

    options = pbs.PbsOptions(
        hooks=hooks or rendering.shipped("hooks"),
        command=command or pbs.command(),
        alarm_seconds=alarm,
        freq_seconds=freq,
        resources=not no_resources,
        force=force,
    )
    click.echo("\n".join(pbs.lines(pbs.render_pbs(out, options))))
    return 0


def start_log(level: str) -> None:
    """Log to standard error: under systemd with the level that journald reads, and without a time of its own."""
    journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForJournal() if journal else _OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _OneLine(logging.Formatter):
    """One line for each event, whatever names are in it; a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return shown(super().formatMessage(record), MOST_CHARACTERS)


class _ForJournal(_OneLine):
    """With the level as sd-daemon(3) wants it."""

    _LEVELS = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))

    def format(self, record: logging.LogRecord) -> str:
        level = next(level for least, level in self._LEVELS if record.levelno >= least)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def ask(message: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of this host's agent. Raises KernelError where none runs, and what the agent says is wrong."""
    from pageferry import wire

    if not wire.present():
        raise KernelError("the agent does not run on this host (systemctl status pageferry)")
    return wire.ask(wire.PATH, message, timeout=10)
