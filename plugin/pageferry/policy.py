"""The site's rules: what is known of a job → the first rule that matches → the policy that holds for the job.

Rules are `[[rule]]` tables of the settings; a key is a field of `Match` or `Rule`, with its limits and what it is for.
Nothing here reads a file or asks a scheduler, and nothing here acts on a policy: see `config`, `schedulers`, `applied`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pageferry.kernel.lists import format_list, parse_list
from pageferry.kernel.topology import Topology
from pageferry.kernel.weights import parse_weights
from pageferry.toml_file import Bytes
from pageferry.toml_lines import Key
from pageferry_planner.model import HugePages, Strategy, WhenFull

NAME_CHARACTERS = 64
_GLOB_CHARACTERS = 1024
_MOST_NODES = 1024
CPULESS = "cpuless"
_TEXTS = ("cluster", "partition", "qos", "account", "user", "job_name")
_SIZES = ("nodes", "cpus")


class Rate(Bytes):
    """Bytes per second: at least 1 MiB, since a move that is never done is not what a limit is for."""

    least = 1 << 20


class Name(str):
    """A rule's name: short and printable, since it stands in every line of the log that the rule decides."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Name:
        """Return the name that a file's value is. Raises ValueError, which says what would be right."""
        if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARACTERS:
            raise ValueError(f"expected a name of 1 to {NAME_CHARACTERS} characters")
        if not value.isprintable() or value != value.strip():
            raise ValueError("expected a name that can be printed, without blanks around it")
        return cls(value)


class Globs(tuple[str, ...]):
    """Patterns as the shell has them (*, ?, [...]), of which any may match; capital and small letters differ."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Globs:
        """Return the patterns that a file's value means: one, or a list. Raises ValueError."""
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not given or not all(isinstance(glob, str) and glob for glob in given):
            raise ValueError('expected a glob, such as "gpu*", or a list of globs')
        if not all(glob.isprintable() and len(glob) <= _GLOB_CHARACTERS for glob in given):
            raise ValueError(f"expected globs that can be printed, of at most {_GLOB_CHARACTERS} characters")
        return cls(given)

    def match(self, text: str) -> bool:
        """Say whether any of them matches all of a text."""
        return any(fnmatchcase(text, glob) for glob in self)


class Nodes(tuple[int, ...]):
    """NUMA nodes, as the kernel writes lists of them: "4", "4-5,7"; ascending."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Nodes:
        """Return the nodes that a file's value means. Raises ValueError, which says what would be right."""
        if isinstance(value, str):
            with suppress(ValueError):
                nodes = sorted(parse_list(value))
                if nodes and nodes[-1] < _MOST_NODES:
                    return cls(nodes)
        raise ValueError(f'expected a list of nodes below {_MOST_NODES}, such as "4" or "4-5"')


class Weights(tuple[tuple[int, int], ...]):
    """Pairs of a node and its weight, written "0:3,2:1"."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Weights:
        """Return the weights that a file's value means. Raises ValueError, which says what would be right."""
        return cls(parse_weights(value if isinstance(value, str) else ""))


class Special(str):
    """Which nodes of a host are special, as the site names them: a list, "cpuless", or "": none."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Special:
        """Return what a file's value means. Raises ValueError, which says what would be right."""
        if isinstance(value, str) and value in {"", CPULESS}:
            return cls(value)
        with suppress(ValueError):
            return cls(format_list(Nodes.parse(value)))
        raise ValueError(f'expected a list of nodes below {_MOST_NODES}, such as "2-3", or "{CPULESS}", or "" for none')

    def named(self) -> frozenset[int]:
        """Return the nodes of the list; not all are on each host."""
        return frozenset() if self == CPULESS else parse_list(self)

    def on(self, topology: Topology) -> frozenset[int]:
        """Return the special nodes of a host, those with memory."""
        return topology.cpuless() if self == CPULESS else self.named() & topology.nodes_with_memory()


