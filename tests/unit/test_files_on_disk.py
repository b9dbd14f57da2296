"""What must hold of every file on disk that is read: what is no file is not waited for, and costs one clear line."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pageferry import config, render
from pageferry.agent.homes import Homes
from pageferry.cpus import record as cpu_record
from pageferry.doctor.pbs import examine_pbs
from pageferry.doctor.slurm import _is_ours
from pageferry.errors import KernelError, PageferryError, UsageError
from pageferry.history.store import Store
from pageferry.kernel.files import open_file, read_file
from pageferry.mems import record as mems_record
from pageferry.pbs import record as pbs_record
from pageferry.render_pbs import PbsOptions, render_pbs
from pageferry.replay.read import read as read_snapshot
from pageferry.schedulers.slurm_config import read_settings
from support.odd_files import KINDS, in_time, make_odd


def settings(folder: Path) -> list[str]:
    return config.faults(folder / "pageferry.toml")


def cpu_map(folder: Path) -> str | None:
    return cpu_record.load(folder)[1]


def hooks(folder: Path) -> list[str]:
    return [finding.text for finding in examine_pbs(folder)]


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("pageferry.toml", settings),
    ("policy.d/10.toml", settings),
    ("snapshot.jsonl", lambda folder: read_snapshot(folder / "snapshot.jsonl")),
    (cpu_record.NAME, cpu_map),
    ("7.json", lambda folder: mems_record.load(7, folder)),
    ("12.server.json", lambda folder: pbs_record.load("12.server", folder)),
    ("homes.json", Homes),
    ("history.sqlite3", lambda folder: Store(folder / "history.sqlite3").record_event(1, 0, "hold", "")),
    ("slurm.conf", lambda folder: read_settings(folder / "slurm.conf")),
    ("prolog", lambda folder: _is_ours(folder / "prolog")),
    ("etc/pbs.conf", hooks),
    ("pageferry.qmgr", lambda folder: render.is_written(folder / "pageferry.qmgr", "", force=False)),
    ("pageferry-hook.json", lambda folder: render_pbs(folder, PbsOptions(Path("/hooks"), Path("/command")))),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "reader"), READERS, ids=[name for name, _ in READERS])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, kind: str, name: str, reader: Callable[[Path], object]
) -> None:
    make_odd(tmp_path / name, kind)
    with in_time():
        try:
            reader(tmp_path)
        except PageferryError as error:
            assert name.rpartition("/")[2] in str(error)
            assert str(error).isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_settings_in_what_is_no_file_are_a_fault_and_not_all_defaults(tmp_path: Path, kind: str) -> None:
    path = make_odd(tmp_path / "pageferry.toml", kind)
    other = make_odd(tmp_path / "policy.d/1.toml", kind)
    with in_time():
        assert [fault.partition(": ")[0] for fault in config.faults(path)] == [str(path), str(other)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_in_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    with in_time(), pytest.raises(UsageError):
        read_snapshot(make_odd(tmp_path / "snapshot", kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_a_file_is_opened(tmp_path: Path, kind: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for read in (open_file, read_file):
        with in_time(), pytest.raises(KernelError):
            read(make_odd(tmp_path / read.__name__, kind))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    with pytest.raises(KernelError):
        read_file(tmp_path / "socket")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert read_file(path, 100_000) == b"x" * 100_000
    with pytest.raises(KernelError):
        read_file(path, 99_999)
    with path.open("ab") as file:
        file.truncate(1 << 40)
    with in_time(), pytest.raises(KernelError):
        read_file(path)


def test_the_null_device_is_an_empty_file(tmp_path: Path) -> None:
    link = tmp_path / "pageferry.toml"
    link.symlink_to("/dev/null")
    assert read_file(link) == b""
    assert config.load(link) == config.load(tmp_path / "none")
