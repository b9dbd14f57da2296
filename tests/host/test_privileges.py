"""Without capabilities, pageferry does what it still can, and says what it cannot; on one node, it says that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guest.ranks import SHARED, job, nodes
from pageferry import ferry
from pageferry.errors import KernelError
from pageferry_planner.model import Target

NOBODY = 65534
ROOT = Path(__file__).parent.parent.parent

SURVEY = """
import json, sys
from pageferry import ferry
from pageferry.kernel import capabilities
from pageferry_planner.policy import Rules
snapshot, _ = ferry.survey([int(pid) for pid in sys.argv[1:]], Rules())
print(json.dumps({
    "pages": snapshot.runs.pages(),
    "nodes": sorted(set(snapshot.runs.node.tolist())),
    "missing": [gap.capability for gap in capabilities.missing(capabilities.effective())],
}))
"""


def test_on_a_host_of_one_node_there_is_nowhere_to_move_to() -> None:
    if len(nodes()) > 1:
        pytest.skip("this host has several nodes")
    with job() as made, pytest.raises(KernelError, match="one NUMA node"):
        ferry.move(made.pids, ferry.Request(Target((0,))))


def test_a_user_without_capabilities_can_look_at_processes_of_their_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if shutil.which("setpriv") is None:
        pytest.fail("no setpriv: install util-linux")
    with job() as made:
        made.first.map(100).write()
        shared = made.first.map(200, flags=SHARED | 0x20).write(0, 50)
        (other,) = made.fork()
        shared.of(other).write(50, 120)
        for rank in made.ranks:
            rank.ask("drop_to", NOBODY)
        found = survey(made.pids)
    assert found["nodes"] == [0]
    assert found["pages"] >= 100 + 120
    assert "CAP_SYS_ADMIN" in found["missing"]
    assert "CAP_SYS_NICE" in found["missing"]


def survey(pids: tuple[int, ...]) -> dict[str, Any]:
    """Have an unprivileged process look at processes."""
    command = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps=-all"]
    environment = {"PYTHONPATH": f"{ROOT / 'plugin'}:{ROOT / 'planner'}", "PATH": os.environ["PATH"]}
    program = [sys.executable, "-c", SURVEY, *map(str, pids)]
    run = subprocess.run([*command, *program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found