_Count = Annotated[int, Meta(ge=1, lt=1 << 31)]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rule.match]`: which jobs a rule is for. All that is given must hold; what is not given holds for every job."""

    scheduler: Annotated[Literal["slurm", "pbs"] | None, Meta(description="Whose job it is.")] = None
    cluster: Annotated[Globs | None, Meta(description="Slurm's ClusterName; PBS's server, as in the job's ID.")] = None
    partition: Annotated[Globs | None, Meta(description="The job's partition; PBS's queue.")] = None
    qos: Annotated[Globs | None, Meta(description="The job's QOS; a job of PBS's has none.")] = None
    account: Annotated[
        Globs | None, Meta(description="The job's account; under PBS that of `qsub -A`, or else its project.")
    ] = None
    user: Annotated[Globs | None, Meta(description="The name of the job's user.")] = None
    job_name: Annotated[Globs | None, Meta(description="The job's name, which its user chooses.")] = None
    features: Annotated[
        Globs | None,
        Meta(description="Any of the features that the job asked for (`--constraint`); a job of PBS's has none."),
    ] = None
    min_nodes: Annotated[_Count | None, Meta(description="The job has at least so many hosts.")] = None
    max_nodes: Annotated[_Count | None, Meta(description="The job has at most so many hosts.")] = None
    min_cpus: Annotated[_Count | None, Meta(description="The job has at least so many CPUs, on all its hosts.")] = None
    max_cpus: Annotated[_Count | None, Meta(description="The job has at most so many CPUs, on all its hosts.")] = None


class RuleSpill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rule.spill]`: whether the job's memory comes home from far nodes when another job ends, and from when on."""

    enabled: Annotated[bool | None, Meta(description="It comes home.")] = None
    least_bytes: Annotated[Bytes | None, Meta(description="Less than this stays where it is.")] = None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[rule]]`: what holds for the jobs that it is the first to match. A key that is not given is the host's."""

    name: Annotated[Name, Meta(description="What the log, the history and `pageferry explain` call it.")]
    match: Match = Match()
    mode: Annotated[
        Literal["off", "observe", "move"] | None,
        Meta(
            description="`off`: the job is neither held nor moved. `observe`: nor is it then, but what would be moved "
            "is planned and recorded."
        ),
    ] = None
    strategy: Annotated[
        Literal["relative", "local", "interleave", "pack", "weighted"] | None,
        Meta(description="Which page goes to which node, where the request does not say it."),
    ] = None
    weights: Annotated[
        Weights | None, Meta(description="With the strategy `weighted`, the nodes' shares of the job's memory.")
    ] = None
    max_hold_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=3600)] | None,
        Meta(description="The job is held no longer than this after its resume."),
    ] = None
    when_hold_ends: Annotated[
        Literal["go on", "leave"] | None,
        Meta(
            description="When that is used up, the job runs, and its move goes on meanwhile; or what has not moved "
            "by then is left where it is."
        ),
    ] = None
    workers: Annotated[Annotated[int, Meta(ge=1, le=256)] | None, Meta(description="Threads that move its memory.")] = (
        None
    )
    rate: Annotated[
        Rate | None, Meta(description="Bytes per second that a move stays below, also one while the job is held.")
    ] = None
    reserve: Annotated[Bytes | None, Meta(description="Bytes that a move leaves free on each target node.")] = None
    when_full: Annotated[
        Literal["partial", "refuse", "spill"] | None,
        Meta(description="Where there is no room: move what fits, nothing, or the rest to the next nearest node."),
    ] = None
    huge_pages: Annotated[
        Literal["split", "keep"] | None,
        Meta(
            description="Transparent huge pages for which the target node has none free: the kernel splits and moves "
            "them, or they stay, whole."
        ),
    ] = None
    hugetlb_surplus: Annotated[
        bool | None,
        Meta(
            description="hugetlb pages for which the target node's pool has none free move all the same: that pool "
            "grows, and the one that they leave shrinks. Not those of a gigantic size, such as 1 GiB."
        ),
    ] = None
    hot_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=60)] | None,
        Meta(
            description="Before a move while the job runs, see for so long what it uses; that goes first, should the "
            "move be cut short. Slurm's jobs alone; see above for what it takes."
        ),
    ] = None
    libraries: Annotated[
        Globs | None, Meta(description="Globs of the paths of mapped files that stay where they are.")
    ] = None
    xattr: Annotated[
        bool | None,
        Meta(
            description="Ask files for their attributes: `user.pageferry=stay`; `trusted.pageferry=stay` or `=move`, "
            "which goes before all but `leave_filesystems`."
        ),
    ] = None
    reference_count: Annotated[
        bool | None, Meta(description="What processes outside the job map, too, stays where it is.")
    ] = None
    leave_filesystems: Annotated[
        Globs | None,
        Meta(
            description="Types or mount points (globs) of file systems whose files stay; none of them is opened, or "
            "asked for attributes."
        ),
    ] = None
    park: Annotated[
        Nodes | None,
        Meta(
            description="While the job is suspended its memory is on these nodes, as far as it fits there, and comes "
            "back before it goes on."
        ),
    ] = None
    narrow_mems: Annotated[
        bool | None,
        Meta(
            description="After a move, the cpuset.mems of the job's steps is narrowed to the nodes of its memory and "
            "its CPUs. Slurm's jobs alone."
        ),
    ] = None
    owners_may_ask: Annotated[
        bool | None,
        Meta(
            description="The job's user may have its memory moved, and nobody else's: under Slurm by `pageferry "
            "request` or a request in the job's `Comment`, under PBS by one that came with the submission."
        ),
    ] = None
    owners_field: Annotated[
        Literal["Comment", "none"] | None,
        Meta(
            description="Where Slurm's users may write a request, if they may ask; `none`: nowhere, `Comment` is for "
            "other things here."
        ),
    ] = None
    spill: RuleSpill = RuleSpill()


