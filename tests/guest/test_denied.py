"""A user without capabilities moves what is theirs alone; what others map too is said to be denied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from guest.ranks import SHARED, Job, job
from guest.witness import census, node_vector, vmstat

NOBODY = 65534
ROOT = Path(__file__).parent.parent.parent
MOVE = """
import json, sys
from pageferry import ferry
from pageferry_planner.model import Target
from pageferry_planner.policy import Rules
made = ferry.Request(Target((2,)), Rules(reference_count=False))
tally = ferry.move([int(pid) for pid in sys.argv[1:]], made).tally
print(json.dumps({"requested": tally.requested, "total": tally.total(), **tally.pages}))
"""


def moved_by_nobody(made: Job) -> dict[str, Any]:
    """Have an unprivileged user, whose processes they are, move a job."""
    for rank in made.ranks:
        rank.ask("drop_to", NOBODY)
    made.seal()
    command = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps=-all"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'plugin'}:{ROOT / 'planner'}"}
    program = [sys.executable, "-c", MOVE, *map(str, made.pids)]
    run = subprocess.run([*command, *program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    tally: dict[str, Any] = json.loads(run.stdout)
    return tally


def test_a_users_own_pages_move_and_shared_ones_are_denied() -> None:
    with job(node=0) as made:
        shared = made.first.map(200, made.first.memfd(200), flags=SHARED).write()
        (other,) = made.fork()
        shared.of(other).read()
        private = other.map(500).write()
        counters = vmstat()
        tally = moved_by_nobody(made)
        assert (vmstat() - counters)["pgmigrate_success"] == tally["moved"] >= 500
        assert tally["denied"] >= 200
        assert tally["total"] == sum(count for name, count in tally.items() if name not in {"total", "requested"})
        assert tally["total"] >= census(made.pids).total  # copied pages count for each who maps them: frames are hidden
        assert node_vector(other.pid, *private.span) == [2] * 500
        assert node_vector(other.pid, *shared.span) == [0] * 200
        assert made.broken() == []
