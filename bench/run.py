"""The whole benchmark, as `make bench` calls it: the guest's part, the native part, docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
TIMEOUT_S = 1080
"""With the native part, the whole stays under twenty minutes."""

OTHERS = ("resume", "newcomer", "precopy")
"""What is measured in guests of their own, in the order in which the report takes it."""


def main() -> int:
    """Run all parts; the exit code is that of the first part that failed."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("planner", "plugin", "tests", ""))
    environment = os.environ | {"PYTHONPATH": paths}
    results = CACHE / "results"
    results.mkdir(parents=True, exist_ok=True)
    # Compiled here: what the guest compiles is lost with it. Two workers need emulated CPUs that run side by side.
    names = ("ranks", "peers", "mappings", "newcomer", "busy")
    compiled = f"from bench.programs import program; [program(name) for name in {names}]"
    guest = [
        *("guest.vm", "run", "--layout", "four", "--smp-threads", "multi"),
        *("--timeout", str(TIMEOUT_S), "--results", str(results)),
        *("--", "env", f"PYTHONPATH={paths}", "python", "-m", "bench.guest"),
    ]
    others = [
        [
            *("guest.vm", "run", "--layout", "four", "--timeout", str(TIMEOUT_S), "--results", str(results)),
            *("--", "env", f"PYTHONPATH={paths}", "python", "-m", f"bench.{name}", f"/run/results/{name}.json"),
        ]
        for name in OTHERS
    ]
    parts = (
        ["-c", compiled],
        ["-m", "bench.planning", str(CACHE / "planning.json")],
        ["-m", *guest],
        *(["-m", *part] for part in others),
    )
    for part in parts:
        code = subprocess.run([sys.executable, *part], cwd=ROOT, env=environment, check=False).returncode
        if code:
            return code
    _add_host(results / "bench.json")
    told = (results / "bench.json", CACHE / "planning.json", *(results / f"{name}.json" for name in OTHERS))
    report = ["-m", "bench.report", *map(str, told)]
    return subprocess.run([sys.executable, *report], cwd=ROOT, env=environment, check=False).returncode


def _add_host(path: Path) -> None:
    """Add what only the host knows: what ran the guest, and how busy it was meanwhile."""
    answers = sorted((ROOT / ".cache").glob("kvm-*"))
    told = json.loads(path.read_text())
    told["accelerator"] = answers[-1].read_text().strip() if answers else "tcg"
    told["load"] = f"{os.getloadavg()[2]:.1f}"
    path.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
