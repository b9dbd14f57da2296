"""What must hold of processes that share an address space, on the real kernel: one of them is looked at."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from guest import rights
from pageferry import ferry
from pageferry.errors import KernelError
from pageferry.kernel import address_spaces
from pageferry.kernel.address_spaces import first_of_each
from pageferry_planner.policy import Rules
from support.children import LEADER_ENDS, child, python, said, wait_ended

HAS_CHILDREN = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
stacks = []
for flags in map(int, sys.stdin.readline().split()):
    stacks.append(ctypes.create_string_buffer(65536))
    top = (ctypes.addressof(stacks[-1]) + 65536) & ~15
    print(libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), top, flags | signal.SIGCHLD, None), flush=True)
sys.stdin.read()
"""
"""A program that clones itself with each of the flags that it is given; the clones never run Python, they wait."""

CLONE_VM = 0x100


@contextmanager
def family(*flags: int) -> Iterator[tuple[int, ...]]:
    """Run a process with clones made by these flags; yield the IDs of all, the oldest first."""
    with python(HAS_CHILDREN) as process:
        assert process.stdin is not None
        process.stdin.write(f"{' '.join(map(str, flags))}\n".encode())
        process.stdin.flush()
        clones: list[int] = []
        try:
            clones.extend(said(process) for _ in flags)
            yield process.pid, *clones
        finally:
            for clone in clones:
                os.kill(clone, signal.SIGKILL)


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("whose", ["unit", "root"])
def test_of_processes_that_share_an_address_space_the_first_is_kept(
    whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rights.VARIABLE, whose)
    with family(CLONE_VM, 0, CLONE_VM, 0) as (parent, same, forked, same_too, forked_too):
        assert len({maps(pid) for pid in (parent, same, same_too)}) == 1
        group = (parent, same, forked, same_too, forked_too)
        assert rights.call(first_of_each, group) == [parent, forked, forked_too]
        assert rights.call(first_of_each, group[::-1]) == [forked_too, same_too, forked]


def test_several_address_spaces_that_are_shared_are_told_apart() -> None:
    with family(CLONE_VM, CLONE_VM) as (a, b, c), family(CLONE_VM) as (d, e), child() as alone:
        assert first_of_each([a, d, b, alone.pid, e, c]) == [a, d, alone.pid]
        assert first_of_each([c, e]) == [c, e]


def test_many_processes_cost_no_comparison_of_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    really, compared = address_spaces._compare, 0

    def compare(one: int, other: int) -> int:
        nonlocal compared
        compared += 1
        return really(one, other)

    monkeypatch.setattr(address_spaces, "_compare", compare)
    with family(*[0] * 31, *[CLONE_VM] * 32) as pids:
        assert first_of_each(pids) == list(pids[:32])
    assert compared < 64 * 8


def test_processes_whose_first_threads_have_ended_are_not_one() -> None:
    with python(LEADER_ENDS) as one, python(LEADER_ENDS) as other:
        said(one), said(other)
        assert first_of_each([one.pid, other.pid]) == [one.pid, other.pid]


def test_a_process_that_has_ended_hides_no_address_space_that_others_share() -> None:
    with ExitStack() as stack:
        parent, same = stack.enter_context(family(CLONE_VM))
        gone = stack.enter_context(child())
        gone.kill()
        gone.wait()
        zombie = stack.enter_context(child("true"))
        wait_ended(zombie)
        kept = first_of_each([gone.pid, parent, zombie.pid, same])
    assert set(kept) & {parent, same} == {parent}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESRCH])
def test_where_the_kernel_does_not_tell_all_are_kept(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(address_spaces, "_compare", fails)
    with family(CLONE_VM) as pids:
        assert first_of_each(pids) == list(pids)


def test_of_other_machines_and_of_one_process_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> int:
        raise KernelError("asked")

    monkeypatch.setattr(address_spaces, "_compare", asked)
    assert first_of_each([]) == []
    assert first_of_each([7]) == [7]
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    assert first_of_each([7, 8]) == [7, 8]


def test_what_two_processes_of_one_address_space_map_is_counted_once() -> None:
    with family(CLONE_VM) as (parent, same):
        alone = ferry.survey([parent], Rules())[0]
        both = ferry.survey([parent, same], Rules())[0]
        assert both.runs.pages() == alone.runs.pages()
        assert [process.pid for process in both.processes] == [parent]
