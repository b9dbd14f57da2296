"""Errands: forked children whose failures are answers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pageferry import applied, hotness
from pageferry.agent.errand import Errand, Result, Say, begin
from pageferry.errors import UsageError


def finished(errand: Errand) -> tuple[list[Mapping[str, Any]], Result]:
    said: list[Mapping[str, Any]] = []
    while errand.result is None:
        assert select.select([errand.fd], [], [], 20)[0], "the errand says nothing"
        said += errand.read()
    return said, errand.result


def test_an_errand_reports_on_the_way_and_its_value_at_the_end() -> None:
    def work(say: Say) -> dict[str, int]:
        say({"progress": 1})
        say({"progress": 2, "text": "a\nline" * 50_000})
        return {"pid": os.getpid()}

    errand = begin(work)
    said, result = finished(errand)
    assert [message["progress"] for message in said] == [1, 2]
    assert result == Result({"pid": errand.pid}, None)
    assert errand.pid != os.getpid()


def test_an_error_of_ours_keeps_its_line_and_exit_code() -> None:
    def work(_say: Say) -> dict[str, int]:
        raise UsageError("no such node: 9")

    assert finished(begin(work))[1] == Result(None, "no such node: 9", 2)


def test_any_other_error_is_an_answer_too() -> None:
    def work(_say: Say) -> dict[str, int]:
        raise ValueError("bad plan")

    assert finished(begin(work))[1] == Result(None, "ValueError: bad plan", 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_is_killed_is_an_answer(number: signal.Signals) -> None:
    def work(_say: Say) -> dict[str, int]:
        os.kill(os.getpid(), number)
        return {}

    assert finished(begin(work))[1].error == f"the errand was ended by {number.name}"


def test_a_child_that_waits_can_be_hurried_at_any_time_and_never_ends_by_it() -> None:
    def work(_say: Say) -> dict[str, float]:
        began = time.monotonic()
        hotness.pause(60.0)
        return {"waited": time.monotonic() - began}

    errand = begin(work)
    errand.hurry()  # perhaps before it waits, or has run at all
    value = finished(errand)[1].value
    assert value is not None
    assert value["waited"] < 20
    assert hotness.HURRY not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_child_that_is_interrupted_at_once_says_so_and_its_parent_hears_of_no_signal() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    before = signal.set_wakeup_fd(write_end)
    handler = signal.signal(signal.SIGINT, lambda _number, _frame: None)

    def work(_say: Say) -> dict[str, int]:
        with applied.interruptible():
            time.sleep(60)
        return {}

    try:
        errand = begin(work)
        errand.interrupt()  # before it has a handler of its own
        assert finished(errand)[1].error == "its time was used up before its memory began to move"
        with pytest.raises(BlockingIOError):
            os.read(read_end, 64)
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_child_that_exits_without_a_word_is_an_answer() -> None:
    assert finished(begin(lambda _say: os._exit(7)))[1].error == "the errand ended early, with exit code 7"


def test_a_child_has_none_of_the_agents_descriptors() -> None:
    read_end, write_end = os.pipe()

    def work(_say: Say) -> dict[str, int]:
        return {"open": len(list(Path("/proc/self/fd").iterdir()))}

    value = finished(begin(work))[1].value
    os.close(read_end)
    os.close(write_end)
    assert value is not None
    assert value["open"] <= 5, "three standard ones, the pipe, and the one that lists them"


def test_an_errand_can_be_ended() -> None:
    def work(_say: Say) -> dict[str, int]:
        time.sleep(60)
        return {}

    errand = begin(work)
    errand.kill()
    assert errand.result is not None
    assert errand.result.error == "the errand was ended by SIGKILL"
    errand.kill()


def test_a_child_ends_with_its_agent() -> None:
    program = """
import os, time
from pageferry.agent.errand import begin
errand = begin(lambda say: time.sleep(60) or {})
print(errand.pid, flush=True)
time.sleep(60)
"""
    agent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "plugin:planner"},
    )
    assert agent.stdout is not None
    child = os.pidfd_open(int(agent.stdout.readline()))
    agent.kill()
    agent.wait()
    assert select.select([child], [], [], 20)[0], "the child lives on"
    os.close(child)
    agent.stdout.close()
