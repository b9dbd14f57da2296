"""The parts of `make test-all`: which there are, on which commit each passed last, and what a release lacks.

A part is a target of the Makefile, with all of its tests. What passed is noted in .ci/passed.json, which is committed
like any file. A release may rely on a commit before it that has the same planner, plugin and hooks.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PASSED = Path(".ci/passed.json")
PRODUCT = ("planner", "plugin", "hooks")
SECONDS = 3600.0
"""What a part may take."""

PARTS: Mapping[str, str] = {
    "lint": "linters, types and import rules",
    "unit": "what needs no guest: pure tests, and this host's kernel, systemd and browser",
    "guest-four-1": "Debian 12, four nodes, cgroup v2: the first half of the files",
    "guest-four-2": "Debian 12, four nodes, cgroup v2: the second half",
    "guest-root": "the tests that move memory, with all of root's rights in place of the unit's",
    "guest-v1": "cgroup v1",
    "guest-cpuless": "a node of memory only",
    "guest-tight": "a node that is soon full",
    "guest-package": "systemd, the Debian package, and memory moved under the unit itself",
    "guest-debian13-1": "Debian 13 (Linux 6.12, Slurm 24.11, Python 3.13): the first half of the files",
    "guest-debian13-2": "Debian 13: the second half",
    "guest-fuzz": "ten minutes of processes that do with their memory what fresh seeds say, under moves: Debian 12",
    "guest-fuzz-13": "the same on Debian 13",
}


@dataclass(frozen=True, slots=True)
class Pass:
    """When a part passed last: the commit, what it took, and the last line that its tests said."""

    commit: str
    seconds: int
    said: str


def read_passed(repository: Path) -> dict[str, Pass]:
    """Return what is noted; nothing where there is no file."""
    path = repository / PASSED
    if not path.exists():
        return {}
    return {name: Pass(**noted) for name, noted in json.loads(path.read_text()).items()}


def note(repository: Path, name: str, passed: Pass) -> None:
    """Note that a part has passed; others may end at the same time."""
    with (repository / PASSED.parent / "run").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        noted = read_passed(repository) | {name: passed}
        rows = {known: asdict(noted[known]) for known in PARTS if known in noted}
        (repository / PASSED).write_text(json.dumps(rows, indent=1) + "\n")


def lacking(repository: Path, parts: Sequence[str]) -> dict[str, str]:
    """Return the parts on which a release of HEAD may not rely, and why: each must have passed on HEAD, or an
    ancestor that has the same product; of uncommitted changes to the product nothing is known."""
    noted = read_passed(repository)
    found = {}
    if _git(repository, "status", "--porcelain", "--", *PRODUCT)[1]:
        return dict.fromkeys(parts, f"uncommitted changes in {', '.join(PRODUCT)}")
    for part in parts:
        if part not in noted:
            found[part] = "has not passed"
            continue
        commit = noted[part].commit
        if _git(repository, "merge-base", "--is-ancestor", commit, "HEAD")[0]:
            found[part] = f"passed on {commit[:12]}, which is no ancestor of HEAD"
        elif _git(repository, "diff", "--quiet", commit, "HEAD", "--", *PRODUCT)[0]:
            found[part] = f"passed on {commit[:12]}, since when the product has changed"
    return found


def run(repository: Path, name: str, command: Sequence[str], seconds: float = SECONDS) -> bool:
    """Run a part to its end, show what it says, and note it if it passed on a commit; say whether it passed."""
    before = _tested(repository)
    began, last = time.monotonic(), ""
    # Whatever ends this process ends the part, too.
    words = ["setpriv", "--pdeathsig", "TERM", "timeout", "--kill-after=30", f"{seconds:g}", *command]
    with subprocess.Popen(words, cwd=repository, stdout=subprocess.PIPE, text=True, errors="replace") as part:
        assert part.stdout is not None
        for line in part.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if part.returncode:
        print(f"{name}: failed (exit {part.returncode})", flush=True)
        return False
    if before and before == _tested(repository):
        note(repository, name, Pass(before, round(time.monotonic() - began), last))
    else:
        print(f"{name}: passed, but not noted: what was tested is no commit", flush=True)
    return True


def _tested(repository: Path) -> str:
    """Return the commit that the work tree is, "" if it is none."""
    changed = _git(repository, "status", "--porcelain", "--", ".", f":!{PASSED}")[1]
    return "" if changed else _git(repository, "rev-parse", "HEAD")[1]


def _git(repository: Path, *words: str) -> tuple[int, str]:
    answer = subprocess.run(["git", *words], cwd=repository, capture_output=True, text=True, check=False)
    return answer.returncode, answer.stdout.strip()


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; 0 done, 1 a part failed or is lacking."""
    parser = argparse.ArgumentParser(prog="python -m parts", description=__doc__)
    parser.add_argument("verb", choices=("list", "run", "check"))
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, if none is named")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))} (parts: {', '.join(PARTS)})")
    wanted = [name for name in PARTS if name in (arguments.parts or PARTS)]
    if arguments.verb == "run":
        passed = [run(REPOSITORY, name, ["make", name]) for name in wanted]  # all of them, whatever fails
        return int(not all(passed))
    noted, why = read_passed(REPOSITORY), lacking(REPOSITORY, wanted)
    for name in wanted:
        when = f"{noted[name].commit[:12]}, {noted[name].seconds} s" if name in noted else "never"
        print(f"{name:18} {PARTS[name]}\n{'':18} passed: {when}{'; ' if name in why else ''}{why.get(name, '')}")
    return int(arguments.verb == "check" and bool(why))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
