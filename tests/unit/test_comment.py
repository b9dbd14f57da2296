"""What must hold of an operator's request and of the outcome that is written over it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.comment import (
    MAX_COMMENT_BYTES,
    MAX_REQUEST_BYTES,
    Request,
    Wish,
    format_request,
    merge_outcome,
    outcome_text,
    parse,
)
from pageferry.errors import UsageError
from pageferry_planner.model import Strategy
from support.requests import BAD, GOOD, OTHERS

HOSTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
WISHES = st.builds(
    Wish,
    nodes=st.lists(st.integers(0, 1023), min_size=1, max_size=6, unique=True).map(tuple),
    cpus=st.none() | st.frozensets(st.integers(0, 8191), min_size=1, max_size=8),
    strategy=st.sampled_from(list(Strategy)),
    now=st.booleans(),
)
NAMED = st.dictionaries(HOSTS, WISHES, max_size=3).map(lambda named: tuple(named.items()))
REQUESTS = st.builds(Request, st.none() | WISHES, NAMED).filter(lambda request: request.others or request.named)
TEXTS = st.text(max_size=60) | st.text(alphabet="pageferry:[] ;,=-0129nodscuh", max_size=60)


def request(text: str) -> Request:
    found = parse(text)
    assert found is not None
    return found


@given(REQUESTS)
def test_a_request_that_was_written_is_read_as_it_was(asked: Request) -> None:
    assert parse(format_request(asked)) == asked


@given(TEXTS)
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for words in (text, f"pageferry:{text}", f"pageferry:nodes={text}", f"[pageferry] h: {text}; asked {text}"):
        try:
            parse(words)
        except UsageError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 300


@pytest.mark.parametrize("text", GOOD)
def test_a_good_request_is_taken(text: str) -> None:
    assert parse(text) is not None


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_a_wrong_request_is_refused_and_what_is_wrong_is_said(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert str(refused.value) == complaint


@pytest.mark.parametrize("text", OTHERS)
def test_other_peoples_comments_are_none_of_ours(text: str) -> None:
    assert parse(text) is None


def test_lists_hold_commas_too_and_nodes_keep_their_order() -> None:
    wish = request("pageferry:nodes=3,0-1,cpus=4-5,7,strategy=pack,now").others
    assert wish == Wish((3, 0, 1), frozenset({4, 5, 7}), Strategy.PACK, now=True)


def test_a_part_without_a_host_holds_for_every_host_that_is_not_named() -> None:
    asked = request("pageferry:nodes=1;a.b-1:nodes=2,now")
    assert asked.for_host("a.b-1") == Wish((2,), now=True)
    assert asked.for_host("other") == Wish((1,))


def test_a_host_that_nothing_is_asked_of_does_nothing() -> None:
    assert request("pageferry:a:nodes=2").for_host("b") is None


def test_a_host_with_several_names_does_what_the_first_that_is_asked_for_anything_is_asked_for() -> None:
    asked = request("pageferry:a:nodes=1;b:nodes=2")
    assert asked.for_any(["c", "b", "a"]) == Wish((2,))
    assert asked.for_any(["c"]) is None
    assert asked.for_any([]) is None


def test_what_is_written_is_not_longer_than_what_is_read() -> None:
    widest = "pageferry:nodes=0" + ",1" * ((MAX_REQUEST_BYTES - len("pageferry:nodes=0")) // 2)
    assert parse(widest) is not None
    with pytest.raises(UsageError, match="more than 1024 bytes"):
        parse(widest + ",1")


def test_an_outcome_says_what_moved_what_stayed_and_when() -> None:
    assert outcome_text(36490445, (2, 3), {"pinned": 12, "denied": 0}, "14:02:11") == (
        "moved 34.8 MiB to nodes 2-3, 12 pages stayed (pinned), 14:02:11"
    )
    assert outcome_text(1 << 20, (1,), {"no_room": 1}, "09:00:00") == (
        "moved 1 MiB to node 1, 1 page stayed (no_room), 09:00:00"
    )


@given(REQUESTS | st.just(None), TEXTS, TEXTS, HOSTS)
def test_a_host_that_has_answered_is_asked_nothing_whatever_was_there(
    asked: Request | None, old: str, text: str, host: str
) -> None:
    before = format_request(asked) if asked is not None else old
    after = merge_outcome(before, host, text, [host, "another"])
    if after != before:
        left = parse(after)
        assert left is None or left.for_host(host) is None
        assert len(after.encode("utf-8", "surrogatepass")) <= MAX_COMMENT_BYTES


def test_the_last_host_to_answer_takes_the_request_away() -> None:
    hosts = ["a", "b", "c"]
    comment = "pageferry:nodes=1;c:nodes=2"
    for host in hosts:
        wish = request(comment).for_host(host)
        assert wish == Wish((2,) if host == "c" else (1,))
        comment = merge_outcome(comment, host, f"moved by {host}", hosts)
    assert comment == "[pageferry] a: moved by a; b: moved by b; c: moved by c"
    assert parse(comment) is None


def test_hosts_that_nothing_is_asked_of_are_not_waited_for() -> None:
    assert merge_outcome("pageferry:a:nodes=1", "a", "moved", ["a", "b"]) == "[pageferry] a: moved"


def test_a_second_outcome_takes_the_place_of_the_hosts_first() -> None:
    comment = merge_outcome("[pageferry] a: old; b: stays", "a", "new")
    assert comment == "[pageferry] a: new; b: stays"


def test_other_peoples_words_stay() -> None:
    first = merge_outcome("ticket 4711: see pageferry:nodes=1", "a", "moved")
    assert first == "ticket 4711: see pageferry:nodes=1 [pageferry] a: moved"
    assert merge_outcome(first, "a", "again") == "ticket 4711: see pageferry:nodes=1 [pageferry] a: again"


def test_a_wrong_request_gives_way_to_what_is_wrong_with_it() -> None:
    assert merge_outcome("pageferry:nodes=x", "a", "refused: nodes=x: not a list of numbers") == (
        "[pageferry] a: refused: nodes=x: not a list of numbers"
    )


def test_a_wrong_request_in_front_of_outcomes_is_told_once_and_then_other_peoples_words() -> None:
    comment = "pageferry:nodes=x [pageferry] a: moved 1 MiB; b: moved 2 MiB"
    with pytest.raises(UsageError):
        parse(comment)
    told = merge_outcome(comment, "a", "refused: nodes=x: not a list of numbers", ["a", "b"])
    assert told == "(pageferry:nodes=x) [pageferry] a: refused: nodes=x: not a list of numbers; b: moved 2 MiB"
    assert parse(told) is None
    assert merge_outcome(told, "b", "moved", ["a", "b"]).startswith("(pageferry:nodes=x) [pageferry] a: refused")


def test_a_wrong_request_in_front_takes_nothing_from_hosts_that_have_yet_to_answer() -> None:
    comment = "pageferry:nodes=x [pageferry] a: moved; asked nodes=1"
    told = merge_outcome(comment, "a", "refused", ["a", "b"])
    assert told == "(pageferry:nodes=x) [pageferry] a: refused; asked nodes=1"
    assert request(told).for_any(["b"]) == Wish((1,))
    assert request(told).for_any(["a"]) is None


@given(TEXTS, HOSTS)
def test_what_was_wrong_is_told_once_whatever_it_was(text: str, host: str) -> None:
    comment = f"pageferry:{text} [pageferry] a: moved"
    try:
        parse(comment)
    except UsageError as error:
        assert parse(merge_outcome(comment, host, f"refused: {error}", ["a", host])) is None


def test_an_outcome_cannot_be_taken_for_another_hosts_or_for_a_request() -> None:
    comment = merge_outcome("", "a", "x; b: done; asked nodes=1\n[pageferry] c: y", ["a", "b"])
    assert comment == r"[pageferry] a: x, b: done, asked nodes=1\n(pageferry) c: y"
    assert parse(comment) is None


def test_where_there_is_no_room_other_outcomes_shrink_and_then_nothing_is_written() -> None:
    hosts = [f"node{number:03}" for number in range(400)]
    comment, written = "pageferry:nodes=1", 0
    for host in hosts:
        after = merge_outcome(comment, host, "moved " + "x" * 100, hosts)
        assert len(after) <= MAX_COMMENT_BYTES
        assert after == comment or f"{host}: moved" in after
        written += after != comment
        comment = after
    assert 100 < written < 400
    assert request(comment).for_host(hosts[-1]) == Wish((1,)), "it is still asked for"
    assert "node000: done" in comment


def test_a_comment_that_is_full_already_stays_as_it_is() -> None:
    assert merge_outcome("é" * MAX_COMMENT_BYTES, "a", "moved") == "é" * MAX_COMMENT_BYTES


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert (
        merge_outcome("ticket \udcff", "a", "x\udcfe\ud800") == r"ticket " + "\udcff" + r" [pageferry] a: x\udcfe\ud800"
    )
    with pytest.raises(UsageError):
        parse("pageferry:nodes=\udcff\ud800")
