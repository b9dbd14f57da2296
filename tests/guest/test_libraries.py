"""What the rest of the host uses, or the site wants to stay, stays; what is the job's alone moves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from guest import rights
from guest.proof import Object, Proof, prove, prove_whole, request
from guest.ranks import READ, SHARED, Job, filled, job
from guest.witness import vmas
from pageferry_planner.model import Bucket
from pageferry_planner.policy import Rules


@pytest.fixture
def others() -> Iterator[Job]:
    """Processes outside the job that run the same program."""
    with job(node=0) as made:
        yield made


def libraries(made: Job) -> set[str]:
    """Return the paths of the files that a job maps."""
    return {vma.path for rank in made.ranks for vma in vmas(rank.pid) if vma.path.startswith("/")}


def library_of(made: Job, name: str) -> str:
    """Return the path of a library that a job has loaded."""
    (path,) = {path for path in libraries(made) if Path(path).name.startswith(name)}
    return path


def prove_stays(
    made: Job, paths: set[str], rule: str, rules: Rules | None = None, objects: Iterable[Object] = ()
) -> Proof:
    """Move the job to node 2, and assert that of all its pages only the files of `paths` stay, by that rule."""
    proof = prove(made, request(2, rules=rules), objects)
    staying = proof.before.cached(*paths).total()
    assert staying > 0
    assert proof.outcome.tally.excluded == {rule: staying}
    assert proof[Bucket.EXCLUDED] == staying
    assert proof[Bucket.MOVED] == proof.outcome.tally.requested
    assert proof.after.not_on(2) <= staying
    assert proof.outcome.complete
    return proof


def test_the_c_library_that_the_host_uses_too_stays_and_a_library_of_the_job_moves(tmp_path: Path, others: Job) -> None:
    with job(node=0, ranks=2) as made:
        copy = tmp_path / "libours.so"
        shutil.copy(library_of(made, "libm."), copy)
        for rank in made.ranks:
            rank.ask("load", str(copy))
        libc = library_of(made, "libc.")
        rights.move(others.pids, request(0, rules=Rules(reference_count=False)))
        proof = prove_stays(made, libraries(made) & libraries(others), "reference-count", objects=[(copy, 0, 1000)])
        assert proof.after.cached(libc) == proof.before.cached(libc)
        assert proof.after.cached(libc)[0] > 200
        assert proof.before.of(copy).keys() == {0}
        assert proof.after.of(copy) == {2: proof.before.of(copy)[0]}


def test_without_the_reference_count_the_c_library_moves(others: Job) -> None:
    with job(node=0) as made:
        prove_whole(made, 2, rules=Rules(reference_count=False))


def test_a_file_that_a_process_outside_the_job_maps_stays(tmp_path: Path) -> None:
    path = tmp_path / "data"
    filled(path, 100)
    with job(node=0) as made, job(node=0) as stranger:
        made.first.map(100, path, flags=SHARED).write()
        stranger.first.map(1, path, 99, prot=READ, flags=SHARED)
        proof = prove_stays(made, {str(path), *(libraries(made) & libraries(stranger))}, "reference-count")
        assert proof.after.of(path) == {0: 100}


def test_what_a_process_wrote_to_its_copy_of_a_shared_library_moves(tmp_path: Path) -> None:
    path = tmp_path / "data"
    filled(path, 100)
    with job(node=0) as made, job(node=0) as stranger:
        made.first.map(100, path).read().write(0, 40)
        stranger.first.map(100, path, prot=READ)
        proof = prove(made, request(2), objects=[(path, 0, 100)])
        assert proof.after.of(path)[2] == 40


@pytest.mark.parametrize(
    ("marks", "stays"),
    [
        ({"user.pageferry": b"stay"}, True),
        ({"trusted.pageferry": b"move", "user.pageferry": b"stay"}, False),
        *(
            pytest.param(*marks_and_fate, marks=pytest.mark.long)
            for marks_and_fate in (
                ({"trusted.pageferry": b"stay"}, True),
                ({"user.pageferry": b"stay\n"}, True),
                ({"user.pageferry": b"move"}, False),
                ({"user.pageferry": b"what?"}, False),
            )
        ),
    ],
    ids=str,
)
def test_a_mark_on_a_file_says_whether_it_stays(scratch: Path, marks: dict[str, bytes], stays: bool) -> None:
    path = scratch / "data"
    filled(path, 100)
    for name, value in marks.items():
        os.setxattr(path, name, value)
    os.sync()
    with job(node=0) as made:
        made.first.map(100, path, prot=READ).read()
        if stays:
            assert prove_stays(made, {str(path)}, "xattr").after.of(path) == {0: 100}
        else:
            assert prove_whole(made, 2).after.of(path) == {2: 100}


def test_the_administrators_mark_moves_a_file_that_others_use(scratch: Path) -> None:
    path = scratch / "data"
    filled(path, 100)
    os.setxattr(path, "trusted.pageferry", b"move")
    os.sync()
    with job(node=0) as made, job(node=0) as stranger:
        for rank in (made.first, stranger.first):
            rank.map(100, path, prot=READ).read()
        proof = prove_stays(made, libraries(made) & libraries(stranger) - {str(path)}, "reference-count")
        assert proof.after.of(path) == {2: 100}


def test_what_is_on_the_sites_list_stays(tmp_path: Path) -> None:
    path = tmp_path / "listed.so.1"
    filled(path, 100)
    with job(node=0) as made:
        made.first.map(100, path, prot=READ).read()
        rules = Rules(stay=("*/listed.so*",))
        assert prove_stays(made, {str(path)}, "library-list", rules).after.of(path) == {0: 100}
