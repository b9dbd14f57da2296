"""Agents that start at once: forked from a process that has loaded all that an agent needs.

Loading python and numpy takes an emulated CPU longer than the moments last at which an agent is to be killed. What is
forked does all else that `pageferry agent` does. `python -m guest.nursery LOG WORD...` forks one agent with these words
for each line `start` and says its ID; `wait` waits for its end and says its exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from guest.agents import Agent
from guest.vm.jobs import wait_until


@contextmanager
def agent(log: Path, *words: str) -> Iterator[Agent]:
    """Run an agent that starts again at once; at the end it is stopped, and must have ended well."""
    nursery = subprocess.Popen(
        [sys.executable, "-m", "guest.nursery", str(log), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
    )
    made = Forked(log, words, nursery=nursery)
    try:
        made.start()
        yield made
        code = made.stop()
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()
        nursery.communicate(timeout=30)  # which closes its standard input, and so ends it
    assert code == 0, made.said()


@dataclass(slots=True, kw_only=True)
class Forked(Agent):
    """An agent out of a nursery."""

    nursery: subprocess.Popen[str]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        process = Child(self.nursery, int(_asked(self.nursery, "start")))
        self.process = cast("subprocess.Popen[bytes]", process)
        wait_until(self.answers, "the agent answers", 60)


@dataclass(slots=True)
class Child:
    """What is needed here of subprocess.Popen, for somebody else's child."""

    nursery: subprocess.Popen[str]
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self.returncode is None and _is_zombie(self.pid):
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most so many seconds, and return its exit code."""
        if self.returncode is None:
            if timeout is not None:
                wait_until(lambda: _is_zombie(self.pid), "the agent ends", timeout)
            self.returncode = int(_asked(self.nursery, "wait"))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as the kernel's OOM killer would; one that has ended has ended."""
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)


def _asked(nursery: subprocess.Popen[str], word: str) -> str:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{word}\n")
    nursery.stdin.flush()
    return nursery.stdout.readline()


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _main(log: str, *words: str) -> None:
    # Not for whoever asks for an agent: its own process is to stay as it is.
    from pageferry.agent import loop as daemon  # noqa: F401, PLC0415
    from pageferry.cli.main import main  # noqa: PLC0415

    pid = 0
    for line in sys.stdin:
        answer: Any = None
        if line == "start\n":
            pid = os.fork()
            if pid == 0:
                _agent(main, log, words)
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            pid = 0
        print(answer, flush=True)
    if pid:  # whoever asked has ended, and nobody else would end it
        os.kill(pid, signal.SIGKILL)


def _agent(main: Any, log: str, words: tuple[str, ...]) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor, number in ((null, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, number)
    sys.argv = ["pageferry", "agent", *words]
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else error.code is not None
    except BaseException:  # noqa: BLE001 - this is the end of the process
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    _main(*sys.argv[1:])
