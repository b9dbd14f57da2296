"""Settings and rules, changed at random: read, or refused with one line for each fault that names file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry import config, toml_file
from pageferry.config import Settings
from pageferry.policy import Facts
from support.mutations import LONG, clean, fuzz, mutated, one_line

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

CONTRIB = Path(__file__).parents[2] / "contrib/policy.d"
EXAMPLES = [
    re.sub(rb"^#\s?(?=[\[\w])", b"", path.read_bytes(), flags=re.MULTILINE) for path in sorted(CONTRIB.glob("*.toml"))
]
WHOLE = b"""
[agent]
max_hold_seconds = 7.5
workers = 4
when_full = "spill"
log_level = "debug"
[spill]
least_bytes = "16M"
rate = "1G"
[nodes]
special = "2-3"
[metrics]
textfile = "/srv/metrics"
listen = "[::1]:9797"
[[rule]]
name = "a"
mode = "observe"
strategy = "weighted"
weights = "0:3,2:1"
match.user = ["a*", "b?"]
match.min_nodes = 2
park = "1"
libraries = ["/usr/*"]
[rule.spill]
enabled = false
"""
KEYS = [
    *(field.name for field in msgspec.structs.fields(Settings)),
    "agent.workers",
    "spill.rate",
    "metrics.listen",
    "x",
]
KEYS += ["metrics.textfile", "nodes.special", "agent.slurm_user", "rule.name", "agent.max_hold_seconds", "pbs.hold"]
VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    1.5,
    10**18,
    1 << 63,
    True,
    "",
    "x",
    "512M",
    "1" * 5000,
    "\n",
    "\u202e",
    "a\0b",
    "[::1:80",
)
values = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "match", "x", "user"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return "nan" if value != value else str(value).replace("+", "")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read(text: bytes, folder: Path) -> config.Reading:
    """Read a file of settings, and again as one of policy.d: faults are one line each, or the settings are a site's."""
    path = folder / "pageferry.toml"
    path.write_bytes(text)
    reading: config.Reading = clean(lambda: config.read(path, here=True), seconds=30)
    for fault in reading.faults:
        assert fault.startswith(f"{path}:")
        one_line(fault, [folder])
    if reading.faults:
        assert reading.settings == Settings()
    else:
        said = reading.settings.policy(Facts("slurm", user="abc"))
        assert said.max_hold_seconds > 0
        assert said.workers is None or said.workers > 0
        assert all(0 <= node < 1 << 16 for node in said.park)
        listen, folder_of = reading.settings.metrics.listen, reading.settings.metrics.textfile
        assert listen is None or 0 < listen.port < 1 << 16
        assert folder_of is None or folder_of.isprintable()
    return reading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def test_the_recorded_settings_are_well_formed(folder: Path) -> None:
    assert read(WHOLE, folder).faults == ()
    assert len(EXAMPLES) > 2


@given(mutated([WHOLE, *EXAMPLES]))
@example(b"x = " + b"[" * 490 + b"]" * 490)
@example(b"x" * LONG)
@example(b'[agent]\nwhen_full = "' + b"x" * LONG + b'"\n')
@example(b'"\\n`$[0]` - at `$.agent`" = 1\n')
@example(b"[agent]\nworkers = 0x" + b"f" * 5000)
@fuzz
def test_changed_settings_are_read_or_refused(folder: Path, text: bytes) -> None:
    read(text, folder)


@given(st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=4, unique_by=lambda pair: pair[0].partition(".")[0]))
@fuzz
def test_any_values_are_read_or_refused(folder: Path, said: list[tuple[str, Any]]) -> None:
    read("".join(f"{key} = {toml(value)}\n" for key, value in said).encode("utf-8", "replace"), folder)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(0, 3), max_size=3))
@fuzz
def test_any_unknown_key_is_named(folder: Path, said: dict[str, int]) -> None:
    text = "".join(f"{toml(key)} = {value}\n" for key, value in said.items())
    known = {field.name for field in msgspec.structs.fields(Settings)}
    assert len(read(text.encode(), folder).faults) == len(said) or known & said.keys()


@given(st.lists(mutated([WHOLE, *EXAMPLES]), max_size=3))
@fuzz
def test_files_of_a_folder_are_read_together_or_refused(folder: Path, texts: list[bytes]) -> None:
    site = folder / "site"
    (site / "policy.d").mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (site / f"policy.d/{number}.toml").write_bytes(texts[number] if number < len(texts) else b"")
    for fault in clean(lambda: config.faults(site / "pageferry.toml"), seconds=60):
        one_line(fault, [folder])


@given(st.binary(max_size=60))
@fuzz
def test_any_bytes_are_settings_or_one_fault(text: bytes) -> None:
    _, faults = clean(lambda: toml_file.read(text, "f\n\udcff.toml", Settings))
    for fault in faults:
        one_line(fault)
