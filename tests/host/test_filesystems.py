"""A file is one backing, and two files are two, on the file systems that containers and sites have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import READ, SHARED, job
from pageferry import ferry
from pageferry.kernel.outsiders import mapped_outside
from pageferry_planner.policy import Rules
from support.children import among_its_own_mounts

PAGES = 256


@pytest.fixture(params=["unit", "root"], autouse=True)
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    """What the kernel has of these as modules is loaded; a mount fails where it lacks one."""
    for name in ("loop", "btrfs", "squashfs", "fuse"):
        subprocess.run(["modprobe", "--quiet", name], check=False)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is undone when the test has ended."""
    with ExitStack() as found:
        yield found


def mounted(stack: ExitStack, path: Path, *words: str) -> Path:
    """Mount something at a new folder, for as long as the test runs."""
    path.mkdir(exist_ok=True)
    subprocess.run([*words, str(path)], check=True)
    stack.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)
    return path


def filled(path: Path) -> Path:
    """Make a file of so many pages."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(PAGES * 4096))
    return path


def looked_at(pids: tuple[int, ...], names: str) -> list[int]:
    """Return the pages of each backing whose path has this in it, ascending."""
    found, _ = rights.call(ferry.survey, pids, Rules())
    return sorted(
        int(found.runs.count[found.runs.backing == number].sum())
        for number, backing in enumerate(found.backings)
        if names in backing.path
    )


def are_two(one: Path, two: Path) -> None:
    """Assert that two files that maps shows as one are told apart, in the job and outside, and that each is one."""
    with job() as made, job() as other:
        for path in (one, two, one):
            made.first.map(PAGES, path, prot=READ, flags=SHARED).read()
        other.first.map(PAGES, one, prot=READ, flags=SHARED).read()
        text = Path(f"/proc/{made.first.pid}/maps").read_text()
        assert (
            len({line.split()[3:5].__str__() for line in text.splitlines() if line.endswith((one.name, two.name))}) == 1
        )
        assert looked_at(made.pids, "/file") == [PAGES, PAGES]
        found = ferry.survey(made.pids, Rules())[0].backings
        (used,) = (backing for backing in mapped_outside(found, made.pids).mapping if "/file" in backing.path)
        assert used.path == str(one)


def test_files_of_two_subvolumes_of_a_btrfs_are_two(tmp_path: Path, stack: ExitStack) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 200 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", str(image)], check=True, stderr=subprocess.DEVNULL)
    top = mounted(stack, tmp_path / "top", "mount", "-o", "loop", str(image))
    for name in ("one", "two"):
        subprocess.run(["btrfs", "--quiet", "subvolume", "create", str(top / name)], check=True)
    are_two(filled(top / "one/file"), filled(top / "two/file"))


def layers(tmp_path: Path, stack: ExitStack) -> tuple[Path, Path]:
    """Return two folders on two file systems, with a file in each that have one inode number."""
    folders = [mounted(stack, tmp_path / name, "mount", "-t", "tmpfs", name) / "files" for name in ("lower", "upper")]
    files = [filled(folder / f"file-{number}") for number, folder in enumerate(folders)]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    return folders[0], folders[1]


def test_files_of_two_layers_of_a_fuse_overlay_are_two(tmp_path: Path, stack: ExitStack) -> None:
    lower, upper = layers(tmp_path, stack)
    top = mounted(stack, tmp_path / "top", "fuse-overlayfs", "-o", f"lowerdir={lower}:{upper}")
    are_two(top / "file-0", top / "file-1")


PROGRAM = """
import mmap, os, sys
kept = []
for path in sys.argv[1:]:
    memory = mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)
    kept.append(memory)
    for page in range(0, len(memory), 4096):
        memory[page]
os.write(1, b"ready\\n")
sys.stdin.readline()
"""


@contextmanager
def in_a_container(lower: Path, upper: Path, top: Path, *paths: str) -> Iterator[int]:
    """Run a process below an overlay over a read-only image, mounted as containers do: in its mount namespace alone."""
    (upper / "work").mkdir()
    (upper / "files").mkdir()
    options = f"lowerdir={lower},upperdir={upper}/files,workdir={upper}/work"
    mounts = f"mount -t overlay -o {options} container {top} && umount --lazy {lower}"
    with among_its_own_mounts(mounts, PROGRAM, *paths) as process:
        yield process.pid


def test_the_files_of_a_containers_image_are_found(tmp_path: Path, stack: ExitStack) -> None:
    for number in range(2):
        filled(tmp_path / "image" / f"file-{number}")
    subprocess.run(
        ["mksquashfs", str(tmp_path / "image"), str(tmp_path / "image.sqfs"), "-quiet", "-no-progress"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lower = mounted(stack, tmp_path / "lower", "mount", "-o", "loop,ro", str(tmp_path / "image.sqfs"))
    upper = mounted(stack, tmp_path / "upper", "mount", "-t", "tmpfs", "upper")
    (tmp_path / "top").mkdir()
    with in_a_container(lower, upper, tmp_path / "top", *(f"{tmp_path}/top/file-{n}" for n in range(2))) as pid:
        assert looked_at((pid,), "/file-") == [PAGES, PAGES]
