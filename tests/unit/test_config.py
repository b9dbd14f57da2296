"""What must hold of the settings: what a site writes is what holds, and each fault is named where it stands."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import config, toml_file
from pageferry.config import Address, Folder, Metrics, Settings, faults, load, read, read_files
from pageferry.errors import ConfigError
from pageferry.kernel.topology import read_topology
from pageferry.policy import Facts, Rate, Special
from pageferry.toml_file import MOST_FAULTS, Bytes, parse
from pageferry_planner.model import WhenFull
from support.trees import plant

ALL = """
[agent]
max_hold_seconds = 30       # a whole number is a number of seconds, too
workers = 4
when_full = "spill"
write_outcome = "history"
slurm_user = "daemon"
retention_days = 7
log_level = "debug"

[spill]
enabled = false
least_bytes = "64K"
rate = "1G"

[cpus]
enabled = false

[nodes]
special = "3,2"

[pbs]
hold = false

[metrics]
textfile = "/srv/metrics"
listen = "[::1]:9797"
"""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    rate: Rate | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...] = ()


def found(text: str | bytes) -> list[str]:
    return toml_file.read(text.encode() if isinstance(text, str) else text, "f.toml", Settings, config._faults_here)[1]


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(ALL)
    settings = load(tmp_path / "f.toml")
    assert msgspec.to_builtins(settings, builtin_types=(Bytes, Rate, Folder, Address, Special)) == {
        "agent": {
            "max_hold_seconds": 30.0,
            "workers": 4,
            "when_full": "spill",
            "write_outcome": "history",
            "slurm_user": "daemon",
            "retention_days": 7,
            "log_level": "debug",
        },
        "spill": {"enabled": False, "least_bytes": 65536, "rate": 1 << 30},
        "cpus": {"enabled": False},
        "nodes": {"special": "2-3"},
        "pbs": {"hold": False},
        "metrics": {"textfile": "/srv/metrics", "listen": "[::1]:9797"},
        "rule": (),
    }
    assert faults(tmp_path / "f.toml") == []


def test_a_key_that_is_not_given_has_its_default(tmp_path: Path) -> None:
    defaults = Settings()
    assert load(tmp_path / "none.toml") == defaults
    (tmp_path / "f.toml").write_text("agent.workers = 2\n[spill]\n")
    settings = load(tmp_path / "f.toml")
    assert settings.agent.workers == 2
    assert settings.spill == defaults.spill
    assert (defaults.agent.max_hold_seconds, defaults.agent.retention_days) == (60, 90)
    assert (defaults.spill.least_bytes, defaults.spill.rate) == (16 << 20, 256 << 20)


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Settings().agent.workers = 3  # type: ignore[misc]


def test_the_words_for_a_full_node_are_the_planners() -> None:
    (fault,) = found('agent.when_full = "x"')
    assert {word.strip(",") for word in fault.partition("one of ")[2].split()} == {word.value for word in WhenFull}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[agent]\nmax_hold_seconds = 0", "f.toml:2: agent.max_hold_seconds = 0: expected float > 0.0"),
        ("[agent]\n\n\nmax_hold_seconds = 3601", "f.toml:4: agent.max_hold_seconds = 3601: expected float <= 3600.0"),
        ("[agent]\nmax_hold_seconds = nan", "f.toml:2: agent.max_hold_seconds = nan: expected float > 0.0"),
        ("[agent]\nmax_hold_seconds = inf", "f.toml:2: agent.max_hold_seconds = inf: expected float <= 3600.0"),
        ("[agent]\nmax_hold_seconds = true", "f.toml:2: agent.max_hold_seconds = true: expected float, got bool"),
        ('[agent]\nmax_hold_seconds = "60"', 'f.toml:2: agent.max_hold_seconds = "60": expected float, got str'),
        ("agent.workers = 1.5", "f.toml:1: agent.workers = 1.5: expected int, got float"),
        ("agent.workers = 257", "f.toml:1: agent.workers = 257: expected int <= 256"),
        ('agent.slurm_user = ""', 'f.toml:1: agent.slurm_user = "": expected str of length >= 1'),
        ('agent.slurm_user = "nobody-here"', 'f.toml:1: agent.slurm_user = "nobody-here": no such user on this host'),
        ("cpus.enabled = 1", "f.toml:1: cpus.enabled = 1: expected bool, got int"),
        ("cpus = 1", "f.toml:1: cpus = 1: expected table, got int"),
        ("[[cpus]]", "f.toml:1: cpus = [{}]: expected table, got array"),
        ('spill.rate = "256Q"', 'f.toml:1: spill.rate = "256Q": expected bytes, such as "512M"'),
        ("spill.rate = 0", "f.toml:1: spill.rate = 0: expected at least 1048576 bytes and less than 2^63"),
        ('agent.when_full = "Spill"', 'f.toml:1: agent.when_full = "Spill": expected one of partial, refuse, spill'),
        (
            "[agnet]\nworkers = 1",
            "f.toml:1: agnet = {...}: unknown key; there are agent, spill, cpus, nodes, pbs, metrics, rule",
        ),
        ("workers = 1", "f.toml:1: workers = 1: unknown key; there are agent, spill, cpus, nodes, pbs, metrics, rule"),
        (
            "\n[spill]\ncolour = 'red'",
            'f.toml:3: spill.colour = "red": unknown key; there are enabled, least_bytes, rate',
        ),
        ("a = [\n1", "f.toml:2: Unclosed array at the end of the file"),
        ("[agent]\nworkers = 1\nworkers = 2\n", "f.toml:3: Cannot overwrite a value (column 12)"),
        ("[agent]\n\nworkers 1\n", "f.toml:3: Expected '=' after a key in a key/value pair (column 9)"),
        (b"[agent]\nslurm_user = '\xff'\n", "f.toml:2: not UTF-8"),
        ("x = " + "[" * 9000, "f.toml: a number is too long, or a list nested too deeply"),
        ("x = " + "1" * 5000, "f.toml: a number is too long, or a list nested too deeply"),
    ],
    ids=lambda value: ascii(value[:40]),
)
def test_a_fault_is_named_by_file_line_key_and_value(text: str | bytes, fault: str) -> None:
    assert found(text) == [fault]


@pytest.mark.parametrize("value", ['"2-"', '"3-2"', '"1024"', '"Cpuless"', '" "', "2", "[2, 3]", "true"])
def test_special_nodes_that_are_no_list_are_named_by_file_line_key_and_value(value: str) -> None:
    (fault,) = found(f"[nodes]\n\nspecial = {value}")
    assert fault.startswith(f"f.toml:3: nodes.special = {value}: expected a list of nodes below 1024")


@pytest.mark.parametrize(
    ("text", "named", "here"),
    [
        ("2-3,7", {2, 3, 7}, {2}),
        ("7", {7}, set()),
        ("5", {5}, set()),
        ("0", {0}, {0}),
        ("cpuless", set(), {2}),
        ("", set(), set()),
    ],
)
def test_a_host_has_those_special_nodes_that_have_memory_there(
    tmp_path: Path, text: str, named: set[int], here: set[int]
) -> None:
    path = tmp_path / "f.toml"
    path.write_text(f'[nodes]\nspecial = "{text}"\n')
    assert faults(path) == [], "hosts of other kinds have the same file"
    special = load(path).host.special
    assert special.named() == named
    assert special.on(read_topology(plant("four_nodes", tmp_path))) == here


def test_no_node_is_special_unless_the_site_says_so(tmp_path: Path) -> None:
    assert Settings().nodes.special is None
    assert Settings().host.special.on(read_topology(plant("four_nodes", tmp_path))) == frozenset()


def test_every_fault_is_found_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes(
        b'[spill]\r\nrate = "x"\r\n# rate = 3\r\nleast_bytes = [\r\n  1,\r\n]\r\nenabled = """\r\nrate = 1\r\n"""\r\n'
        b"[agent]\r\ncolour = 1\r\nworkers = 0\r\nretention_days = 5\r\n"
    )
    lines = [fault.removeprefix(f"{path}:").partition(" = ")[0] for fault in faults(path)]
    assert lines == [
        "2: spill.rate",
        "4: spill.least_bytes",
        "7: spill.enabled",
        "11: agent.colour",
        "12: agent.workers",
    ]
    with pytest.raises(ConfigError, match=r"f\.toml:2: spill\.rate = .* \(and 4 more\)$"):
        load(path)


def test_a_faulty_key_leaves_the_others_as_they_are() -> None:
    settings, _ = parse(b"[agent]\nworkers = 0\nretention_days = 5", "f.toml", Settings)
    assert settings is not None
    assert (settings.agent.workers, settings.agent.retention_days) == (None, 5)


def test_lists_of_tables_are_named_by_number() -> None:
    text = b'[[rules]]\nname = "a"\n[[rules]]\nname = "b"\nrate = "5"\n'
    _, (fault,) = parse(text, "f", Policy)
    assert fault.startswith('f:5: rules[1].rate = "5": expected at least')
    _, (fault,) = parse(text.replace(b"rate", b"rat"), "f", Policy)
    assert fault == 'f:5: rules[1].rat = "5": unknown key; there are name, rate'
    policy, missing = parse(b'[[rules]]\nname = "a"\n\n[[rules]]\n', "f", Policy)
    assert missing == ["f:4: rules[1] = {...}: object missing required field name"]
    assert policy == Policy()


@pytest.mark.parametrize("key", ["a` - at `$.spill", "a` - at `$.spill`", "\x1b[2J", "a\nb", "", "x" * 1000])
def test_hostile_keys_and_values_stay_one_short_line(key: str) -> None:
    quoted = '"' + key.replace("\n", "\\n").replace("\x1b", "\\u001b") + '"'
    for text in (f"{quoted} = 1", f"[agent]\n{quoted} = 1", f"agent.when_full = {quoted}", f"spill.rate = {quoted}"):
        (fault,) = found(text)
        assert fault.isprintable()
        assert len(fault) < 300


def test_a_file_that_cannot_be_read_is_a_fault_and_not_all_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a regular file"):
        load(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="symbolic links"):
        load(loop)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("512", 512), ("512K", 512 << 10), ("3M", 3 << 20), ("16G", 16 << 30), ("2T", 2 << 40), (7, 7)],
)
def test_bytes_are_numbers_with_a_unit(text: object, count: int) -> None:
    assert Bytes.parse(text) == count


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.5G", "1 G", "1g", "1GB", "0x10", "١", "9" * 15 + "T", -1, 1.0, True, [], None]
)
def test_what_is_no_number_of_bytes_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        Bytes.parse(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_settings_or_one_line_faults(raw: bytes) -> None:
    settings, lines = parse(raw, "f", Settings)
    assert settings is not None or lines
    assert all(line.isprintable() for line in lines)


LISTS = "[[rule]]\nname = 'a'\nlibraries = [\n" + '  "/lib/*",\n' * 2000 + "  {}\n]\n"
MANY_FAULTS = {
    "a list of many lines with a wrong word": LISTS.format(1),
    "unknown keys": "".join(f"key{number} = 1\n" for number in range(1000)),
    "rules without a name": "[[rule]]\nworkers = 0\n" * 1000,
    "rules of one name": "[[rule]]\nname = 'a'\n" * 1000,
    "a long list that is no table": "agent = [\n" + "1,\n" * 2000 + "]\n" + "\n" * 2000,
}


@pytest.mark.parametrize("text", MANY_FAULTS.values(), ids=MANY_FAULTS)
def test_faults_are_told_in_one_reading_however_many_there_are(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, convert = tomllib.loads, msgspec.convert
    characters, looks = 0, 0

    def counted(part: str) -> dict[str, Any]:
        nonlocal characters
        characters += len(part)
        return loads(part)

    def counted_look(*words: Any, **more: Any) -> Any:
        nonlocal looks
        looks += 1
        return convert(*words, **more)

    monkeypatch.setattr(tomllib, "loads", counted)
    monkeypatch.setattr(msgspec, "convert", counted_look)
    told = found(text)
    assert 0 < len(told) <= MOST_FAULTS + 1
    assert all(fault.startswith("f.toml:") for fault in told)
    assert characters <= 3 * len(text)
    assert looks <= MOST_FAULTS + 2


@pytest.mark.parametrize("key", [".".join(["a"] * 20_000), " . ".join(['"a"'] * 20_000), "'a'.\t" * 20_000 + "b"])
@pytest.mark.parametrize("text", ["\n{} = 1\n", "\n[{}]\n", "\n[[ {} ]]", "\nx = {{ {} = 1 }}"])
def test_a_key_of_thousands_of_parts_is_not_looked_at(key: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tomllib, "loads", pytest.fail)
    (fault,) = found(text.format(key))
    assert fault.startswith("f.toml:2: a key of more than 64 parts")


def test_a_list_of_many_names_with_dots_is_no_key() -> None:
    names = ", ".join(f'"/usr/lib/lib{number}.so.1.2.3"' for number in range(100))
    assert found(f'[[rule]]\nname = "a"\nlibraries = [{names}]') == []


def test_of_too_many_faults_the_first_are_told_and_nothing_holds(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    for count in (MOST_FAULTS, MOST_FAULTS + 1, 3000):
        path.write_text("".join(f"key{number} = 1\n" for number in range(count)) + "agent.workers = 3\n")
        told = faults(path)
        assert [fault.split(":")[1] for fault in told[:MOST_FAULTS]] == [str(line + 1) for line in range(MOST_FAULTS)]
        assert len(told) == MOST_FAULTS + (count > MOST_FAULTS)
        assert read(path).settings == Settings()


def test_a_hostile_file_name_is_escaped() -> None:
    _, (fault,) = parse(b"x = 1", "a\x1b[2J\n" + os.fsdecode(b"\xff"), Settings)
    assert fault.startswith(r"a\x1b[2J\n\xff:1: x = 1")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The settings of a site, with a folder of policies beside them."""
    (tmp_path / "policy.d").mkdir()
    return tmp_path / "pageferry.toml"


