"""What must hold of the kernel's list format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.kernel.lists import MAX_MEMBERS, format_list, parse_list


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", set()),
        ("\n", set()),
        ("0", {0}),
        ("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}),
        (b"5,1-2,2", {1, 2, 5}),
        ("0-65535", set(range(MAX_MEMBERS))),
    ],
)
def test_a_list_of_the_kernel_is_read(text: str | bytes, members: set[int]) -> None:
    assert parse_list(text) == members


@pytest.mark.parametrize(
    "text",
    ["3-1", "1,", ",1", "1,,2", "-1", "1-", "1 2", "0x3", "a", "1-2-3", "٣", b"\xff", "0-9:2/4", "9999999999", "1_0"],
)
def test_bad_text_is_refused_and_quoted(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="list") as caught:
        parse_list(text)
    assert str(caught.value).isascii()


@pytest.mark.parametrize("text", ["0-65536", "0-999999999", "0-65535,0"])
def test_a_list_with_too_many_members_is_refused_without_building_it(text: str) -> None:
    with pytest.raises(ValueError, match="more than 65536"):
        parse_list(text)


def test_a_long_or_hostile_text_is_shortened_and_escaped_in_the_complaint() -> None:
    with pytest.raises(ValueError, match="not a list") as caught:
        parse_list("\x1b[2J" + "x" * 1000)
    assert len(str(caught.value)) < 120
    assert "\x1b" not in str(caught.value)


@given(st.sets(st.integers(0, 300)))
def test_what_is_written_reads_back_the_same(members: set[int]) -> None:
    assert parse_list(format_list(members)) == members


def test_neighbours_are_written_as_a_range() -> None:
    assert format_list([11, 0, 1, 2, 3, 8, 10, 8]) == "0-3,8,10-11"
    assert format_list(()) == ""


@pytest.mark.parametrize("members", [[-1], range(MAX_MEMBERS + 1)])
def test_what_cannot_be_read_back_is_not_written(members: range | list[int]) -> None:
    with pytest.raises(ValueError, match="member"):
        format_list(members)
