"""What must hold of bounded reads: what never answers is left out, in time, and costs nothing else its answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.kernel import bounded
from pageferry.kernel.files import read_bytes

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """A file of which the open waits until the test is over."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_what_answers_is_returned_in_order_and_no_thread_is_left() -> None:
    before = threading.active_count()
    answers = bounded.each(range(1000), lambda item: item * item)
    assert list(answers.values.items()) == [(item, item * item) for item in range(1000)]
    assert answers.silent == ()
    assert threading.active_count() == before


def test_nothing_is_asked_of_nothing() -> None:
    assert bounded.each([], read_bytes) == bounded.Answers({}, ())


def test_a_read_that_never_ends_costs_no_other_its_answer(tmp_path: Path, fifo: Path) -> None:
    files = [tmp_path / str(number) for number in range(50)]
    for file in files:
        file.write_text(file.name)
    began = time.monotonic()
    answers = bounded.each([*files[:25], fifo, *files[25:]], read_bytes)
    assert answers.silent == (fifo,)
    assert answers.values == {file: file.name.encode() for file in files}
    assert bounded.SILENT_SECONDS <= time.monotonic() - began < 5


def test_many_that_hang_are_waited_for_together() -> None:
    end = threading.Event()

    def read(item: int) -> int:
        if item % 2:
            end.wait(60)
        return item

    began = time.monotonic()
    answers = bounded.each(range(600), read)
    took = time.monotonic() - began
    end.set()
    assert took < 5
    hanging = set(range(1, 600, 2))
    assert hanging <= set(answers.silent), "more than there are threads for"
    assert answers.values.keys() >= set(range(0, 400, 2))


def test_a_read_that_takes_its_time_is_waited_for_although_others_went_on() -> None:
    def read(item: int) -> int:
        time.sleep(0.2 if item == 0 else 0)
        return item

    assert bounded.each(range(5), read) == bounded.Answers({item: item for item in range(5)}, ())


def test_slow_reads_one_after_another_are_not_taken_to_hang() -> None:
    def read(item: int) -> int:
        time.sleep(0.05)
        return item

    assert bounded.each(range(10), read).silent == ()


STOPPED = """
import time
from pageferry.kernel import bounded

def read(item):
    print(flush=True)
    for _ in range(10):
        time.sleep(0.05)

print(bounded.each([1], read).silent)
"""


def test_time_in_which_we_did_not_run_does_not_count() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "()\n"


def test_what_a_read_raises_is_raised_for_who_asked() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        bounded.each(["1", "x", "2"], int)
