"""Hold and release: a job's processes stand still while their memory moves, and nothing leaves them so.

`held` is for one command; `Gate` is the agent's: it holds a job while and after Slurm has it suspended, and takes over
what an earlier agent held. What stood still before stays so: only what we stopped is released. A hold is recorded
(holds.py), then told to a guardian that releases it if we die or hang (guard.py), then set (holdable.py). When to hold
a job, and for how long, is left to the agent.
"""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from pageferry.errors import KernelError, PageferryError, Vanished
from pageferry.gate import guardian, holdable, holds
from pageferry.gate.guard import Guard
from pageferry.gate.holds import Hold
from pageferry.kernel import cgroup, private_cgroup
from pageferry.kernel.files import read_file
from pageferry.kernel.freezer import wait_frozen
from pageferry.kernel.processes import ProcessHandle, open_process
from pageferry.kernel.procfs import living_thread, read_status

FOLDER = Path("/run/pageferry/holds")
PULSE_SECONDS = 15.0

FREEZE_SECONDS = 5.0
"""A group that is not frozen by then holds a task that the kernel cannot stop (uninterruptible I/O)."""

_ROUNDS = 50
"""Processes that fork faster than we can move them are not to keep us trying for ever."""


@contextmanager
def held(groups: Iterable[Path], pids: Iterable[int] = ()) -> Iterator[int]:
    """Hold version 2 groups and, by signal, processes; yield how many holds were needed.

    Raises KernelError, with everything released again, if a group cannot be frozen within FREEZE_SECONDS.
    """
    with ExitStack() as stack:
        frozen = [group for path in groups if (group := holdable.thawed(path)) is not None]
        stopped = [handle for pid in pids if (handle := _running(pid, stack)) is not None]
        if not frozen and not stopped:
            yield 0
            return
        entries: list[guardian.Entry] = [["group", str(group.path), group.inode] for group in frozen]
        entries += [["stopped", handle.pid, handle.start_time] for handle in stopped]
        guard = stack.enter_context(Guard())
        guard.hold(0, entries)
        try:
            for group in frozen:
                holdable.freeze(group)
            for handle in stopped:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle.pidfd, signal.SIGSTOP)
            for group in frozen:
                with suppress(Vanished):
                    if not wait_frozen(group.path, True, FREEZE_SECONDS):
                        raise KernelError(f"{group.path}: not frozen after {FREEZE_SECONDS:.0f} s; released again")
            yield len(frozen) + len(stopped)
        finally:
            guardian.undo(entries)
            with suppress(KernelError):  # it was killed, and there is nothing left for it to do
                guard.forget(0)


def release_all(folder: Path = FOLDER) -> tuple[int, ...]:
    """Release every hold that is recorded, without an agent, and return the jobs; for when the agent has ended.

    Raises KernelError, with all else released, when something still stands still.
    """
    _, released, standing = _left(folder, keep=False)
    if standing:
        raise KernelError(f"not all is released: {'; '.join(standing)}")
    return released