def put(site: Path, **texts: str) -> None:
    for name, text in texts.items():
        (site.parent / "policy.d" / f"{name.removeprefix('_')}.toml").write_text(text)


def test_files_are_read_by_name_and_a_later_key_takes_the_place_of_an_earlier_one(site: Path) -> None:
    put(site, _20="[agent]\nworkers = 3\n", _10="[agent]\nworkers = 2\nretention_days = 5\n")
    site.write_text('[agent]\nworkers = 1\nslurm_user = "daemon"\n')
    (site.parent / "policy.d" / "30.conf").write_text("no TOML")
    (site.parent / "policy.d" / ".40.toml").write_text("no TOML")
    agent = load(site).agent
    assert (agent.workers, agent.retention_days, agent.slurm_user) == (3, 5, "daemon")
    assert [path.name for path in read(site).files] == ["pageferry.toml", "10.toml", "20.toml"]


def test_a_rule_takes_the_place_of_the_one_with_its_name_and_others_come_after(site: Path) -> None:
    site.write_text('rule = [{name = "a", workers = 1}, {name = "b", workers = 1, mode = "off"}]')
    put(site, _1='rule = [{name = "c"}, {name = "b", workers = 2}]', _2='rule = [{name = "a", workers = 3}]')
    found = [(rule.name, rule.workers, rule.mode) for rule in load(site).rule]
    assert found == [("a", 3, None), ("b", 2, None), ("c", None, None)], (
        "as a whole: what it does not say is the host's"
    )


