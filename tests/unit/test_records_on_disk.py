"""What must hold of the agent's own records on disk, whatever has become of them.

A wrong entry costs that entry or its file, and a word in the log; it is never taken, and keeps nobody from starting.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pageferry.agent.homes import Homes
from pageferry.cpus import record as cpu_record
from pageferry.errors import KernelError
from pageferry.mems import record as mems_record
from pageferry.pbs import record as pbs_record
from support.trees import write

DEEP = "[" * 5000
NO_JSON = ["", "[", DEEP, '{"a":' * 5000, "1e999", "nul", "\x00", "[1e999]", '{"nodes": {"7": [1e999]}}', "9" * 10_000]
NO_NODES: list[Any] = ["[-1]", "[4294967296]", "[1.9]", "[true]", '["1"]', "[[1]]", "3", "null", '"01"', "[1.0]", "{}"]
NO_JOBS = ["-1", "0", "", "7.0", "1e3", " 7", "4294967296", "\u0667", "1_0", "7x", "9" * 40]
NO_TABLES: list[Any] = [[], None, "x", {"7": []}, {"7": {"/a": None}}, {"7": {"/a": {}}}]
NO_PATHS = ["/\\ud800", "/a\\u0000b", "relative", "", "\\udfff"]


def homes_file(**tables: str) -> str:
    said = {"nodes": "{}", "served": "{}", "owners": "{}", "parked": "{}", "left": "{}"} | tables
    return "{" + ", ".join(f'"{name}": {text}' for name, text in said.items()) + "}"


def homes_of(folder: Path, text: str) -> Homes:
    (folder / "homes.json").write_text(text)
    return Homes(folder)


@pytest.mark.parametrize("text", [*NO_JSON, "[]", "1", '"x"', "null"], ids=lambda text: text[:12])
def test_homes_that_are_none_cost_that_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    homes = homes_of(tmp_path, text)
    assert (homes.get(7), homes.served(7), homes.parked(7)) == (None, "", ())
    (said,) = caplog.records
    assert (said.levelno, "homes.json" in said.getMessage()) == (logging.WARNING, True)
    assert len(said.getMessage()) < 500
    homes.put(7, (1,))
    assert Homes(tmp_path).get(7) == (1,)


@pytest.mark.parametrize("nodes", NO_NODES)
@pytest.mark.parametrize("table", ["nodes", "parked", "left"])
def test_wrong_nodes_cost_that_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str, nodes: str) -> None:
    homes = homes_of(tmp_path, homes_file(**{table: f'{{"6": [0, 1], "7": {nodes}, "8": [3]}}'}))
    read = {"nodes": homes.get, "parked": homes.parked, "left": homes.left}[table]
    assert [read(job) or () for job in (6, 7, 8)] == [(0, 1), (), (3,)]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("job", NO_JOBS)
def test_a_wrong_job_costs_that_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture, job: str) -> None:
    homes = homes_of(tmp_path, homes_file(nodes=json.dumps({job: [2], "8": [3]}), served=json.dumps({job: "x"})))
    assert homes.get(8) == (3,)
    homes.put(9, (1,))
    assert json.loads((tmp_path / "homes.json").read_text())["nodes"] == {"8": [3], "9": [1]}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("table", ["nodes", "served", "owners", "parked", "left"])
def test_a_table_that_is_none_costs_that_table(tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str) -> None:
    good = {"nodes": '{"7": [1]}', "served": '{"7": "a"}', "owners": '{"7": "b"}', "parked": '{"7": [2]}'}
    homes = homes_of(tmp_path, homes_file(**(good | {table: "[1]"})))
    found = [homes.get(7), homes.served(7), homes.owners(7), homes.parked(7)]
    assert sum(not one for one in found) == (0 if table == "left" else 1)
    assert len(caplog.records) == 1


def test_homes_without_a_fault_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Homes(tmp_path).get(7) is None
    assert homes_of(tmp_path, homes_file(nodes='{"7": [1]}')).get(7) == (1,)
    assert homes_of(tmp_path, '{"nodes": {"7": [2]}}').get(7) == (2,)
    assert not caplog.records


def cpu_file(**tables: Any) -> dict[str, Any]:
    one = {"inode": 5, "slurm": [0, 1], "real": [2, 3], "was": None}
    whole: dict[str, Any] = {"version": 1, "boot": "b", "map": {"0": 2, "1": 3, "2": 0, "3": 1}}
    return whole | {"jobs": {"7": {"/sys/fs/cgroup/a": one}}, "pins": {"12": {"13": [1]}}} | tables


def cpu_maps(root: Path, text: str) -> tuple[cpu_record.CpuMap, str | None]:
    write(root, "proc/sys/kernel/random/boot_id", "b\n")
    write(root, cpu_record.NAME, text)
    return cpu_record.load(root, root)


def test_homes_with_a_request_that_is_no_utf8_are_all_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    homes = Homes(tmp_path)
    homes.put(7, (2,))
    homes.put_served(7, "pageferry:nodes=\udcff")
    assert Homes(tmp_path).get(7) == (2,)
    assert caplog.records == []


def test_a_cpu_map_without_a_fault_is_taken(tmp_path: Path) -> None:
    found, complaint = cpu_maps(tmp_path, json.dumps(cpu_file()))
    assert complaint is None
    assert (list(found.jobs), list(found.pins)) == ([7], [12])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"jobs": {job: {}}} for job in NO_JOBS if job != "0"),
        *({"pins": {job: {"1": [0]}}} for job in NO_JOBS if job != "0"),
        *({"pins": {"1": {job: [0]}}} for job in [*NO_JOBS, "1073741824"] if job != "0"),
        *({"jobs": {"7": {json.loads(f'"{path}"'): cpu_file()["jobs"]["7"]["/sys/fs/cgroup/a"]}}} for path in NO_PATHS),
        *({"jobs": {"7": {"/a": {"inode": inode, "slurm": [], "real": [], "was": None}}}} for inode in (-1, 1 << 64)),
        *({"map": {"0": to}} for to in (-1, 1.0, True, "1", None, 1 << 32, [1])),
        *({"jobs": other} for other in NO_TABLES),
        *({"version": version} for version in (0, 2, "1", None, [1])),
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_a_cpu_map_with_a_fault_is_not_taken(tmp_path: Path, wrong: Mapping[str, Any]) -> None:
    found, complaint = cpu_maps(tmp_path, json.dumps(cpu_file(**wrong)))
    assert (found.jobs, found.pins, found.permutation.as_plain()) == ({}, {}, {})
    assert complaint is not None
    assert complaint.isprintable()


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: text[:12])
def test_a_cpu_map_that_is_none_is_not_taken(tmp_path: Path, text: str) -> None:
    found, complaint = cpu_maps(tmp_path, text)
    assert (found.jobs, complaint is None) == ({}, False)
    assert len(complaint or "") < 500


GROUP = '{"path": "%s", "inode": %s, "scheduler": "%s", "ours": "0"}'


@pytest.mark.parametrize(
    "text",
    [
        *NO_JSON,
        *(f"[{GROUP % (path, 1, '0')}]" for path in NO_PATHS),
        *(f"[{GROUP % ('/a', inode, '0')}]" for inode in ("-1", "1.5", "true", str(1 << 64), "null")),
        *(f"[{GROUP % ('/a', 1, nodes)}]" for nodes in ("3-1", "x", "0\\n1", "-1")),
    ],
    ids=lambda text: text[:12],
)
def test_a_record_of_narrowed_groups_with_a_fault_is_not_taken(tmp_path: Path, text: str) -> None:
    (tmp_path / "7.json").write_text(text)
    with pytest.raises(KernelError) as caught:
        mems_record.load(7, tmp_path)
    assert "7.json" in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_record_of_narrowed_groups_is_read_back(tmp_path: Path) -> None:
    groups = (mems_record.Group("/sys/fs/cgroup/\udcff", 1, "", "0-1"),)
    with pytest.raises(KernelError):
        mems_record.save(7, groups, tmp_path)
    groups = (mems_record.Group("/sys/fs/cgroup/a", 1, "", "0-1"),)
    mems_record.save(7, groups, tmp_path)
    assert mems_record.load(7, tmp_path) == groups


@pytest.mark.parametrize("key", ["homes", "placed", "settled", "parked", "left"])
@pytest.mark.parametrize("nodes", NO_NODES)
def test_a_record_of_a_pbs_job_with_wrong_nodes_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, nodes: str
) -> None:
    (tmp_path / "12.s.json").write_text(f'{{"{key}": {nodes}, "told": "x"}}')
    assert pbs_record.load("12.s", tmp_path) == pbs_record.Record()
    assert [(said.levelno, "12.s.json" in said.getMessage()) for said in caplog.records] == [(logging.WARNING, True)]


@pytest.mark.parametrize("text", [text for text in NO_JSON if "nodes" not in text], ids=lambda text: text[:12])
def test_a_record_of_a_pbs_job_that_is_none_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "12.s.json").write_text(text)
    assert pbs_record.load("12.s", tmp_path) == pbs_record.Record()
    assert len(caplog.records) == 1
