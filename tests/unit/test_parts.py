"""What must hold of the note of what has passed: a release relies on no more than what was seen."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import parts


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit."""
    for command in (["init", "-q", "-b", "main"], ["config", "user.name", "t"], ["config", "user.email", "t@t"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").touch()
    commit(tmp_path, "plugin/a.py", "1")
    return tmp_path


def commit(repository: Path, name: str, text: str) -> None:
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    subprocess.run(["git", "commit", "-qm", name], cwd=repository, check=True)


def ran(repository: Path, script: str = "echo 3 passed") -> bool:
    return parts.run(repository, "unit", ["sh", "-c", script], 30)


def why(repository: Path) -> str:
    return parts.lacking(repository, ["unit"]).get("unit", "")


def test_what_has_not_run_is_lacking(repository: Path) -> None:
    assert why(repository) == "has not passed"


def test_what_passed_on_this_commit_is_relied_on_and_its_last_line_is_kept(repository: Path) -> None:
    assert ran(repository, "echo first; echo 3 passed; echo")
    assert why(repository) == ""
    assert parts.read_passed(repository)["unit"].said == "3 passed"


def test_what_failed_is_not_noted_and_an_earlier_pass_stays(repository: Path) -> None:
    assert not ran(repository, "exit 1")
    assert why(repository) == "has not passed"
    ran(repository)
    noted = parts.read_passed(repository)
    assert not ran(repository, "exit 1")
    assert parts.read_passed(repository) == noted


def test_what_hangs_has_failed(repository: Path) -> None:
    assert not parts.run(repository, "unit", ["sleep", "60"], 0.2)


def test_commits_since_that_leave_the_product_alone_change_nothing(repository: Path) -> None:
    ran(repository)
    commit(repository, "tests/b.py", "2")
    assert why(repository) == ""


@pytest.mark.parametrize("folder", parts.PRODUCT)
def test_a_change_to_the_product_asks_for_another_run(repository: Path, folder: str) -> None:
    ran(repository)
    commit(repository, f"{folder}/b.py", "2")
    assert "has changed" in why(repository)


def test_a_commit_that_is_not_before_this_one_is_not_relied_on(repository: Path) -> None:
    subprocess.run(["git", "switch", "-qc", "aside"], cwd=repository, check=True)
    commit(repository, "tests/b.py", "2")
    ran(repository)
    kept = (repository / parts.PASSED).read_text()
    (repository / parts.PASSED).unlink()
    subprocess.run(["git", "switch", "-q", "main"], cwd=repository, check=True)
    (repository / parts.PASSED).write_text(kept)
    assert "no ancestor" in why(repository)


def test_what_is_not_committed_is_neither_noted_nor_released(repository: Path) -> None:
    (repository / "plugin/a.py").write_text("2")
    assert ran(repository)
    assert parts.read_passed(repository) == {}
    subprocess.run(["git", "checkout", "-q", "plugin/a.py"], cwd=repository, check=True)
    ran(repository)
    (repository / "plugin/a.py").write_text("2")
    assert "uncommitted" in why(repository)


def test_every_part_is_a_target_of_the_makefile() -> None:
    text = (parts.REPOSITORY / "Makefile").read_text()
    machines = set(re.findall(r"^(guest-[a-z0-9-]+):[^\n]*\n\t", text, re.MULTILINE))
    assert parts.PARTS.keys() == machines - {"guest-debian13"} | {"lint", "unit"}
    for name in parts.PARTS:
        words = ["make", "--dry-run", "--quiet", name]
        made = subprocess.run(words, cwd=parts.REPOSITORY, capture_output=True, text=True, check=True)
        assert "pytest" in made.stdout or name == "lint"
