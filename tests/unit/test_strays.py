"""What must hold of the short look at what is left of a job's memory: it says yes only to next to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry import strays

MIB = 1 << 20


def group(tmp_path: Path, name: str, **anon: int) -> Path:
    """Make a group whose processes have so many bytes on each node."""
    made = tmp_path / name
    made.mkdir()
    said = " ".join(f"{node.replace('n', 'N')}={count}" for node, count in anon.items())
    (made / "memory.numa_stat").write_text(f"anon {said}\nfile_mapped N0=0\nshmem N0=0\n")
    return made


@pytest.mark.parametrize(
    ("there", "away", "few"),
    [
        (0, 0, True),
        (10 * MIB, strays.LEAST_BYTES, True),
        (10 * MIB, strays.LEAST_BYTES + 1, False),
        (6300 * MIB, 100 * MIB, True),
        (6300 * MIB, 101 * MIB, False),
        (0, 100 * MIB, False),
    ],
)
def test_next_to_nothing_is_little_of_all_or_little_at_all(tmp_path: Path, there: int, away: int, few: bool) -> None:
    assert strays.few([group(tmp_path, "job", n0=away, n1=0, n2=there)], (2,)) is few


def test_groups_count_together_and_those_without_the_controller_do_not_count(tmp_path: Path) -> None:
    groups = [group(tmp_path, name, n0=3 * MIB, n2=MIB) for name in ("a", "b")]
    assert strays.few([groups[0], tmp_path / "none"], (2,))
    assert not strays.few(groups, (2,))
    assert strays.few(groups, (0, 2))


@pytest.mark.parametrize("text", ["anon N0=many\n", "file N0=0\n", ""])
def test_what_cannot_be_said_is_not_little(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.numa_stat").write_text(text)
    assert not strays.few([tmp_path], (2,))
    assert not strays.few([], (2,))