def test_policies_are_read_where_there_is_no_other_file(site: Path) -> None:
    put(site, a='[[rule]]\nname = "a"\n')
    assert [rule.name for rule in load(site).rule] == ["a"]


def test_the_faults_of_all_files_are_told_file_by_file(site: Path) -> None:
    site.write_text("[agent]\nworkers = 0\n")
    put(site, _1="[[rule]]\nname = 3\n", _2="[spill]\nrate = 1\n[", _3="")
    folder = site.parent / "policy.d"
    (folder / "4.toml").mkdir()
    assert [fault.partition(" = ")[0] for fault in faults(site)] == [
        f"{site}:2: agent.workers",
        f"{folder}/1.toml:2: rule[0].name",
        f"{folder}/2.toml:3: Invalid initial character for a key part at the end of the file",
        f"{folder}/4.toml: not a regular file",
    ]
    with pytest.raises(ConfigError, match=r"and 3 more"):
        load(site)


def test_a_folder_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "policy.d").symlink_to("policy.d")
    (fault,) = faults(tmp_path / "pageferry.toml")
    assert "symbolic links" in fault


def test_files_that_are_named_have_to_be_there(tmp_path: Path) -> None:
    assert read_files([tmp_path / "none.toml"]).faults == (f"{tmp_path}/none.toml: No such file or directory",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('name = "a"\n[[rule]]\nname = "a"', '4: rule[1].name = "a": rule 1 of this file has that name, too'),
        ('name = "a"\nmatch.min_cpus = 3\nmatch.max_cpus = 2', "3: rule[0].match.min_cpus = 3: more than max_cpus = 2"),
        ('name = "a"\nmode = "on"', '3: rule[0].mode = "on": expected one of off, observe, move'),
        ('name = "a"\nwhen_hold_ends = "stop"', '3: rule[0].when_hold_ends = "stop": expected one of go on, leave'),
        ('name = "a"\nmatch.partition = []', "3: rule[0].match.partition = []: expected a glob"),
        ('name = "a"\nmatch.user = ["a", 1]', "3: rule[0].match.user = ['a', 1]: expected a glob"),
        ('name = "a"\nmatch.user = "a\\tb"', r'3: rule[0].match.user = "a\tb": expected globs that can be printed'),
        ('name = "a"\nmatch.max_nodes = 0', "3: rule[0].match.max_nodes = 0: expected int >= 1"),
        ('name = "a"\nmatch.group = "x"', '3: rule[0].match.group = "x": unknown key; there are scheduler, cluster'),
        ('name = "a"\nsticky = "yes"', '3: rule[0].sticky = "yes": unknown key; there are name, match'),
        ('name = "a"\nspill.rate = "1M"', '3: rule[0].spill.rate = "1M": unknown key; there are enabled, least_bytes'),
        ('name = "a"\nweights = "0:0,2:1"', '3: rule[0].weights = "0:0,2:1": expected nodes'),
        ('name = "a"\nweights = {0 = 3}', "3: rule[0].weights = {...}: expected nodes"),
        ('name = "a"\nrate = "1K"', '3: rule[0].rate = "1K": expected at least 1048576 bytes'),
        ('name = " a"', '2: rule[0].name = " a": expected a name that can be printed, without blanks around it'),
        ('name = ""', '2: rule[0].name = "": expected a name of 1 to 64 characters'),
        ("mode = 'off'", "1: rule[0] = {...}: object missing required field name"),
    ],
)
def test_a_fault_of_a_rule_is_named_where_it_stands(text: str, fault: str) -> None:
    _, (found,) = toml_file.read(f"[[rule]]\n{text}\n".encode(), "f", Settings, config._faults)
    assert found.startswith(f"f:{fault}")


