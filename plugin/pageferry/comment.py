"""The request that an operator writes into a job's AdminComment, and the outcome that the agents write back there.

    pageferry:nodes=2-3[,cpus=4-7][,strategy=local][,now][;HOST:nodes=...]

A part without HOST holds for every host that is not named. The same rules, for the moment when the operator types it,
are in hooks/slurm/job_submit.lua. Who reads and writes the comment is left to schedulers.control, what is then done to
the agent. Nothing here looks at the host: whether it has these nodes is for those who move.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pageferry.errors import UsageError
from pageferry.kernel.files import printable
from pageferry.kernel.lists import format_list, parse_list
from pageferry_planner.model import Strategy

PREFIX = "pageferry:"
MARKER = "[pageferry] "
MAX_REQUEST_BYTES = 1024
MAX_COMMENT_BYTES = 2048
"""Room for the longest request, kept for the hosts that have yet to answer, and the outcomes of ten others."""

FIELD_BYTES = 4096
"""Of a comment, no more is read: one of this length may have been cut anywhere, also within a list of nodes."""

MAX_OUTCOME_BYTES = 200
MAX_NUMBER = {"nodes": 1023, "cpus": 8191}
"""The kernel's largest MAX_NUMNODES and NR_CPUS, less one."""

_BLANKS = " \t\r\n"
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PART = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62}): ([^;]*)")
_SEPARATOR = "; "
_ASKED = "; asked "
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Wish:
    """What one host shall do: `nodes` as asked; `cpus` None: as many as the job has, on these; `now`: not suspended.

    `strategy` None: the site's for this job.
    """

    nodes: tuple[int, ...]
    cpus: frozenset[int] | None = None
    strategy: Strategy | None = None
    now: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request: the wish of each host that is named, and of all others; `answered` have written their outcome."""

    others: Wish | None = None
    named: tuple[tuple[str, Wish], ...] = ()
    answered: frozenset[str] = frozenset()

    def for_host(self, name: str) -> Wish | None:
        """Return what the host that Slurm calls `name` shall do; None: nothing, or it has done it."""
        if name in self.answered:
            return None
        return dict(self.named).get(name, self.others)

    def for_any(self, names: Iterable[str]) -> Wish | None:
        """Return what the host that goes by these names shall do: by the first of them that is asked for anything."""
        wishes = (self.for_host(name) for name in names)
        return next((wish for wish in wishes if wish is not None), None)


def parse(text: str) -> Request | None:
    """Return the request in an AdminComment, None if it holds none of ours.

    An outcome that keeps the request, for hosts that have yet to answer, is a request to those alone. Of a text that
    may have been cut nothing is read. Raises UsageError, which says what is wrong and where.
    """
    words = text.strip(_BLANKS)
    if words.startswith(PREFIX):
        return _request(text.rstrip(_BLANKS))
    report = _read_report(words) if len(_bytes(text)) < FIELD_BYTES else None
    return report.asked if report is not None else None


def format_request(request: Request) -> str:
    """Return the text that `parse` reads as this request."""
    parts = [_format_wish(request.others)] if request.others is not None else []
    parts += [f"{host}:{_format_wish(wish)}" for host, wish in request.named]
    return PREFIX + ";".join(parts)


def outcome_text(moved_bytes: int, nodes: Iterable[int], stayed: Mapping[str, int], at: str) -> str:
    """Return one host's outcome: `stayed` are pages by the bucket they ended in, `at` the time of day.

    >>> outcome_text(36490445, (2, 3), {"pinned": 12}, "14:02:11")
    'moved 34.8 MiB to nodes 2-3, 12 pages stayed (pinned), 14:02:11'
    """
    targets = sorted(set(nodes))
    words = [f"moved {_mib(moved_bytes)} MiB to node{'s' * (len(targets) > 1)} {format_list(targets)}"]
    for bucket, pages in stayed.items():
        if pages:
            words.append(f"{pages} page{'s' * (pages > 1)} stayed ({bucket})")
    return ", ".join([*words, at])


def is_superseded(comment: str, host: str, served: str) -> bool:
    """Say whether an AdminComment asks `host` for something else than the request `served`, whose outcome is known now.

    Both as `parse` takes them; `served` may be empty.
    """
    try:
        asked = parse(comment)
    except UsageError:
        return comment.strip(_BLANKS) != served.strip(_BLANKS)
    wish = asked.for_host(host) if asked is not None else None
    if wish is None:
        return False
    try:
        before = parse(served)
    except UsageError:
        return True
    return before is None or before.for_host(host) != wish


def merge_outcome(old: str, host: str, text: str, hosts: Collection[str] = ()) -> str:
    """Return the AdminComment that follows `old` once `host` has written its outcome, of `text`.

    A request gives way to the outcome; it is kept behind it as long as some of `hosts`, the job's, have yet to answer.
    Other hosts' outcomes stay, as do other people's words: such as a wrong request in front of outcomes, from then on
    in parentheses, so that it is told once. Where there is no room, other hosts' outcomes become "done", and if that is
    not enough, `old` is returned as it is.
    """
    report = _before(old)
    parts = {**report.parts, host: _harmless(text)}
    kept = _still_asked(report.asked, parts, hosts)
    for shown in (parts, {name: said if name == host else "done" for name, said in parts.items()}):
        merged = _format_report(_Report(report.others_words, shown, kept))
        if len(_bytes(merged)) <= MAX_COMMENT_BYTES:
            return merged
    return old


@dataclass(frozen=True, slots=True)
class _Report:
    """An AdminComment with outcomes: others' words, then each host's, then what is still asked."""

    others_words: str
    parts: Mapping[str, str]
    asked: Request | None


def _before(old: str) -> _Report:
    """Return what is kept of an AdminComment into which an outcome is to be written."""
    words = old.strip(_BLANKS)
    report = _read_report(words)
    if report is not None:
        others = report.others_words
        return replace(report, others_words=f"({others})") if others.startswith(PREFIX) else report
    try:
        return _Report("" if words.startswith(PREFIX) else words, {}, parse(old))
    except UsageError:
        return _Report("", {}, None)


def _read_report(words: str) -> _Report | None:
    """Return the outcomes in a comment; None where there are none, or not as we write them."""
    before, marker, ours = words.rpartition(MARKER)
    said, asked_marker, body = ours.partition(_ASKED)
    parts = [_PART.fullmatch(part) for part in said.split(_SEPARATOR)]
    if not marker or not all(parts):
        return None
    found = {part[1]: part[2] for part in parts if part is not None}
    asked = None
    if asked_marker:
        try:
            asked = _request(PREFIX + body)
        except UsageError:  # no agent wrote this
            return None
        asked = Request(asked.others, asked.named, frozenset(found))
    return _Report(before.rstrip(_BLANKS), found, asked)


def _format_report(report: _Report) -> str:
    before = f"{report.others_words} " if report.others_words else ""
    said = _SEPARATOR.join(f"{host}: {text}" for host, text in report.parts.items())
    asked = _ASKED + format_request(report.asked).removeprefix(PREFIX) if report.asked is not None else ""
    return f"{before}{MARKER}{said}{asked}"


def _still_asked(asked: Request | None, answered: Collection[str], hosts: Collection[str]) -> Request | None:
    if asked is None:
        return None
    left = Request(asked.others, asked.named, frozenset(answered))
    return left if any(left.for_host(host) is not None for host in hosts) else None


def _harmless(text: str) -> str:
    """Return an outcome that cannot be taken for a host's part, a marker or a request."""
    line = printable(_bytes(text)).replace(";", ",").replace(MARKER.strip(), "(pageferry)")
    return _bytes(line)[:MAX_OUTCOME_BYTES].decode("utf-8", "ignore").strip() or "done"