class Gate:
    """The holds of an agent. Not for several threads; a forked child uses none of it."""

    def __init__(self, folder: Path = FOLDER, pulse_seconds: float = PULSE_SECONDS, root: Path = Path("/")) -> None:
        """Start the guardian, which releases all if `pulse` is not called for `pulse_seconds` while jobs are held.

        Waits until the guardian of an earlier agent has released what that one held. `root` is where Slurm's groups are
        looked for. Raises KernelError if the folder cannot be used, or another agent uses it.
        """
        self._folder = folder
        self._pulse_seconds = pulse_seconds
        self._root = root
        self._holds: dict[int, Hold] = {}
        holds.make_folder(folder)
        self._guard = Guard(folder, pulse_seconds)
        # A descriptor that stays the same when the guardian is another one.
        self._ended = select.epoll()
        self._ended.register(self._guard.pidfd, select.EPOLLIN)

    def hold(self, job: int) -> Hold:
        """Hold all tasks that a job has now, whether or not Slurm has suspended it; one that is held is extended.

        A freeze that was there before is not ours. A job without tasks has a hold without groups. Raises KernelError,
        with nothing of the job held, when it cannot be recorded, guarded or set.
        """
        self.reguard()
        if job in self._holds:
            self.extend(job)
            return self._holds[job]
        hold = Hold(job, time.clock_gettime(time.CLOCK_MONOTONIC), time.time())
        try:
            self._set(hold)
        except BaseException:
            self._undo(self._holds.pop(job, hold))
            private_cgroup.remove_group(job)
            raise
        return self._holds[job]

    def extend(self, job: int) -> int:
        """Hold what a held job has had new since; return how many groups or processes these were.

        To be called as soon as a group of the job appears: an empty one holds what will be put there, and slurmstepd's
        launcher may be held too. Raises KernelError; then what was held is held as before, perhaps more.
        """
        self.reguard()
        if (before := self._holds.get(job)) is None:
            return 0
        after = self._set(before)
        return len(after.groups) + len(after.moved) - len(before.groups) - len(before.moved)

    def frozen(self, job: int) -> bool:
        """Say whether the kernel has stopped all that is held of a job; False for one that is not held."""
        hold = self._holds.get(job)
        return hold is not None and holdable.stands(hold, self._root)

    def release(self, job: int) -> None:
        """Let a job go on; one that is not held, or gone, is released already. What Slurm has frozen stays so.

        Raises KernelError when the kernel does not let us; then the job is still held.
        """
        if (hold := self._holds.get(job)) is None:
            return
        if complaints := self._undo(hold):
            raise KernelError(f"job {job} cannot be released: {'; '.join(complaints)}")
        del self._holds[job]

    def held(self) -> Mapping[int, Hold]:
        """Return all holds, by job: a view that changes with them."""
        return MappingProxyType(self._holds)

    def recover(self) -> tuple[Hold, ...]:
        """Take over what an earlier agent and its guardian, both killed, left held; release what is damaged of it.

        For the start, before anything is held. The agent decides on each hold: `release`, or `extend`, which also
        freezes what was recorded and not set yet. `news` says what was released. Raises KernelError, with all
        released, when nothing can guard it.
        """
        holds.remove_unfinished(self._folder)
        kept, _, _ = _left(self._folder, keep=True, root=self._root)
        self._holds.update((hold.job, hold) for hold in kept)
        self._tell_all()
        return kept

    def news(self) -> tuple[str, ...]:
        """Return, once, what was released other than by us since the last time, and why; a line each."""
        path = self._folder / guardian.LOG
        try:
            lines = read_file(path).decode("utf-8", "backslashreplace").splitlines()
            path.unlink()
        except (PageferryError, OSError):
            return ()
        return tuple(lines)

    def pulse(self) -> None:
        """Tell the guardian that we have not hung; needed while there are holds. Never waits."""
        self._guard.pulse()

    def guardian_fd(self) -> int:
        """Return a descriptor that is readable once the guardian has ended: call `reguard`. It never changes."""
        return self._ended.fileno()

    def reguard(self) -> tuple[Hold, ...]:
        """Start another guardian if ours has ended, and return the holds that it had released before it did.

        Raises KernelError, with all released, when there can be no other.
        """
        if not self._guard.ended():
            return ()
        try:
            guard = Guard(self._folder, self._pulse_seconds)
        except KernelError:
            self._release_all()
            raise
        self._ended.unregister(self._guard.pidfd)
        self._guard.kill()
        self._guard = guard
        self._ended.register(guard.pidfd, select.EPOLLIN)
        lost = tuple(hold for job, hold in self._holds.items() if not holds.is_recorded(self._folder, job))
        self._tell_all()  # of the lost too: what is not released now is at least guarded
        for hold in lost:
            with suppress(KernelError):  # then it is still held, and as guarded as the others
                self.release(hold.job)
        return lost

    def close(self) -> None:
        """Release everything and end the guardian."""
        self._release_all()
        self._ended.close()
        self._guard.close()

    def _set(self, hold: Hold) -> Hold:
        """Hold what `hold` says and all else that its job has, until nothing new is found; return the whole."""
        for turn in range(_ROUNDS):
            before, hold = hold, holdable.grown(hold, self._root)
            if turn and hold == before:
                break
            if hold != self._holds.get(hold.job) or not holds.is_recorded(self._folder, hold.job):
                holds.write(self._folder, hold)
                self._guard.hold(hold.job, hold.entries())
            self._holds[hold.job] = hold
            holdable.set_hold(hold)
        else:
            raise KernelError(f"job {hold.job} starts processes faster than they can be held")
        # If we hung before we set it, the guardian may have given up, and undone it already: then nobody else would.
        if not holds.is_recorded(self._folder, hold.job):
            raise KernelError(f"the guardian gave up on us before job {hold.job} was held")
        return hold

    def _undo(self, hold: Hold) -> list[str]:
        complaints = guardian.release(str(self._folder), hold.job, hold.entries())
        if not complaints:
            with suppress(KernelError):  # it has ended, and the next one is not told of this hold
                self._guard.forget(hold.job)
        return complaints

    def _release_all(self) -> None:
        """Release what can be; what cannot keeps its record."""
        for hold in self._holds.values():
            self._undo(hold)
        self._holds.clear()

    def _tell_all(self) -> None:
        try:
            for hold in self._holds.values():
                self._guard.hold(hold.job, hold.entries())
        except KernelError:
            self._release_all()
            raise


def _left(folder: Path, keep: bool, root: Path = Path("/")) -> tuple[tuple[Hold, ...], tuple[int, ...], list[str]]:
    """Return the holds that were left whole, if they are to be kept; release all others.

    Returned are also the jobs that were released, and why something of them still stands still.
    """
    records = holds.read(folder, root)
    kept: list[Hold] = []
    released: list[int] = []
    damaged: list[str] = []
    standing: list[str] = []
    for record in records:
        entries = list(record.entries)
        if record.damaged:
            damaged.append(f"the record of job {record.job} was damaged in {record.damaged} lines")
        if record.damaged or any(kind == "private" for kind, *_ in entries):
            entries += _own_group(record.job)
        there = record.hold is None or holdable.remains(record.hold)
        if keep and there and record.hold is not None:
            kept.append(record.hold)
            continue
        standing += guardian.release(str(folder), record.job, entries)
        if there:
            released.append(record.job)
    if released:
        guardian.log(str(folder), "left by an earlier pageferry", released, damaged + standing)
    return tuple(kept), tuple(released), standing


def _own_group(job: int) -> list[guardian.Entry]:
    """Return the entry of our own group for a job, if there is one; on version 1 it is found by its name alone.

    Mounted first, if need be: our mount can have been in the mount namespace of the agent that ended.
    """
    with suppress(KernelError, Vanished):
        if "freezer" in cgroup.read_hierarchies().legacy:
            group = holdable.identified(private_cgroup.group_path(private_cgroup.unified_mount(), job))
            return [["private", str(group.path), group.inode]]
    return []


def _running(pid: int, stack: ExitStack) -> ProcessHandle | None:
    with suppress(Vanished):
        handle = stack.enter_context(open_process(pid))
        if read_status(living_thread(pid)).state not in {"T", "t", "Z", "X"}:
            return handle
    return None