def test_a_rule_without_a_name_hides_no_other_fault() -> None:
    text = b"rule = [{workers = 0}, {name = 3, workers = 0}, {name = '', match = 1}, {name = 'a'}, {name = 'a'}]"
    _, found = toml_file.read(text, "f", Settings, config._faults)
    assert sorted(fault.split(" = ")[0] for fault in found) == [
        "f:1: rule[0]",
        "f:1: rule[0].workers",
        "f:1: rule[1].name",
        "f:1: rule[1].workers",
        "f:1: rule[2].match",
        "f:1: rule[2].name",
        "f:1: rule[4].name",
    ]


def test_what_no_rule_says_is_the_hosts_and_what_the_host_does_not_say_has_a_default(site: Path) -> None:
    site.write_text(
        '[agent]\nmax_hold_seconds = 7\nwhen_full = "refuse"\n[spill]\nleast_bytes = 3\n'
        '[[rule]]\nname = "a"\nworkers = 5\nspill.enabled = false\nmatch.user = "a"\n'
    )
    settings = load(site)
    ours, others = settings.policy(Facts("slurm", user="a")), settings.policy(Facts("slurm", user="b"))
    assert (ours.rule, ours.workers, ours.spill_enabled) == ("a", 5, False)
    assert (others.rule, others.workers, others.spill_enabled) == ("", None, True)
    for found in (ours, others):
        assert (found.max_hold_seconds, found.when_full, found.spill_least_bytes) == (7, WhenFull.REFUSE, 3)