class Mode(StrEnum):
    """What is done for a job; see `Rule.mode`."""

    OFF = "off"
    OBSERVE = "observe"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a job. None: nobody said. `features`: those that it asked for; names are printable."""

    scheduler: str
    cluster: str | None = None
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    user: str | None = None
    job_name: str | None = None
    features: tuple[str, ...] | None = None
    nodes: int | None = None
    cpus: int | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Facts:
        """Return what `dataclasses.asdict` made of facts, also after it was JSON."""
        features = plain["features"]
        return cls(**{**plain, "features": None if features is None else tuple(features)})


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for one job: each key as `Rule` has it, or as the host does. `rule`: its rule's name, "" if none."""

    rule: str = ""
    mode: Mode = Mode.MOVE
    strategy: Strategy = Strategy.RELATIVE
    weights: tuple[tuple[int, int], ...] = ()
    max_hold_seconds: float = 60.0
    when_hold_ends: Literal["go on", "leave"] = "go on"
    workers: int | None = None
    rate: int | None = None
    reserve: int | None = None
    when_full: WhenFull = WhenFull.PARTIAL
    huge_pages: HugePages = HugePages.SPLIT
    hugetlb_surplus: bool = False
    hot_seconds: float | None = None
    libraries: tuple[str, ...] = ()
    xattr: bool = True
    reference_count: bool = True
    leave_filesystems: tuple[str, ...] = ()
    park: tuple[int, ...] = ()
    narrow_mems: bool = False
    owners_may_ask: bool = False
    owners_field: Literal["Comment", "none"] = "Comment"
    spill_enabled: bool = True
    spill_least_bytes: int = 16 << 20
    spill_rate: int = 256 << 20
    special: Special = field(default_factory=Special)

    def named(self) -> str:
        """Return what decided, for people."""
        return f"rule {self.rule}" if self.rule else "no rule"


def decide(rules: Iterable[Rule], facts: Facts, host: Policy) -> Policy:
    """Return the policy of the first rule that matches a job, with the `host`'s for what it leaves open."""
    return next((_over(host, rule) for rule in rules if why_not(rule.match, facts) is None), host)


