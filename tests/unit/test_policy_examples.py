"""Each example of contrib/policy.d is right, alone and with the others, and does what its comment says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pageferry.config import Settings, read_files
from pageferry.policy import Facts, Mode, Policy
from pageferry_planner.model import Strategy, WhenFull

FOLDER = Path(__file__).parents[2] / "contrib/policy.d"
JOB = Facts("slurm", "tux", "main", "normal", "phys", "ada", "run.sh", (), 1, 64)

Check = Callable[[Callable[..., Policy]], None]


def leaves_a_partition_alone(policy: Callable[..., Policy]) -> None:
    assert policy(partition="debug-gpu").mode is Mode.OFF
    assert policy(partition="interactive").mode is Mode.OFF
    assert policy(partition="main").mode is Mode.MOVE


def observes_first(policy: Callable[..., Policy]) -> None:
    assert policy(account="chemistry").mode is Mode.OBSERVE
    assert policy(account="phys").mode is Mode.MOVE


def holds_big_jobs_longer(policy: Callable[..., Policy]) -> None:
    big, short = policy(nodes=8), policy(nodes=1, qos="short", cpus=16)
    assert (big.max_hold_seconds, big.when_hold_ends, big.workers) == (600, "leave", 16)
    assert (short.max_hold_seconds, short.when_hold_ends) == (5, "go on")
    assert policy(nodes=1, qos="short", cpus=17).rule == policy(nodes=7).rule == ""


def limits_the_rate(policy: Callable[..., Policy]) -> None:
    shared = policy(partition="shared")
    assert (shared.rate, shared.spill_rate, shared.workers, shared.reserve) == (512 << 20, 512 << 20, 2, 4 << 30)
    assert shared.when_full is WhenFull.SPILL
    assert policy().rate is None


def keeps_the_software_tree(policy: Callable[..., Policy]) -> None:
    found = policy(partition="batch")
    assert "/opt/site/*" in found.libraries
    assert policy().libraries == ()
    assert not found.xattr
    assert found.reference_count


def leaves_file_systems(policy: Callable[..., Policy]) -> None:
    assert policy(features=("diskless", "gpu")).leave_filesystems == ("lustre", "nfs*", "/scratch")
    assert policy().leave_filesystems == ()


def lets_owners_ask(policy: Callable[..., Policy]) -> None:
    assert policy(account="astro").owners_may_ask
    assert policy(account="astro").strategy is Strategy.LOCAL
    assert not policy().owners_may_ask


def brings_memory_home(policy: Callable[..., Policy]) -> None:
    soon, never = policy(job_name="a-latency-b"), policy(user="streamer")
    assert (soon.spill_enabled, soon.spill_least_bytes) == (True, 1 << 20)
    assert not never.spill_enabled
    assert policy().spill_least_bytes == 16 << 20


def parks_what_is_preempted(policy: Callable[..., Policy]) -> None:
    parked = policy(partition="scavenge")
    assert (parked.park, parked.max_hold_seconds, parked.reserve) == ((4, 5), 300, 1 << 30)
    assert policy().park == ()


def has_jobs_stay(policy: Callable[..., Policy]) -> None:
    assert (policy(partition="pinned").narrow_mems, policy(partition="pinned").reserve) == (True, 4 << 30)
    assert not policy().narrow_mems


def holds_for_all_others(policy: Callable[..., Policy]) -> None:
    assert policy().mode is Mode.OBSERVE
    assert policy(**dict.fromkeys(("cluster", "partition", "user", "nodes", "cpus"))).mode is Mode.OBSERVE


EXAMPLES: dict[str, Check] = {
    "10-leave-a-partition-alone": leaves_a_partition_alone,
    "20-observe-first": observes_first,
    "30-big-jobs": holds_big_jobs_longer,
    "40-rate-limit": limits_the_rate,
    "50-site-libraries": keeps_the_software_tree,
    "60-file-systems": leaves_file_systems,
    "70-owners-may-ask": lets_owners_ask,
    "80-spilled-memory": brings_memory_home,
    "85-park-preempted": parks_what_is_preempted,
    "87-stay-where-moved": has_jobs_stay,
    "90-all-others": holds_for_all_others,
}


def loaded(*paths: Path) -> Settings:
    reading = read_files(paths)
    assert reading.faults == ()
    return reading.settings


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_its_comment_says(name: str) -> None:
    path = FOLDER / f"{name}.toml"
    settings = loaded(path)
    EXAMPLES[name](lambda **said: settings.policy(replace(JOB, **said)))
    assert path.read_text().startswith("# ")


def test_every_example_is_looked_at_and_all_of_them_go_together() -> None:
    paths = sorted(FOLDER.iterdir())
    assert {path.stem for path in paths} == set(EXAMPLES)
    together = loaded(*paths)
    decides: dict[str, dict[str, Any]] = {
        "partitions to leave alone": {"partition": "debug-gpu"},
        "observe first": {"account": "chemistry"},
        "big jobs": {"nodes": 8},
        "short jobs": {"qos": "short", "cpus": 16},
        "shared hosts": {"partition": "shared"},
        "software tree": {"partition": "batch"},
        "slow file systems": {"features": ("diskless",)},
        "owners may ask": {"account": "astro"},
        "latency matters": {"job_name": "a-latency-b"},
        "streams": {"user": "stream1"},
        "park what is preempted": {"partition": "scavenge"},
        "stay where moved": {"partition": "pinned"},
        "all others": {},
    }
    assert {name: together.policy(replace(JOB, **facts)).rule for name, facts in decides.items()} == {
        name: name for name in decides
    }
    assert {rule.name for rule in together.rule} == set(decides)
