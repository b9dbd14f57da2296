"""What must hold of the hook in slurmctld: it takes and refuses what comment.py does, and never fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.comment import parse
from pageferry.errors import UsageError
from support.requests import BAD, GOOD, OTHERS

HOOK = Path(__file__).parents[2] / "hooks/slurm/job_submit.lua"
SLURM = """
slurm = { SUCCESS = 0, ERROR = -1, said = {} }
slurm.error = function(line) slurm.said[#slurm.said + 1] = line end
slurm.user_msg = slurm.error
"""
CHECK = """
for line in io.lines() do
    local text = line:gsub("%x%x", function(byte) return string.char(tonumber(byte, 16)) end)
    print(pageferry_check(text) or "")
end
"""


def lua(script: str, said: str = "", seconds: float | None = None) -> list[str]:
    found = shutil.which("lua5.4") or shutil.which("lua")
    assert found is not None, "install lua5.4"
    answer = subprocess.run(
        [found, "-e", script], input=said, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def complaints(texts: list[str]) -> list[str]:
    lines = "".join(text.encode().hex() + "\n" for text in texts)
    return lua(f'{SLURM} dofile("{HOOK}") {CHECK}', lines)


def test_good_requests_and_other_peoples_comments_pass() -> None:
    texts = [text for text in (*GOOD, *OTHERS) if text]
    assert complaints(texts) == [""] * len(texts)


def test_wrong_requests_are_refused_in_the_words_of_the_agent() -> None:
    for text, said in zip(BAD, complaints(list(BAD)), strict=True):
        if text.isascii() and text.isprintable():
            assert said == BAD[text]
        else:
            assert said.endswith(BAD[text].rpartition(": ")[2])


WORDS = st.sampled_from(
    [
        "nodes=",
        "cpus=",
        "strategy=",
        "now",
        "local",
        "0",
        "1-2",
        "7",
        "2-1",
        "1024",
        "a",
        ";",
        ":",
        ",",
        ",",
        "=",
        " ",
        "é",
    ]
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=9).map("".join), min_size=40, max_size=40))
def test_the_hook_and_the_agent_agree_on_any_text(bodies: list[str]) -> None:
    texts = [f"pageferry:{body}" for body in bodies]
    for text, said in zip(texts, complaints(texts), strict=True):
        try:
            parse(text)
        except UsageError:
            assert said, f"taken by the hook alone: {text!r}"
        else:
            assert not said, f"refused by the hook alone: {text!r}"


@pytest.mark.parametrize(
    "text", ['(" "):rep(n)', '(" "):rep(n) .. "x"', '"x" .. (" "):rep(n) .. "x"', '("pageferry:"):rep(n)']
)
def test_other_peoples_texts_of_any_length_do_not_hold_slurmctld_up(text: str) -> None:
    assert lua(f'{SLURM} dofile("{HOOK}") n = 1 << 22 print(#(pageferry_check({text}) or ""))', seconds=20) in [
        ["0"],
        [str(len("a request of more than 1024 bytes"))],
    ]


def test_both_calls_of_slurm_refuse_and_say_why() -> None:
    for call in ("slurm_job_submit(job, {}, 0)", "slurm_job_modify(job, {}, {}, 0)"):
        job = '{ admin_comment = "pageferry:nodes=x" }'
        assert lua(f'{SLURM} dofile("{HOOK}") job = {job} print({call}) print(slurm.said[1])') == [
            "22",
            "pageferry: AdminComment: nodes=x: not a list of numbers",
        ]


@pytest.mark.parametrize(
    "job",
    [
        "{}",
        '{ admin_comment = "pageferry:nodes=1" }',
        '{ admin_comment = "ticket" }',
        "{ admin_comment = 7 }",
        "nil",
        'setmetatable({}, { __index = function() error("boom") end })',
    ],
)
def test_any_other_update_passes_whatever_the_job_is(job: str) -> None:
    assert lua(f'{SLURM} dofile("{HOOK}") print(slurm_job_modify({job}, {{}}, {{}}, 0), #slurm.said)') == ["0\t0"]


def test_a_wrong_request_is_refused_even_where_slurm_cannot_say_why() -> None:
    job = '{ admin_comment = "pageferry:nodes=x" }'
    assert lua(f'slurm = {{ SUCCESS = 0 }} dofile("{HOOK}") print(slurm_job_modify({job}, {{}}, {{}}, 0))') == ["22"]


def test_a_site_with_its_own_hook_includes_it() -> None:
    own = f"""{SLURM}
    pcall(dofile, "{HOOK}")
    function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
        if pageferry_refuses ~= nil and pageferry_refuses(job_desc) then return 22 end
        return 0
    end
    print(slurm_job_modify({{ admin_comment = "pageferry:nodes=x" }}), slurm_job_modify({{ comment = "x" }}))
    """
    assert lua(own) == ["22\t0"]
    assert lua(own.replace(str(HOOK), "/nonexistent")) == ["0\t0"], "a file that is missing stops nobody"
