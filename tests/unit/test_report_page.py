"""What must hold of the report's page: it says what the history knows, to the byte, and words are only words."""

from __future__ import annotations

import os
import stat
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.errors import UsageError
from pageferry.page import render
from pageferry.page.timeline import time_line
from pageferry.page.view import view
from support.history_rows import BEGAN, HOSTILE, PAGE, row

OLD: dict[str, Any] = {"ledger": {}, "moments": {}, "requests_saved": None}
"""What the history has of a migration that was written down before it kept these."""


class Page(HTMLParser):
    """A page's elements, their attributes and its text, as a parser of its own sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def test_the_page_has_all_that_the_history_knows_of_a_migration() -> None:
    text = Page(render.page([row()], "node07")).text
    for said in (
        "Job 4711 wing",
        "Migration 17 partial",
        "suspend",
        "0-1 → 2-3",
        "pageferry:nodes=2-3",
        "485,000 pages in 31 calls",
        "2,515,000 more",
        "250 ms",
        "4.50 s",
        "reference-count",
        "processes outside the job map it too",
        "pinned",
        "/dev/shm/segment",
        "3 smaller ones",
        "Slurm suspends the job",
        "pageferry lets it go on",
    ):
        assert " ".join(said.split()) in " ".join(text.split()), said


def test_sums_by_node_and_by_backing_are_those_of_the_tally() -> None:
    shown = view(row())
    total = sum(row()["pages"].values()) * PAGE
    gone = row()["pages"]["vanished"] * PAGE
    assert shown.total_bytes == total
    assert sum(bars.before.bytes for bars in shown.nodes) == total
    assert sum(bars.after.bytes for bars in shown.nodes) == total - gone
    assert sum(backing.bytes for backing in shown.backings) == total
    assert sum(share.bytes for backing in shown.backings for share in backing.after) == total - gone
    assert sum(backing.gone_bytes for backing in shown.backings) == gone
    assert sum(fate.pages for fate in shown.fates) * PAGE == total
    assert sum(fate.percent for fate in shown.fates) == pytest.approx(100)
    assert {fate.why for fate in shown.fates if fate.failed} == {"pinned", "no_room"}


def test_times_are_iso_8601_with_their_offset() -> None:
    times = Page(render.page([row()], "node07", now=BEGAN)).of("datetime")
    assert times
    assert all(len(time) == len("2026-11-25T14:00:00+00:00") and time[-6] in "+-" for time in times)


def test_words_of_others_are_words() -> None:
    text = render.page([row(words=HOSTILE), row(18, words=HOSTILE)], HOSTILE)
    page, plain = Page(text), Page(render.page([row(), row(18)], "node07"))
    assert not page.tags["script"] + page.tags["img"]
    assert page.tags - Counter({"p": 2, "strong": 2}) == plain.tags, "an error has a paragraph; nothing else is new"
    assert "{{7*7}}" in page.text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "<script>document.title='ran'</script>" in page.text, "it is shown as it is written"
    assert r"\u202egnp.exe\r\n\x1b[2J" in page.text


def test_the_page_names_nothing_that_a_browser_would_load_or_run() -> None:
    page = Page(render.page([row(), row(18)], "node07"))
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "style", "srcset"}]
    assert page.of("href") == ["#m18", "#m17"]
    (policy,) = [value for value in page.of("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_pictures_have_names_and_tables_captions() -> None:
    text = render.page([row(), row(18)], "node07")
    page = Page(text)
    assert page.tags["caption"] == page.tags["table"] > 0
    assert page.tags["desc"] == page.of("role").count("img") == 4
    identities = page.of("id")
    assert len(identities) == len(set(identities))
    assert {name for names in page.of("aria-labelledby") for name in names.split()} <= set(identities)


@pytest.mark.parametrize(
    "changes",
    [
        OLD,
        {"ledger": {"dropped_characters": 99999}, "moments": {"dropped_characters": 99999}},
        {"pages": {}, "ledger": {}, "bytes": 0, "requested": 0, "requests_saved": None, "error": "x", "details": {}},
        {"moments": {"held": float("inf"), "released": "soon", "no such moment": 1.0}},
        {"details": {"dropped_characters": 99999}},
        {"began": 1e300, "moments": {"held": 1e300, "released": 1e301}},
        {"nodes_from": "", "nodes_to": ""},
        {"job": "12[3].server"},
    ],
    ids=str,
)
def test_a_row_that_has_less_to_say_says_that(changes: dict[str, Any]) -> None:
    changed = row(**changes)
    page = Page(render.page([changed], "node07"))
    assert f"Job {changed['job']}" in " ".join(page.text.split())
    if changes is OLD:
        assert "was not kept for this migration" in page.text
        assert "moved" in page.text


def test_a_row_of_an_agent_of_the_version_before_is_shown() -> None:
    old = {key: value for key, value in row().items() if key not in OLD}
    assert "Job 4711" in Page(render.page([old], "node07")).text


# The time line


def test_moments_come_in_the_order_of_time_and_say_how_long_it_was_to_the_next() -> None:
    line = time_line(
        {"released": 9.5, "suspended": 1.0, "held": 1.25, "resumed": 9.0, "moving": 2.0, "moved": 3.0}, "PBS"
    )
    assert line is not None
    assert [(moment.at, moment.until_next) for moment in line.moments] == [
        (1.0, 0.25),
        (1.25, 0.75),
        (2.0, 1.0),
        (3.0, 6.0),
        (9.0, 0.5),
        (9.5, None),
    ]
    assert line.moments[0].text == "PBS suspends the job"
    assert [(bar.lane, bar.waits) for bar in line.bars] == [
        ("suspended", False),
        ("held", False),
        ("moves", False),
        ("held", True),
    ]
    assert line.stops


def test_a_move_of_a_running_job_is_no_stop_and_one_that_was_held_for_it_waits_all_the_time() -> None:
    live = time_line({"moving": 1.0, "moved": 2.0}, "Slurm")
    assert live is not None
    assert not live.stops
    held = time_line({"held": 1.0, "moving": 1.1, "moved": 2.0, "released": 2.1}, "Slurm")
    assert held is not None
    (waits,) = [bar for bar in held.bars if bar.waits]
    assert (waits.y, waits.y + waits.height) == (held.moments[0].y, held.moments[-1].y)
    assert held.moments[0].text == "pageferry holds the job"
    assert time_line({"held": 1.0}, "Slurm") is None


NAMES = ("suspended", "held", "copying", "copied", "moving", "moved", "resumed", "released")


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 2e9), min_size=2))
def test_any_moments_make_a_picture_whose_parts_are_inside_it_and_apart(moments: dict[str, float]) -> None:
    line = time_line(moments, "Slurm")
    assert line is not None
    places = [moment.y for moment in line.moments]
    assert all(later - earlier >= 50 for earlier, later in pairwise(places)), "text has room"
    assert all(bar.y >= 0 and bar.height > 0 and bar.y + bar.height <= line.height for bar in line.bars)
    assert places[-1] < line.height < 2000


# What is written, and where


@settings(max_examples=200)
@given(st.floats(0, 1e9))
def test_durations_are_short_and_in_a_unit(seconds: float) -> None:
    said = render.duration(seconds)
    assert len(said) <= 12
    assert said.split()[1] in {"ms", "s", "min", "h", "d"}


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.0004, "0.4 ms"),
        (0.412, "412 ms"),
        (0.9996, "1.00 s"),
        (59.4, "59.40 s"),
        (61, "1 min 1 s"),
        (7261, "2 h 1 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, says: str) -> None:
    assert render.duration(seconds) == says


def test_a_page_is_written_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    render.write(path, "first")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()

    def fail(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError, match=r"report\.html: cannot be written: No space left"):
        render.write(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    render.write(link, "page")
    assert link.is_symlink()
    assert target.read_text() == "page"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    render.write(pipe, "page")
    assert os.read(reader, 100) == b"page"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("where", ["no/such/folder/x.html", "."])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        render.write(tmp_path / where, "page")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