@pytest.mark.parametrize("value", ['"127.0.0.1:9797"', '"0.0.0.0:1"', '"[::]:65535"', '"[fe80::1]:9797"'])
def test_an_address_is_an_ip_address_and_a_port(value: str) -> None:
    assert found(f"metrics.listen = {value}") == []


@pytest.mark.parametrize(
    "value",
    [
        '""',
        '"9797"',
        '":9797"',
        '"localhost:9797"',
        '"127.0.0.1"',
        '"127.0.0.1:0"',
        '"127.0.0.1:65536"',
        '"127.0.0.1:-1"',
        '"127.0.0.1:٣"',
        '"::1:9797"',
        '"[127.0.0.1]:9797"',
        '"[::1]"',
        '"[::1:80"',
        '"::1]:80"',
        '"[::1]]:80"',
        '"[fe80::1%lo]:80"',
        '"127.0.0.1:000080"',
        '"127.0.0.1: 80"',
        f'"127.0.0.1:{"9" * 5000}"',
        f'"{"1" * 70_000}:80"',
        '"127.0.0.1:9797\\n"',
        "9797",
        "true",
    ],
)
def test_what_is_no_address_is_named_with_what_would_be_one(value: str) -> None:
    (fault,) = found(f"[metrics]\nlisten = {value}")
    assert fault.startswith("f.toml:2: metrics.listen = ")
    assert fault.endswith('expected an IP address and a port, such as "127.0.0.1:9797" or "[::1]:9797"')


