"""What must hold of the manual and the sample settings: they say what the program has, all of it, and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import msgspec
import pytest

from manual import commands, completion, overview, roff, settings
from pageferry.cli.main import commands as cli
from pageferry.config import Settings
from pageferry.toml_file import parse


def text_of(page: str, width: int = 500) -> str:
    """Return what a reader sees, and make sure that nothing in it made roff complain."""
    shown = subprocess.run(
        ["groff", "-mandoc", "-Tutf8", "-ww", "-P-c", "-P-b", "-P-u", f"-rLL={width}n"],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    return " ".join(shown.stdout.split())


@pytest.mark.parametrize("context", [context for *_, context in commands.walk(cli)], ids=lambda one: one.command_path)
def test_a_page_has_each_option_of_its_command(context: click.Context) -> None:
    pages = commands.pages(cli) | overview.pages(cli)
    (page,) = [text for name, text in pages.items() if Path(name).stem == context.command_path.replace(" ", "-")]
    shown = text_of(page)
    assert f"{context.command_path.replace(' ', '-')} - " in shown
    for parameter in context.command.get_params(context):
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert re.search(rf"{option}\b", shown), option
        if isinstance(parameter, click.Option) and parameter.help:
            assert " ".join(parameter.help.replace("`", "").split()) in shown, parameter.name


def test_the_overview_names_every_command() -> None:
    (page,) = overview.pages(cli).values()
    shown = text_of(page)
    for name, section, _ in commands.walk(cli):
        assert name == "pageferry" or f"{name}({section})" in shown


def test_the_page_of_the_settings_has_each_key_with_its_default() -> None:
    (page,) = settings.pages(Settings).values()
    shown = text_of(page)
    for table in settings.tables(Settings):
        assert table.head in shown
        for key in table.keys:
            assert re.search(rf" {key.name} .*{re.escape(key.default or 'Not set by default')}", shown), key


def test_the_sample_of_the_settings_is_all_defaults_with_or_without_its_comment_signs() -> None:
    sample = settings.sample(Settings)
    for text in (sample, re.sub(r"^#(?! )", "", sample, flags=re.MULTILINE)):
        read, faults = parse(text.encode(), "sample", Settings)
        assert (read, faults) == (Settings(), [])
    assert "rule" not in re.sub("^# .*", "", sample, flags=re.MULTILINE)
    for field in msgspec.structs.fields(Settings):
        for key in msgspec.structs.fields(type(getattr(Settings(), field.name))) if field.name != "rule" else ():
            assert re.search(rf"^#(?: {key.name}: not set| ?{key.name} = )", sample, re.MULTILINE), key.name


class Rule(msgspec.Struct, frozen=True):
    """`[[rule]]`: what holds for some jobs."""

    users: tuple[str, ...] = ()


class Tables(msgspec.Struct, frozen=True):
    """Settings with an array of tables."""

    rule: tuple[Rule, ...] = ()


def test_an_array_of_tables_is_in_the_manual_and_not_in_the_sample() -> None:
    (page,) = settings.pages(Tables).values()
    assert "[[rule]]" in text_of(page)
    assert not re.search("^[^#]|^#[^ ]", settings.sample(Tables), re.MULTILINE)


@pytest.mark.parametrize("text", [".TH x", "'x", "a\\fBb", "--to=2-3", "`x", 'a "b"', "~^", "\\"])
def test_no_text_is_taken_for_roffs_own(text: str) -> None:
    page = roff.page("name", 1, "summary", [("SECTION", [*roff.paragraphs(text), *roff.items([(text, text)])])])
    assert text_of(page).count(text) == 3


def test_completion_is_the_same_wherever_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = completion.scripts(cli)
    assert set(scripts) == {f"completion/pageferry.{shell}" for shell in ("bash", "zsh", "fish")}
    monkeypatch.setenv("PATH", "")
    assert completion.scripts(cli) == scripts
