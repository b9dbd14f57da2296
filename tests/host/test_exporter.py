"""What must hold of metrics on their way to a file: whole at each moment, seldom written, and nobody's trouble."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.exporter import COALESCE_SECONDS, FILE, Exporter, replace
from pageferry.agent.metrics import Metrics
from pageferry.config import Address, Folder
from pageferry.config import Metrics as Settings
from pageferry.history.store import Store
from support.wire_agent import Clock


@pytest.fixture
def chronicle(tmp_path: Path) -> Chronicle:
    return Chronicle(Store(tmp_path / "history.sqlite3"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "collector"
    made.mkdir()
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exporter(chronicle: Chronicle, folder: Path, clock: Clock) -> Iterator[Exporter]:
    metrics = Metrics(chronicle, lambda: {"held": 0, "waits": 0})
    made = Exporter(metrics, Settings(textfile=Folder(folder)), clock=clock)
    yield made
    made.close()


def pass_until(exporter: Exporter, clock: Clock) -> None:
    """Let the time pass that the exporter asks for, and have it do what is due then."""
    at = exporter.due()
    assert at is not None
    clock.now = at
    exporter.due()


def test_the_file_is_written_soon_after_the_start_and_then_only_when_something_changed(
    exporter: Exporter, chronicle: Chronicle, folder: Path, clock: Clock
) -> None:
    assert exporter.due() == clock.now + COALESCE_SECONDS
    assert list(folder.iterdir()) == []
    pass_until(exporter, clock)
    first = (folder / FILE).stat()
    for _ in range(5):
        clock.now += 100
        assert exporter.due() is None, "nothing is to be done until something happens"
    assert (folder / FILE).stat().st_ino == first.st_ino
    chronicle.tell(None, "held")
    pass_until(exporter, clock)
    assert 'pageferry_events_total{kind="held"} 1\n' in (folder / FILE).read_text()
    assert exporter.due() is None


def test_many_changes_at_once_are_one_write(
    exporter: Exporter, chronicle: Chronicle, folder: Path, clock: Clock
) -> None:
    pass_until(exporter, clock)
    written = set()
    start = clock.now
    for _ in range(1000):
        chronicle.tell(None, "held")
        clock.now += 0.01
        exporter.due()
        written.add((folder / FILE).stat().st_mtime_ns)
    assert len(written) <= (clock.now - start) / COALESCE_SECONDS + 1
    pass_until(exporter, clock)
    assert 'pageferry_events_total{kind="held"} 1000\n' in (folder / FILE).read_text()


def test_everyone_may_read_the_file_whatever_the_umask(exporter: Exporter, folder: Path, clock: Clock) -> None:
    before = os.umask(0o077)
    try:
        pass_until(exporter, clock)
    finally:
        os.umask(before)
    assert (folder / FILE).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_reader_has_the_old_file_or_the_new_one_and_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / FILE
    replace(path, "old\n" * 10000)
    with path.open() as reader:
        replace(path, "new\n")
        assert reader.read() == "old\n" * 10000
    assert path.read_text() == "new\n"


def test_a_link_in_the_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (FILE, f".{FILE}.new"):
        (tmp_path / name).symlink_to(victim)
    replace(tmp_path / FILE, "new\n")
    assert victim.read_text() == "precious"
    assert not (tmp_path / FILE).is_symlink()


def test_a_folder_that_cannot_be_used_is_said_once_and_used_when_it_can_be(
    exporter: Exporter, chronicle: Chronicle, folder: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder.rmdir()
    for _ in range(3):
        chronicle.tell(None, "held")
        pass_until(exporter, clock)
    (said,) = caplog.messages
    assert said.startswith(f"metrics.textfile: {folder}/")
    assert "No such file or directory" in said
    assert exporter.faults() == [said.partition(";")[0]]
    folder.mkdir()
    chronicle.tell(None, "held")
    pass_until(exporter, clock)
    assert exporter.faults() == []
    assert caplog.messages[1:] == [f"{folder / FILE}: written again"]


def test_a_full_disk_leaves_the_last_file_and_nothing_beside_it(
    exporter: Exporter, chronicle: Chronicle, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_until(exporter, clock)
    before = (folder / FILE).read_text()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    chronicle.tell(None, "held")
    monkeypatch.setattr(os, "fchmod", full)
    pass_until(exporter, clock)
    assert exporter.faults() == [f"metrics.textfile: {folder / FILE}: No space left on device"]
    assert (folder / FILE).read_text() == before
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_the_last_file_says_that_the_agent_was_stopped(exporter: Exporter, folder: Path, clock: Clock) -> None:
    pass_until(exporter, clock)
    assert "\npageferry_up 1\n" in (folder / FILE).read_text()
    exporter.close()
    assert "\npageferry_up 0\n" in (folder / FILE).read_text()
    shutil.rmtree(folder)
    exporter.close()  # nobody is left to tell


def test_without_folder_and_address_there_is_nothing_to_do(chronicle: Chronicle) -> None:
    made = Exporter(Metrics(chronicle, dict), Settings(textfile=Folder("")))
    assert (made.due(), made.descriptors(), made.faults()) == (None, {}, [])
    chronicle.tell(None, "held")
    assert made.due() is None
    made.close()


def test_an_address_that_is_taken_costs_the_address_alone(chronicle: Chronicle, folder: Path, clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address(f"127.0.0.1:{other.getsockname()[1]}")
        settings = Settings(textfile=Folder(folder), listen=address)
        made = Exporter(Metrics(chronicle, dict), settings, clock=clock)
        assert made.faults() == [f"metrics.listen: {address}: Address already in use"]
        assert made.descriptors() == {}
        pass_until(made, clock)
        assert (folder / FILE).exists()
        made.close()