def passed_over(rules: Iterable[Rule], facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the rules before the first that matches, each with the reason why it does not."""
    for rule in rules:
        why = why_not(rule.match, facts)
        if why is None:
            return
        yield rule.name, why


def why_not(match: Match, facts: Facts) -> str | None:
    """Return the first thing for which a job does not match, None if it does. What is not known matches nothing."""
    return next(_reasons(match, facts), None)


def _reasons(match: Match, facts: Facts) -> Iterator[str]:
    if match.scheduler not in {None, facts.scheduler}:
        yield f"scheduler is {facts.scheduler}, not {match.scheduler}"
    for name in _TEXTS:
        globs, fact = getattr(match, name), getattr(facts, name)
        if globs is not None and (fact is None or not globs.match(fact)):
            yield _differs(name, fact, globs)
    if match.features is not None and not any(map(match.features.match, facts.features or ())):
        yield _differs("features", None if facts.features is None else ",".join(facts.features), match.features)
    for name in _SIZES:
        least, most, fact = getattr(match, f"min_{name}"), getattr(match, f"max_{name}"), getattr(facts, name)
        if fact is None and (least is not None or most is not None):
            yield f"{name}: not known"
        elif least is not None and fact < least:
            yield f"{name} is {fact}, less than min_{name} = {least}"
        elif most is not None and fact > most:
            yield f"{name} is {fact}, more than max_{name} = {most}"


def asks_of_jobs(rules: Iterable[Rule]) -> bool:
    """Say whether any rule asks what only the scheduler knows of a job."""
    return any(rule.match != Match(scheduler=rule.match.scheduler) for rule in rules)


def faults(rules: Sequence[Rule]) -> Iterator[tuple[Key, str]]:
    """Yield what is wrong with the rules of one file beyond their single values: the key, and what is."""
    known: dict[str, int] = {}
    for place, rule in enumerate(rules):
        if rule.name and rule.name in known:  # "" stands for one with a fault
            yield ("rule", place, "name"), f"rule {known[rule.name] + 1} of this file has that name, too"
        known.setdefault(rule.name, place)
        for size in _SIZES:
            least, most = getattr(rule.match, f"min_{size}"), getattr(rule.match, f"max_{size}")
            if least is not None and most is not None and least > most:
                yield ("rule", place, "match", f"min_{size}"), f"more than max_{size} = {most}: no job can match"
        if rule.narrow_mems and rule.match.scheduler == "pbs":
            yield ("rule", place, "narrow_mems"), "for Slurm's jobs: PBS reads in cpuset.mems what it gave a job"
        if rule.hot_seconds and rule.match.scheduler == "pbs":
            yield ("rule", place, "hot_seconds"), "for Slurm's jobs: what PBS's jobs use is not looked at"


def _differs(name: str, fact: str | None, globs: Globs) -> str:
    wanted = ", ".join(globs)
    return f"{name}: not known, wanted {wanted}" if fact is None else f"{name} is {fact or 'none'}, not {wanted}"


def _over(host: Policy, rule: Rule) -> Policy:
    """Return the host's policy with what a rule says in its place."""
    said: dict[str, Any] = {
        field.name: getattr(rule, field.name) for field in fields(Policy) if hasattr(rule, field.name)
    }
    said |= {"spill_enabled": rule.spill.enabled, "spill_least_bytes": rule.spill.least_bytes}
    # What its rule says of a rate holds for each of its moves.
    said |= {"rule": str(rule.name), "spill_rate": rule.rate}
    enums: dict[str, type[StrEnum]] = {
        "mode": Mode,
        "strategy": Strategy,
        "when_full": WhenFull,
        "huge_pages": HugePages,
    }
    given: dict[str, Any] = {
        key: enums[key](value) if key in enums else value for key, value in said.items() if value is not None
    }
    return replace(host, **given)
