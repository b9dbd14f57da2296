"""A tree of processes that do what a seed says, as one job: started in a cgroup of its own, and always ended.

Told to step, they act one after another, so that the same seed makes the same memory; told to run, all at once.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("fuzz_rank.py")
BASE = 0x2000_0000_0000 // 4096
SECONDS = 300.0
"""No order takes so long, on a machine that is emulated."""


@dataclass(slots=True)
class Member:
    """A process of the tree, and the socket on which it takes orders."""

    pid: int
    depth: int
    link: socket.socket
    pidfd: int

    @classmethod
    def welcome(cls, link: socket.socket) -> Member:
        """Take up a process that has just come; it may have ended since."""
        link.settimeout(SECONDS)
        _, pid, depth = marshal.loads(link.recv(4096))
        try:
            return cls(pid, depth, link, os.pidfd_open(pid))
        except ProcessLookupError:
            return cls(pid, depth, link, os.open("/dev/null", os.O_RDONLY))

    def gone(self) -> None:
        """Wait until it, and its memory, are gone."""
        select.select([self.pidfd], [], [])
        self.link.close()
        os.close(self.pidfd)


@dataclass(slots=True)
class Tree:
    """The processes, in the order in which they came; `orders`: what they were told, and what they did."""

    listener: socket.socket
    members: list[Member] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    possible: int = 0
    faults: int = 0
    apart: frozenset[int] = frozenset()
    """Processes that are not the job's for now."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The job's processes."""
        return tuple(member.pid for member in self.members if member.pid not in self.apart)

    def step(self, operations: int) -> None:
        """Have each process do so many operations, one process after another."""
        for member in list(self.members):
            self._order(member, "step", operations)
            self._read(member)
            self._welcome()

    def run(self) -> None:
        """Have all of them go on until they are stopped."""
        self.possible = self.faults = 0
        for member in self.members:
            self._order(member, "run")

    def stop(self) -> None:
        """Stop them all, and those that were forked meanwhile."""
        self._welcome()
        stopped: set[int] = set()
        while waiting := [member for member in self.members if member.pid not in stopped]:
            for member in waiting:
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._order(member, "stop")
                self._read(member)
                stopped.add(member.pid)
            self._welcome()

    def ask(self, order: str, of: Sequence[int] | None = None) -> dict[int, Any]:
        """Ask processes (all, if not given) something, and return what each said; the others stand still."""
        answers = {}
        for member in self.members:
            if of is None or member.pid in of:
                self._order(member, order)
                answers[member.pid] = self._read(member)
        return answers

    def seal(self) -> None:
        """Have each of the job remember what its memory holds."""
        self.ask("seal", self.pids)

    def broken(self) -> list[tuple[int, list[int]]]:
        """Return where memory holds something else than when it was sealed."""
        return [(pid, answer[1]) for pid, answer in self.ask("broken", self.pids).items() if answer[1]]

    def wrong(self) -> list[tuple[int, list[tuple[int, str]]]]:
        """Return which pages hold what nobody wrote there."""
        return [(pid, answer[1]) for pid, answer in self.ask("check").items() if answer[1]]

    def close(self) -> None:
        """End all processes."""
        with suppress(OSError):
            self._welcome()
        for member in reversed(self.members):
            with suppress(ProcessLookupError, OSError):
                signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
            member.gone()
        self.members.clear()

    def _order(self, member: Member, order: str, *arguments: Any) -> None:
        member.link.send(marshal.dumps((order, *arguments)))

    def _read(self, member: Member) -> Any:
        """Return the answer of a process; one that ends says so, and any other end is a failure."""
        try:
            answer = marshal.loads(member.link.recv(1 << 20) or b"N")
        except ConnectionResetError:  # it has not read its last order
            answer = marshal.loads(member.link.recv(1 << 20) or b"N")
        assert answer is not None, f"process {member.pid} was killed, or failed:\n{self.said()}"
        kind, *rest = answer
        if kind in {"did", "stopped", "ended"}:
            self.log += [f"{member.pid}: {line}" for line in rest[-1]]
        if kind in {"stopped", "ended"}:
            self.possible += rest[0]
            self.faults += rest[1]
        if kind == "ended":
            self.members.remove(member)
            member.gone()
        return answer

    def said(self, last: int = 60) -> str:
        """Return what was done last."""
        return "\n".join(self.log[-last:])

    def _welcome(self) -> None:
        """Take up the processes that were forked."""
        while True:
            try:
                link, _ = self.listener.accept()
            except BlockingIOError:
                return
            self.members.append(Member.welcome(link))


@contextmanager
def tree(seed: int, files: Sequence[Path], nodes: Sequence[int], folder: Path) -> Iterator[Tree]:
    """Start a tree of one process; end all that have come of it, whatever happens."""
    address = folder / "orders"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen(4096)
        listener.settimeout(SECONDS)
        words = [str(seed), str(address), ":".join(map(str, files)), ",".join(map(str, nodes))]
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-W", "ignore", str(PROGRAM), *words], stdin=subprocess.DEVNULL
        ) as process:
            made = Tree(listener)
            try:
                link, _ = listener.accept()
                made.members.append(Member.welcome(link))
                listener.setblocking(False)
                yield made
            finally:
                made.close()
                process.kill()
