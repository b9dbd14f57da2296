"""Work in a forked child of the agent: whatever becomes of it, the agent and its holds are untouched.

A planner that raises, a call that hangs in the kernel, memory that grows: it all ends with the child. The child says
what it has to say as lines of JSON over a pipe; what that means is left to whoever sent it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pageferry.errors import PageferryError
from pageferry.hotness import HURRY
from pageferry.kernel.prctl import end_with_parent

Say = Callable[[Mapping[str, Any]], None]
"""What an errand reports with: an object of JSON."""

_CHUNK_BYTES = 65536
_MOST_BYTES = 4 << 20
"""An errand that says more than this has gone wrong."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an errand ended: what it returned, or in one line why it did not."""

    value: Mapping[str, Any] | None
    error: str | None
    exit_code: int = 0


@dataclass(slots=True)
class Errand:
    """A child at work. `fd` is readable when `read()` has something; `result` is there once it has said its last word.

    Then it is to be reaped: a thread of it that waits for a dead file system can keep its process for long.
    """

    pid: int
    fd: int
    result: Result | None = None
    _rest: bytes = b""
    _reaped: bool = False

    def read(self) -> Iterator[Mapping[str, Any]]:
        """Yield what the child has said since; at its end set `result`. Never blocks."""
        while self.result is None:
            try:
                chunk = os.read(self.fd, _CHUNK_BYTES)
            except BlockingIOError:
                return
            self._rest += chunk
            if not chunk or len(self._rest) > _MOST_BYTES:
                self._collect()
                return
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "ended" in message:
                    end = message["ended"]
                    os.close(self.fd)
                    self.result = Result(end["value"], end["error"], end["code"])
                    return
                yield message

    def kill(self, why: str = "the errand was ended by SIGKILL") -> None:
        """End the child, without waiting: in an uninterruptible call it ends when that does."""
        if self.result is None:
            os.kill(self.pid, signal.SIGKILL)
            os.close(self.fd)
            self.result = Result(None, why, 4)

    def interrupt(self) -> None:
        """Have the child stop soon, and say how far it has come, if its work knows how to."""
        if self.result is None:
            os.kill(self.pid, signal.SIGINT)

    def hurry(self) -> None:
        """Have the child wait no longer for what the job does: it stands still. What it has to do, it does."""
        if self.result is None:
            os.kill(self.pid, HURRY)

    def reap(self) -> bool:
        """Say whether a child that has a result is gone. Never blocks."""
        self._reaped = self._reaped or os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self._reaped

    def _collect(self) -> None:
        os.close(self.fd)
        _, status = os.waitpid(self.pid, 0)  # at the end of its pipe it is all but gone
        self._reaped = True
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            self.result = Result(None, f"the errand was ended by {signal.Signals(-code).name}", 1)
        else:
            self.result = Result(None, f"the errand ended early, with exit code {code}", 1)


def begin(work: Callable[[Say], Mapping[str, Any]]) -> Errand:
    """Fork a child that does `work`; it may report on the way, and what it returns becomes the result.

    Call it from a process with one thread. Raises OSError if there can be no further process.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        # Blocked in the child from its first instruction on: until it has handlers of its own, it would tell the agent,
        # by the agent's own. Each is waited for, or let through, where it means something, also if it came before.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {HURRY, signal.SIGINT})
        try:
            pid = os.fork()
            if pid == 0:
                _work(work, write_end, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    os.close(write_end)
    os.set_blocking(read_end, False)
    return Errand(pid, read_end)


def _work(work: Callable[[Say], Mapping[str, Any]], pipe: int, parent: int) -> NoReturn:
    code = 1
    try:
        end_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # The agent is spared when memory runs out; what it sends out need not be.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("0")
        # The agent's socket, its inotify and its line to the guardian are not the child's.
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            if descriptor > 2 and descriptor != pipe:
                _close(descriptor)

        def say(message: Mapping[str, Any]) -> None:
            line = json.dumps(message).encode() + b"\n"
            while line:
                line = line[os.write(pipe, line) :]

        end: dict[str, Any]
        try:
            end = {"value": work(say), "error": None, "code": 0}
        except PageferryError as error:
            end = {"value": None, "error": str(error), "code": error.exit_code}
        except Exception as error:  # noqa: BLE001 - this is the end of the process
            os.write(2, traceback.format_exc().encode())
            end = {"value": None, "error": f"{type(error).__name__}: {error}"[:500], "code": 1}
        say({"ended": end})
        code = 0
    finally:
        os._exit(code)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return  # the one that listed the others
