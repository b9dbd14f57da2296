"""Fixtures of the tests that need several NUMA nodes: what the machine is, and a Slurm on it.

Run by `python -m guest.vm run -- pytest tests/guest`. Elsewhere every test here fails: a test that did not
run has shown nothing.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import pytest

pytest.register_assert_rewrite("guest.fuzz_round", "guest.proof")

from guest import rights, witness  # noqa: E402
from guest.vm import slurm as daemons  # noqa: E402
from guest.vm.jobs import Slurm  # noqa: E402
from guest.vm.layouts import LAYOUTS, Layout, observed  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let several machines share the files, `--shard 1/2` and `--shard 2/2`; say with whose rights memory is moved."""
    parser.addoption("--shard", default="1/1", metavar="I/N", help="run the I-th of N parts of the files")
    parser.addoption("--fuzz-seconds", type=float, default=30.0, help="how long test_fuzz_account.py tries fresh seeds")
    parser.addoption(
        "--fuzz-seed", type=int, action="append", default=[], help="a seed for it instead of those it keeps"
    )
    parser.addoption("--rights", choices=("unit", "root"), default="unit", help="those of the agent's unit, or all")


def pytest_configure(config: pytest.Config) -> None:
    """Tell `rights` whose they are, and let mounts reach other namespaces, as they do where systemd has booted."""
    os.environ[rights.VARIABLE] = config.getoption("--rights")
    if "PAGEFERRY_GUEST_LAYOUT" in os.environ:
        subprocess.run(["mount", "--make-rshared", "/"], check=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the files of this part, in the order that starts Slurm least often; the Makefile has the other parts run.

    First what needs neither Slurm nor a nursery, since these map what jobs map, which must not be found in use there;
    then what shares them; last what starts a Slurm of its own.
    """
    part, parts = map(int, config.getoption("--shard").split("/"))
    turns: dict[Path, int] = {}
    for item in items:
        own = hasattr(item, "module") and hasattr(item.module, "daemons")
        shares = "slurm" in getattr(item, "fixturenames", ()) or uses_a_nursery(item)
        turn = 2 if own else int(shares)
        turns[item.path] = max(turn, turns.get(item.path, 0))
    files = sorted(turns, key=lambda path: (turns[path], path))
    ours = files[part - 1 :: parts]
    config.hook.pytest_deselected(items=[item for item in items if item.path not in ours])
    items[:] = sorted((item for item in items if item.path in ours), key=lambda item: ours.index(item.path))


def uses_a_nursery(item: pytest.Item) -> bool:
    """Say whether a test's file may start one, which stays."""
    module = getattr(item, "module", None)
    return any(hasattr(module, name) for name in ("nursery", "agents", "pageferry"))


@pytest.fixture(scope="session", autouse=True)
def several_nodes() -> None:
    """Fail each test unless this machine was declared to be a guest, or a host of several nodes."""
    if "PAGEFERRY_GUEST_LAYOUT" not in os.environ:
        pytest.fail("needs several NUMA nodes: python -m guest.vm run [--here] -- pytest ...", pytrace=False)


@pytest.fixture(scope="session")
def layout(several_nodes: None) -> Layout:
    """The topology that was asked for; on a host of several nodes, the one it has."""
    name = os.environ["PAGEFERRY_GUEST_LAYOUT"]
    return observed() if name == "here" else LAYOUTS[name]


@pytest.fixture(scope="session")
def cgroup(several_nodes: None) -> Literal["v1", "v2"]:
    """The cgroup version that was asked for."""
    return cast(Literal["v1", "v2"], os.environ["PAGEFERRY_GUEST_CGROUP"])


@pytest.fixture(scope="session")
def results(several_nodes: None) -> Path:
    """A folder that is left on the host."""
    return Path(os.environ["PAGEFERRY_RESULTS"])


@pytest.fixture(scope="module")
def slurm(layout: Layout) -> Iterator[Slurm]:
    """Slurm, on version 2 the same for all files that need no settings of their own; it has no job before each."""
    if layout.name == "observed":
        pytest.fail("Slurm is configured in a guest only; run without --here", pytrace=False)
    running = daemons.start()
    yield running
    if running.cgroup == "v1":  # where it leaves groups of jobs behind that have ended
        daemons.stop()
    else:
        running.cancel_all()


@pytest.fixture(scope="session", autouse=True)
def quiet(several_nodes: None) -> Iterator[None]:
    """Keep the kernel's own movers still, so that each page that moves was asked for: khugepaged and kcompactd."""
    settings = {
        Path("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs"): "4000000000",
        Path("/proc/sys/vm/compaction_proactiveness"): "0",
    }
    before = {path: path.read_text() for path in settings}
    for path, value in settings.items():
        path.write_text(value)
    yield
    for path, value in before.items():
        path.write_text(value)
    witness.count_no_more()


@pytest.fixture
def overlay(several_nodes: None, tmp_path: Path) -> Iterator[Path]:
    """An empty overlay over two folders of a tmpfs that is mounted nowhere else, as a container's root may be one."""
    folder, hidden = tmp_path / "overlay", tmp_path / "hidden"
    for path in (folder, hidden):
        path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "hidden", str(hidden)], check=True)
    for name in ("lower", "upper", "work"):
        (hidden / name).mkdir()
    layers = f"lowerdir={hidden}/lower,upperdir={hidden}/upper,workdir={hidden}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(hidden)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def scratch(several_nodes: None, tmp_path: Path) -> Iterator[Path]:
    """An empty ext4 file system, of our own."""
    disk = os.environ["PAGEFERRY_SCRATCH"]
    folder = tmp_path / "scratch"
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-qF", "-O", "^has_journal", disk], check=True)
    subprocess.run(["mount", disk, str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
