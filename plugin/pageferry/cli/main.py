"""The command line: it reads what was asked, calls one function for it, and prints what came back.

What is heavy (numpy, rich, psutil) is imported inside the commands, so that `--version`, `--help` and a hook start
fast. Every error of ours is one line on standard error and an exit code; a traceback needs --debug.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from pageferry import __version__
from pageferry.cli import job as cli_job
from pageferry.cli import pbs as cli_pbs
from pageferry.cli import policy as cli_policy
from pageferry.cli import replay as cli_replay
from pageferry.cli import report as cli_report
from pageferry.cli import site as cli_site
from pageferry.cli.options import CONFIG, settings_path
from pageferry.cli.says import complain
from pageferry.errors import PageferryError


def main() -> None:
    """Run the command line; exit codes: 0 done or nothing to do, 1 partly, 2 usage, 3 configuration, 4 not possible."""
    debug = "--debug" in sys.argv[1:]
    try:
        sys.exit(commands(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        complain("interrupted")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PageferryError as error:
        if debug:
            raise
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def commands(debug: bool) -> None:
    """Move a batch job's memory to its NUMA nodes, each page once."""


@commands.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(config: Path | None, as_json: bool) -> int:
    """Say what of kernel, capabilities, cgroups and Slurm is there, and what to change.

    Exit code 4 if pageferry cannot work here.
    """
    from pageferry.doctor import examine as examination

    findings = examination.examine(settings_path(config))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.grade.value:<5} {finding.subject}: {finding.text}")
    return 4 if any(finding.grade is examination.Grade.FAIL for finding in findings) else 0


for command in (
    cli_job.status,
    cli_job.plan,
    cli_job.move,
    cli_policy.explain,
    cli_policy.request,
    cli_policy.check_config,
    cli_report.report,
    cli_replay.snapshot,
    cli_site.agent,
    cli_site.cpus,
    cli_site.history,
    cli_site.poke,
    cli_site.release,
    cli_site.render,
    cli_pbs.pbs_event,
):
    commands.add_command(command)
