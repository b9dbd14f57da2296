"""What must hold of rendered fragments: what Slurm reads in them, and that nobody's own work is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import ConfigError, UsageError
from pageferry.render import Action, SlurmOptions, lines, render_slurm, shipped
from pageferry.schedulers.slurm_config import read_settings

HOOKS = Path("/opt/site/hooks")
PLAIN = SlurmOptions(HOOKS)


def settings(folder: Path) -> dict[str, str]:
    """Return what both files set; a key that is there twice fails."""
    found: dict[str, str] = {}
    for name in ("pageferry.conf", "pageferry-cgroup.conf"):
        for setting in read_settings(folder / name):
            assert setting.key not in found
            found[setting.key] = setting.value
    return found


def test_the_files_set_what_pageferry_needs_and_nothing_else(tmp_path: Path) -> None:
    render_slurm(tmp_path, PLAIN)
    assert settings(tmp_path) == {
        "ProctrackType": "proctrack/cgroup",
        "TaskPlugin": "task/cgroup,task/affinity",
        "Prolog": "/opt/site/hooks/prolog.d/50-pageferry",
        "Epilog": "/opt/site/hooks/epilog.d/50-pageferry",
        "JobSubmitPlugins": "lua",
        "ConstrainCores": "yes",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"pageferry.conf", "pageferry-cgroup.conf"}
    # Every command of Slurm's reads slurm.conf, whoever calls it.
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


def test_a_health_check_is_written_only_where_it_is_asked_for(tmp_path: Path) -> None:
    render_slurm(tmp_path, SlurmOptions(HOOKS, health_check_seconds=60))
    found = settings(tmp_path)
    assert found["HealthCheckProgram"] == "/opt/site/hooks/healthcheck.d/50-pageferry"
    assert found["HealthCheckInterval"] == "60"


def test_the_hooks_that_are_named_are_shipped(tmp_path: Path) -> None:
    render_slurm(tmp_path, SlurmOptions(shipped("hooks") / "slurm", health_check_seconds=60))
    found = settings(tmp_path)
    for key in ("Prolog", "Epilog", "HealthCheckProgram"):
        assert Path(found[key]).is_file()


def test_once_more_changes_nothing_and_other_options_change_our_own(tmp_path: Path) -> None:
    render_slurm(tmp_path, PLAIN)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert {file.action for file in render_slurm(tmp_path, PLAIN)} == {Action.UNCHANGED}
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
    changed = render_slurm(tmp_path, SlurmOptions(Path("/elsewhere")))
    assert {file.path.name: file.action.value for file in changed} == {
        "pageferry.conf": "written",
        "pageferry-cgroup.conf": "unchanged",
    }


@pytest.mark.parametrize("name", ["pageferry.conf", "pageferry-cgroup.conf"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text + "KillWait=30\n", "was edited since it was written"),
        (lambda text: text.replace("=", " = ", 1), "was edited since it was written"),
        (lambda text: text.replace("checksum ", "checksum 0"), "is not pageferry's"),
        (lambda _text: "ConstrainCores=no\n", "is not pageferry's"),
        (lambda _text: "", "is not pageferry's"),
    ],
)
def test_a_file_that_is_not_as_we_wrote_it_is_left(name: str, change: object, says: str, tmp_path: Path) -> None:
    assert callable(change)
    render_slurm(tmp_path, PLAIN)
    path = tmp_path / name
    path.write_text(change(path.read_text()))
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=f"{name}: {says}; --force"):
        render_slurm(tmp_path, SlurmOptions(Path("/elsewhere")))
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before  # the other one neither
    render_slurm(tmp_path, SlurmOptions(HOOKS, force=True))
    assert settings(tmp_path)["ConstrainCores"] == "yes"


def test_what_a_link_leads_to_is_never_written(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("the site's\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "pageferry.conf").symlink_to(other)
    with pytest.raises(UsageError, match="is not pageferry's"):
        render_slurm(out, PLAIN)
    render_slurm(out, SlurmOptions(HOOKS, force=True))
    assert other.read_text() == "the site's\n"


@pytest.mark.parametrize(
    "path", ["hooks", "/a b", "/a\nKillWait=1", "/a#b", '/a"b', "/a*", "/a\\", "/\u00e4", "/{{x}}"]
)
def test_a_path_that_slurm_would_read_otherwise_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not an absolute path that slurm\.conf can name"):
        render_slurm(tmp_path / "out", SlurmOptions(Path(path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seconds", [0, -1, 65534])
def test_an_interval_that_slurm_refuses_is_refused(seconds: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="health check: not 1 to 65533 seconds"):
        render_slurm(tmp_path, SlurmOptions(HOOKS, health_check_seconds=seconds))


def test_a_key_that_is_asked_to_be_left_out_must_be_one_of_ours(tmp_path: Path) -> None:
    render_slurm(tmp_path, SlurmOptions(HOOKS, without=frozenset({"taskplugin", "ConstrainCores"})))
    assert set(settings(tmp_path)) == {"ProctrackType", "Prolog", "Epilog", "JobSubmitPlugins"}
    with pytest.raises(UsageError, match="without: 'KillWait' is none of ProctrackType, "):
        render_slurm(tmp_path, SlurmOptions(HOOKS, without=frozenset({"KillWait"})))


def test_keys_that_the_site_sets_are_left_to_it_and_named_with_their_place(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "slurm.conf").write_text("ClusterName=c\nEpilog=/e \\\n # more\nInclude plugins\nInclude pageferry.conf\n")
    (site / "plugins").write_text("# TaskPlugin=task/none\nJobCompType=jobcomp/none taskplugin=task/cgroup\n")
    (site / "cgroup.conf").write_text("ConstrainCores=no\nInclude pageferry-cgroup.conf\n")
    options = SlurmOptions(HOOKS, beside=site)
    slurm_conf, cgroup_conf = made = render_slurm(site, options)
    assert slurm_conf.left_out == {
        "Epilog": f"{site}/slurm.conf line 2 sets /e",
        "TaskPlugin": f"{site}/plugins line 2 sets task/cgroup",
    }
    assert cgroup_conf.left_out == {"ConstrainCores": f"{site}/cgroup.conf line 1 sets no"}
    assert set(settings(site)) == {"ProctrackType", "Prolog", "JobSubmitPlugins"}
    said = lines(made, options)
    assert f"          Epilog is left out: {site}/slurm.conf line 2 sets /e" in said
    assert f"{HOOKS} is not on this host; it must be on every host that runs jobs" in said
    # What it wrote is included now, and is not the site's own.
    assert {file.action for file in render_slurm(site, options)} == {Action.UNCHANGED}


def test_a_site_without_a_configuration_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.conf: No such file"):
        render_slurm(tmp_path / "out", SlurmOptions(HOOKS, beside=tmp_path))


def test_files_that_include_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("Include slurm.conf\n")
    with pytest.raises(ConfigError, match="included more than 8 deep"):
        render_slurm(tmp_path / "out", SlurmOptions(HOOKS, beside=tmp_path))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        render_slurm(tmp_path / "file", PLAIN)