def _request(words: str) -> Request:
    if len(_bytes(words)) > MAX_REQUEST_BYTES:
        raise UsageError(f"a request of more than {MAX_REQUEST_BYTES} bytes")
    others: Wish | None = None
    named: dict[str, Wish] = {}
    for part in words.lstrip(_BLANKS).removeprefix(PREFIX).split(";"):
        host, colon, wish = part.rpartition(":")
        if not colon:
            if others is not None:
                raise UsageError("two parts without a host")
            others = _wish(wish, "")
            continue
        if _HOST.fullmatch(host) is None:
            raise UsageError(f"{_shown(host)}: not a host name")
        if host in named:
            raise UsageError(f"{host}: named twice")
        named[host] = _wish(wish, f"{host}: ")
    return Request(others, tuple(named.items()))


def _wish(text: str, where: str) -> Wish:
    if not text:
        raise UsageError(f"{where}nothing is asked for: nodes= is needed")
    values: dict[str, str] = {}
    for key, value in _settings(text, where):
        if key in values:
            raise UsageError(f"{where}{key}: given twice")
        values[key] = value
    if "nodes" not in values:
        raise UsageError(f"{where}nodes= is missing")
    strategy = values.get("strategy")
    if strategy is not None and strategy not in set(Strategy):
        raise UsageError(f"{where}strategy={_shown(strategy)}: not one of {', '.join(Strategy)}")
    return Wish(
        nodes=_members("nodes", values["nodes"], where),
        cpus=frozenset(_members("cpus", values["cpus"], where)) if "cpus" in values else None,
        strategy=Strategy(strategy) if strategy is not None else None,
        now="now" in values,
    )


def _settings(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield keys with their values: a word that is neither a setting nor `now` continues the list before it."""
    key, value = "", ""
    for word in text.split(","):
        name, equals, rest = word.partition("=")
        if not equals and word != "now" and key in MAX_NUMBER:
            value += f",{word}"
            continue
        if key:
            yield key, value
        key, value = name, rest
        if name not in ({*MAX_NUMBER, "strategy"} if equals else {"now"}):
            raise UsageError(f"{where}{_shown(word)}: not one of nodes=, cpus=, strategy=, now")
    yield key, value


def _members(key: str, value: str, where: str) -> tuple[int, ...]:
    """Return a list's members in the order asked, each once."""
    members: dict[int, None] = {}
    for part in value.split(","):
        try:
            found = sorted(parse_list(part)) if part.strip(_BLANKS) == part else []
        except ValueError:
            found = []
        if not found:
            raise UsageError(f"{where}{key}={_shown(value)}: not a list of numbers")
        if found[-1] > MAX_NUMBER[key]:
            raise UsageError(f"{where}{key}={_shown(value)}: {found[-1]} is more than {MAX_NUMBER[key]}")
        members.update(dict.fromkeys(found))
    return tuple(members)


def _format_wish(wish: Wish) -> str:
    words = ["nodes=" + ",".join(map(str, wish.nodes))]
    if wish.cpus is not None:
        words.append(f"cpus={format_list(wish.cpus)}")
    if wish.strategy is not None:
        words.append(f"strategy={wish.strategy}")
    return ",".join([*words, "now"] if wish.now else words)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f}".removesuffix(".0")


def _shown(text: str) -> str:
    line = printable(_bytes(text))
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "..."


def _bytes(text: str) -> bytes:
    """Return a text as it came from the controller; what no bytes stand behind, spelt out."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
