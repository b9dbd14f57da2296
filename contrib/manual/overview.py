"""pageferry(8): what there is, where it is, and which page says more."""

from __future__ import annotations

import click

from manual import commands
from manual.roff import items, page, paragraphs, references

_DESCRIPTION = """
pageferry moves a batch job's memory to its NUMA nodes, each page once, before the job runs again. On every host that
runs jobs there is an agent, started by systemd as `pageferry.service`. It sees the scheduler suspend a job, holds it,
moves its memory to where its CPUs are or where a request says, and lets it go when its pages have arrived, or after
`max_hold_seconds`. Whatever fails, the job runs on.

The commands ask the agent, or do without it. JOB is Slurm's or PBS's id; of `poke` and
`request` the number of a Slurm job.
"""
_FILES = (
    ("/etc/pageferry/pageferry.toml", "The settings: `pageferry.toml`(5)."),
    (
        "/etc/pageferry/policy.d/*.toml",
        "The site's rules, read after the settings. Other settings have theirs beside them.",
    ),
    ("/run/pageferry/agent.sock", "Where the agent is asked; the kernel says who asks."),
    ("/run/pageferry/holds/", "A record for each job that is held, by which anybody can undo it."),
    ("/run/pageferry/cpu_map.json", "Which CPUs jobs were given instead of Slurm's."),
    ("/var/lib/pageferry/history.sqlite3", "What was moved, when and why."),
    ("/var/lib/pageferry/snapshots/", "At debug level, what each plan was made from: `pageferry-plan`(1)."),
    ("/var/lib/prometheus/node-exporter/pageferry.prom", "Metrics, where that folder is there."),
    ("/usr/lib/pageferry/hooks/", "What Slurm and PBS are to call."),
    ("/usr/share/doc/pageferry/", "Guides to installation, Slurm, OpenPBS, operations and security."),
)


def pages(program: click.Group) -> dict[str, str]:
    """Return the page about the program as a whole, by file name."""
    (_, section, context), *below = commands.walk(program)
    found = [(name, section) for name, section, _ in below]
    text = page(
        "pageferry",
        section,
        commands.summary(program),
        [
            ("SYNOPSIS", [commands.synopsis(context)]),
            ("DESCRIPTION", paragraphs(_DESCRIPTION)),
            ("COMMANDS", items(commands.walk_below(context))),
            ("OPTIONS", commands.options(context)),
            ("EXIT STATUS", commands.exits()),
            ("FILES", items(_FILES)),
            ("SEE ALSO", references([*found, ("pageferry.toml", 5), ("move_pages", 2), ("cpuset", 7), ("numa", 7)])),
        ],
    )
    return {f"man{section}/pageferry.{section}": text}