@pytest.mark.parametrize(
    "value", ['"metrics"', '"./x"', '"/x\\u0000"', '"/x\\n/y"', '"/x\\u202e"', '"/\\u007f"', "1", "[]"]
)
def test_what_is_no_folder_is_named(value: str) -> None:
    (fault,) = found(f"[metrics]\ntextfile = {value}")
    assert fault.startswith("f.toml:2: metrics.textfile = ")
    assert fault.endswith('expected the absolute path of a directory, or "" for none')


def test_metrics_go_where_the_site_says_or_where_debians_collector_looks_if_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "TEXTFILE", tmp_path / "collector")
    assert Metrics().folder() is None
    assert Metrics(textfile=Folder("/no/such")).folder() == Path("/no/such")
    (tmp_path / "collector").mkdir()
    assert Metrics().folder() == tmp_path / "collector"
    assert Metrics(textfile=Folder("")).folder() is None


@pytest.mark.parametrize("depth", [20, 200, 300, 490, 700, 5000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a = ", "}")])
@pytest.mark.parametrize("key", ["x", "agent.workers", "rule"])
def test_what_is_nested_too_deeply_is_one_fault(depth: int, opening: str, closing: str, key: str) -> None:
    (fault,) = found(
        f"[spill]\nenabled = true\n[y]\n{key} = {opening * depth}{'1' if closing == '}' else ''}{closing * depth}\n"
    )
    assert fault.startswith("f.toml: ")
    assert len(fault) < 200


@pytest.mark.parametrize("text", [f"# {'-.' * 80}", f"# {' '.join(f'{n}.' for n in range(80))}", f"x = '{'a.' * 80}'"])
def test_a_long_line_of_dots_that_is_no_key_is_no_key_of_many_parts(text: str) -> None:
    assert not any("parts" in fault for fault in found(f"{text}\n"))


def test_names_that_are_nested_too_deeply_are_one_fault() -> None:
    for text in (f"{'a.' * 40}b = 1", f"[{'a.' * 40}b]"):
        (fault,) = found(text)
        assert fault.startswith("f.toml: a: ")


@pytest.mark.parametrize(
    "where",
    [
        "[agent]\n{} = 1",
        "{} = 1",
        '[agent]\nwhen_full = "{}"',
        '[[rule]]\nname = "{}"',
        '[[rule]]\nname = "a"\n{} = 1',
        '[[rule]]\nname = "a"\nmatch.user = "{}"',
        '[metrics]\ntextfile = "{}"',
        "[agent]\nworkers = {}",
        '[agent]\nslurm_user = "{}"\nworkers = -1',
    ],
)
def test_a_fault_is_one_short_line_however_long_the_value(where: str) -> None:
    for fault in found(where.format("1" * 70_000)):
        assert fault.isprintable()
        assert len(fault) < 1000
