"""Comments, changed at random: the agent and the hook in slurmctld take and refuse the same, in the same words."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry.comment import FIELD_BYTES, MAX_COMMENT_BYTES, Request, format_request, merge_outcome, parse
from pageferry.errors import UsageError
from support.mutations import clean, fuzz, mutated
from support.requests import BAD, GOOD, OTHERS

HOOK = Path(__file__).parents[2] / "hooks/slurm/job_submit.lua"
SERVE = f"""
slurm = {{ SUCCESS = 0, error = function() end, user_msg = function() end }}
dofile("{HOOK}")
for line in io.lines() do
    local text = line:gsub("%x%x", function(byte) return string.char(tonumber(byte, 16)) end)
    print(pageferry_check(text) or "")
    io.flush()
end
"""
REPORTS = (
    "[pageferry] n1: moved 34.8 MiB to nodes 2-3, 12 pages stayed (pinned), 14:02:11",
    "ticket 4711 [pageferry] n1: done; n2: moved; asked nodes=1-12;n3:nodes=2,now",
    "pageferry:nodes=x [pageferry] n1: moved; asked nodes=1-12",
    "(pageferry:nodes=x) [pageferry] n1: refused",
)
TEXTS = [text.encode() for text in (*GOOD, *BAD, *OTHERS, *REPORTS)]
WORDS = b"nodes= cpus= strategy= now local weighted 0 1-2 7 2-1 1023 1024 8191 8192 000000001 a n-1.b ; : , =".split()
PIECES = st.sampled_from(
    [*WORDS, *WORDS, *(b" ", b"\t", b"\n", b"\v", b"\xa0", "é".encode(), b"\xff", b"\0", b"0-1023,")]
)
COMMENTS = st.one_of(
    mutated(TEXTS),
    st.lists(PIECES, max_size=12).map(lambda pieces: b"pageferry:" + b"".join(pieces)),
    st.tuples(mutated(TEXTS[: len(GOOD)]), st.sampled_from([b" ", b"\n", b",1", b";a:nodes=1", b"x"])).flatmap(
        lambda given: st.sampled_from((1, 500, 1005, 1006, 1007, 1008, 1024, 4090)).map(
            lambda count: given[1] * count + given[0] if given[1].isspace() else given[0] + given[1] * count
        )
    ),
)


@pytest.fixture(scope="module")
def hook() -> Iterator[Callable[[bytes], str]]:
    """The hook, in one process for all texts."""
    found = shutil.which("lua5.4") or shutil.which("lua")
    assert found is not None, "install lua5.4"
    with subprocess.Popen([found, "-e", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def said(text: bytes) -> str:
            ask.write(text.hex().encode() + b"\n")
            ask.flush()
            line = answers.readline()
            assert line.endswith(b"\n"), "it has ended"
            return line[:-1].decode("ascii")

        yield said
        ask.close()


def as_read(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


@given(COMMENTS)
@fuzz
def test_the_hook_and_the_agent_take_and_refuse_the_same(hook: Callable[[bytes], str], text: bytes) -> None:
    found, said = clean(lambda: parse(as_read(text))), hook(text)
    assert isinstance(found, UsageError) == bool(said)
    if said and text.strip(b" \t\r\n").isascii() and as_read(text.strip(b" \t\r\n")).isprintable():
        assert said == str(found)


@given(COMMENTS)
@fuzz
def test_what_is_taken_says_what_it_says_and_no_more(text: bytes) -> None:
    found = clean(lambda: parse(as_read(text)))
    if not isinstance(found, Request):
        return
    assert len(text.rstrip(b" \t\r\n")) < FIELD_BYTES
    wishes = [wish for wish in (found.others, *dict(found.named).values()) if wish is not None]
    assert wishes
    for wish in wishes:
        assert all(0 <= node <= 1023 for node in wish.nodes)
        assert all(0 <= cpu <= 8191 for cpu in wish.cpus or ())
        assert len(set(wish.nodes)) == len(wish.nodes) > 0
    again = parse(format_request(found)) if len(format_request(found)) <= 1024 else found
    assert again is not None
    assert (again.others, again.named) == (found.others, found.named)


@given(COMMENTS, st.sampled_from(["n1", "n2", "a"]), COMMENTS)
@fuzz
@example(b"pageferry:nodes=x [pageferry] n1: moved", "n1", b"refused")
def test_what_the_agent_writes_passes_the_hook_and_asks_this_host_for_nothing(
    hook: Callable[[bytes], str], old: bytes, host: str, outcome: bytes
) -> None:
    before = as_read(old)
    after = merge_outcome(before, host, as_read(outcome), ["n1", "n2"])
    if after == before:
        return
    raw = after.encode("utf-8", "surrogateescape")
    assert len(raw) <= MAX_COMMENT_BYTES
    assert hook(raw) == ""
    left = parse(after)
    assert left is None or left.for_host(host) is None
    once_more = merge_outcome(after, host, as_read(outcome), ["n1", "n2"])
    assert once_more == after, "of what is there nothing is lost, and nothing is added"
