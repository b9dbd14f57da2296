"""Hold and release: a job's processes stand still while their memory moves, and nothing leaves them so.

On cgroup v2 by the freezer, below the level that the scheduler itself uses; without it by SIGSTOP. What stood still
before stays so: only what we stopped is released. A guardian releases it if we die.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pageferry import guardian
from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import read_bytes
from pageferry.kernel.freezer import freeze, thaw, wait_frozen
from pageferry.kernel.processes import ProcessHandle, open_process
from pageferry.kernel.procfs import read_status

FREEZE_SECONDS = 5.0
"""A group that is not frozen by then holds a task that the kernel cannot stop (uninterruptible I/O)."""


@contextmanager
def held(groups: Iterable[Path], pids: Iterable[int] = ()) -> Iterator[int]:
    """Hold version 2 groups and, by signal, processes; yield how many holds were needed.

    Raises KernelError, with everything released again, if a group cannot be frozen within FREEZE_SECONDS.
    """
    with ExitStack() as stack:
        frozen = [group for group in groups if _thawed(group)]
        stopped = [handle for pid in pids if (handle := _running(pid, stack)) is not None]
        if not frozen and not stopped:
            yield 0
            return
        watch = _guard(frozen, stopped)
        try:
            for group in frozen:
                with suppress(Vanished):
                    freeze(group)
            for handle in stopped:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle.pidfd, signal.SIGSTOP)
            for group in frozen:
                with suppress(Vanished):
                    if not wait_frozen(group, True, FREEZE_SECONDS):
                        raise KernelError(f"{group}: not frozen after {FREEZE_SECONDS:.0f} s; released again")
            yield len(frozen) + len(stopped)
        finally:
            _release(frozen, stopped)
            with suppress(BrokenPipeError):
                watch.communicate(guardian.RELEASED, timeout=FREEZE_SECONDS)


def _thawed(group: Path) -> bool:
    """Say whether the group itself was not asked to freeze; one frozen from above may still be held by us too."""
    with suppress(Vanished):
        return read_bytes(group / "cgroup.freeze").strip() == b"0"
    return False


def _running(pid: int, stack: ExitStack) -> ProcessHandle | None:
    with suppress(Vanished):
        handle = stack.enter_context(open_process(pid))
        if read_status(pid).state not in {"T", "t", "Z", "X"}:
            return handle
    return None


def _guard(frozen: list[Path], stopped: list[ProcessHandle]) -> subprocess.Popen[bytes]:
    holds = [f"cgroup:{group}" for group in frozen] + [f"pidfd:{handle.pidfd}" for handle in stopped]
    watch = subprocess.Popen(
        [sys.executable, "-I", "-S", guardian.__file__, *holds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[handle.pidfd for handle in stopped],
        start_new_session=True,
        env={},
    )
    assert watch.stdout is not None
    if os.read(watch.stdout.fileno(), 16) != b"ready\n":
        watch.kill()
        watch.communicate()
        raise KernelError("the guardian did not start: nothing was stopped")
    return watch


def _release(frozen: list[Path], stopped: list[ProcessHandle]) -> None:
    for group in frozen:
        with suppress(Vanished):
            thaw(group)
    for handle in stopped:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle.pidfd, signal.SIGCONT)
