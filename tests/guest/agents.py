"""The agent on the guest: started as systemd would, asked over its socket, killed, and started again.

It comes out of a nursery unless a test looks at the process itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guest import nursery
from guest.nursery import Child
from guest.vm.jobs import wait_until
from pageferry import wire

RUN = Path("/run/pageferry")
SOCKET = RUN / "agent.sock"


def own(folder: Path, settings: str = "") -> tuple[str, ...]:
    """Return the words for an agent with settings and a history of its own, both in this folder."""
    path = folder / "pageferry.toml"
    path.write_text(settings)
    return "--config", str(path), "--history-file", str(folder / "history.sqlite3")


@contextmanager
def agent(log: Path, *words: str, environment: Mapping[str, str] | None = None, loads: bool = False) -> Iterator[Agent]:
    """Run an agent; at the end it is stopped, if it still runs, and must have ended well. `loads`: what it needs."""
    made = Agent(log, words, environment or {}, loads)
    made.start()
    try:
        yield made
    finally:
        code = made.stop()
    assert code == 0, made.said()


@dataclass(slots=True)
class Agent:
    """An agent; `log` is what it has said."""

    log: Path
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    loads: bool = False
    process: subprocess.Popen[bytes] | Child | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ("agent", *self.words)
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            if self.loads:
                command = [sys.executable, "-m", "pageferry", *words]
                variables = {**os.environ, **self.environment}
                self.process = subprocess.Popen(
                    command, stdin=nothing, stdout=log, stderr=log, env=variables, start_new_session=True
                )
            else:
                self.process = nursery.start(
                    *words, stdin=nothing, stdout=log, stderr=log, environment=self.environment
                )
        wait_until(self.answers, f"the agent answers:\n{self.said()}", 90)

    def answers(self) -> bool:
        """Say whether it answers over its socket."""
        assert self.process is not None
        assert self.process.poll() is None, f"the agent has ended:\n{self.said()}"
        try:
            return bool(self.ask("status"))
        except Exception:  # noqa: BLE001 - not yet
            return False

    def ask(self, verb: str, timeout: float = 30.0, **words: Any) -> dict[str, Any]:
        """Return its answer to a verb."""
        return wire.ask(SOCKET, {"verb": verb, **words}, timeout)

    def count(self, what: str) -> int:
        """Return one of its counters."""
        number: int = self.ask("status")["counts"].get(what, 0)
        return number

    def phase(self, job: int) -> str | None:
        """Return how a job stands."""
        phase: str | None = self.ask("status")["jobs"].get(str(job), {}).get("phase")
        return phase

    def migrations(self, job: int) -> list[dict[str, Any]]:
        """Return what it has recorded of a job, the latest last."""
        answer = self.ask("history", job=job)
        return sorted(answer["migrations"], key=lambda row: row["id"])

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as the kernel's OOM killer would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop it as systemd would; return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)
