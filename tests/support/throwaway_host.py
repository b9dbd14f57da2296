"""A host below this one, to install and start things on: what it writes stays in memory and goes with it.

It has this host's files, and mounts, processes, control groups, network (none) and names of its own; its first process
is `cat`, as in a chroot, or systemd. How it comes to be is said in throwaway_host.sh.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.kernel import cgroup

SCRIPT = Path(__file__).with_suffix(".sh")
SYSTEMD = ("/lib/systemd/systemd", "--system", "--show-status=no")
CAT = ("/bin/cat",)
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Host:
    """A throw-away host: its first process, as this host numbers it, and where its files are seen from here.

    `written`: what it has written over this host's files, that and nothing else.
    """

    first: int
    root: Path
    written: Path

    def there(self, *command: str) -> list[str]:
        """Return how a command is run there."""
        words = ["nsenter", f"--target={self.first}", "--all", "--root", "--wd", "env", "-i", "LANG=C.UTF-8"]
        return [*words, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command]

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command there, with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.there(*command), stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def ask(self, *command: str) -> tuple[int, str]:
        """Run a command there; return its exit code and all that it said."""
        with self.popen(*command) as process:
            said, _ = process.communicate(timeout=SECONDS * 5)
        return process.returncode, said

    def run(self, *command: str) -> str:
        """Return what a command said that must end well."""
        code, said = self.ask(*command)
        assert code == 0, f"{' '.join(command)}: {code}\n{said}"
        return said.strip()

    def path(self, path: str | Path) -> Path:
        """Return where one of its paths is seen from here."""
        return self.root / str(path).lstrip("/")

    def changed(self) -> set[str]:
        """Return the files, links and removals by which it differs from this host."""
        return changed(self.written)


def changed(written: Path) -> set[str]:
    """Return the files, links and removals in a layer over a host's files."""
    found = written.rglob("*")
    return {str(path.relative_to(written)) for path in found if path.is_symlink() or not path.is_dir()}


def wait_until(done: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait for something that tells nobody of it."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


@contextmanager
def throwaway_host(*first: str, version: str = "v2", shared: Sequence[Path] = ()) -> Iterator[Host]:
    """Start a host; `first` is the command of its first process, `version` that of its control groups.

    "v2": version 2 at the top. "v1": as hybrid hosts have them, version 2 without controllers beside version 1.
    `shared` are folders of this host that it has, too, in the same place. Where it is systemd, that has started.
    """
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throwaway-")))
        groups = stack.enter_context(_groups(top.name))
        words = ["nice", "-n", "10", str(SCRIPT), str(top), _hierarchies(version)]
        words += ["\n".join(map(str, paths)) for paths in (groups, shared)]
        outside = subprocess.Popen([*words, *first], stdin=subprocess.PIPE)
        stack.callback(_end, outside)
        below = Path(f"/proc/{outside.pid}")
        children = below / f"task/{outside.pid}/children"
        # What makes the host becomes its first process in the end.
        wait_until(lambda: _command(children.read_text()) == Path(first[0]).name, "the first process runs")
        host = Host(int(children.read_text()), below / f"root{top}/root", below / f"root{top}/written")
        if first == SYSTEMD:
            up = ("running", "degraded")
            wait_until(lambda: host.ask("systemctl", "is-system-running")[1].strip() in up, "systemd has started")
        yield host


def _hierarchies(version: str) -> str:
    if version == "v2":
        return "."
    points = set(cgroup.read_hierarchies().legacy.values())
    assert points, "this host has no version 1"
    by_point = {
        point: [name for name, at in cgroup.read_hierarchies().legacy.items() if at == point] for point in points
    }
    lines = ["unified -"]
    for names in by_point.values():
        named = names[0].removeprefix("name=")
        lines.append(f"{named} {'none,' if named != names[0] else ''}{','.join(names)}")
    return "\n".join(sorted(lines))


@contextmanager
def _groups(name: str) -> Iterator[list[Path]]:
    """Make a group of each of this host's hierarchies, and remove it with all below in the end."""
    hierarchies = cgroup.read_hierarchies()
    assert hierarchies.unified is not None
    made = [point / name for point in {hierarchies.unified, *hierarchies.legacy.values()}]
    for group in made:
        group.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists() and group.parent in hierarchies.legacy.values():
                (group / file).write_text((group.parent / file).read_text())
    try:
        yield made
    finally:
        for group in made:
            wait_until(lambda group=group: not cgroup.pids(group), f"{group} is empty")  # type: ignore[misc]
            for below in reversed(list(cgroup.walk(group))):
                below.rmdir()


def _end(outside: subprocess.Popen[bytes]) -> None:
    with suppress(FileNotFoundError):
        for child in Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split():
            os.kill(int(child), 9)  # all others of its namespace go with it
    outside.wait(SECONDS)
    assert outside.stdin is not None
    outside.stdin.close()


def _command(pid: str) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        if pid.strip().isdecimal():
            return Path(f"/proc/{int(pid)}/comm").read_text().strip()
    return ""
