"""The reference of the settings, docs/policy.md: made from the structs that read them, so that it says what they do.

`pageferry render reference > docs/policy.md` writes it; a test fails when the file is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from pageferry import config
from pageferry.policy import Globs, Match, Name, Nodes, Rate, Rule, RuleSpill, Special, Weights
from pageferry.toml_file import Bytes, bare

_HEAD = """\
# Policy: what may move, when, and at what cost

Made by `pageferry render reference` from the code that reads the settings; do not edit it.

`/etc/pageferry/pageferry.toml` is read first, then each `/etc/pageferry/policy.d/*.toml` in the order of their names.
All may have the same keys. A key of a later file takes the place of an earlier one's. A rule with the name of an
earlier file's rule takes its place, where that one stands; any other rule comes after those before it. No file has to
be there.

    pageferry check-config            # each fault with file, line, key and value; exit code 3 if there is one
    pageferry check-config FILE...    # the same for these files, in this order
    systemctl reload pageferry        # checks them, then has the agent read them again
    pageferry explain JOB             # which rule holds for a job, why not the earlier ones, what may move

With one fault, nothing of the files is taken: an agent that runs keeps what it has read before and names every fault
in its log; one that starts does not. Under OpenPBS without an agent each event reads the files. Sizes are bytes, or
`"512M"` (K, M, G, T: powers of 1024). Commented examples are in `contrib/policy.d/`. Where PAGEFERRY_CONFIG or
`--config` names another file, it is read instead, with the `policy.d` beside *it*: not /etc/pageferry/policy.d.

## Rules

```toml
[[rule]]
name = "big jobs"
max_hold_seconds = 600
[rule.match]
partition = ["long", "big*"]
min_nodes = 8
```

The first rule that matches a job decides alone; what it does not say is the host's (`[agent]`, `[spill]`), or else
the default. A rule without `[rule.match]` is for all jobs: put it last. Its name stands in the log, in `pageferry
history --json` (`rule`) and in `pageferry explain`.
- slurmctld is asked about a job at each of its suspensions, and what it said last holds until then. **As long as
  nobody can say what a job is, no rule matches that asks for it**: a rule without `[rule.match]`, or the host's
  settings, decide, and the log says so. A site that wants nothing moved then ends its rules with one of `mode =
  "off"`.
- A job is held while slurmctld is asked. If its rule says `off` or `observe`, it is let go as soon as that is known,
  and at the next suspensions it is not held to begin with.
- `off` and `observe` are about the job's memory: a request for another job may still give it other CPUs, unless
  `[cpus] enabled = false`.
- `owners_may_ask`: `scontrol update JobId=N Comment=pageferry:nodes=2` (or `sbatch --comment`) is read with the next
  suspension, after the operator's AdminComment; `cpus=` and `now` are refused. The text stays there, is served once,
  and again when it has become another. `pageferry request JOB --to NODES`, on the host, is served at once, while the
  job runs. Either way the job keeps its CPUs. `owners_field = "none"`: a site that has other uses for `Comment`, the
  one field that every Slurm lets a job's user write, is asked by `pageferry request` alone. Under PBS it is the
  resource of a request that came with the submission that is looked at, or not.
- `strategy = "weighted"`, in a rule or in a request: the memory is dealt out over the target's nodes in 2 MiB pieces,
  by weights of 1 to 255. With `weights = "0:3,2:1"`, node 0 gets three pieces of four, node 2 the fourth;
  `"0-3:1,4-7:3"` names nodes by ranges. Where the kernel has weights, those hold instead
  (`/sys/kernel/mm/mempolicy/weighted_interleave`, since Linux 6.9; since 6.16 it makes them of the nodes' bandwidths,
  if the firmware tells these), unless all are 1, as they are until somebody sets one. A node without a weight has
  weight 1, and weights of other nodes than the target's do not matter.
  If all weights are equal, `weighted` does what `interleave` does.
- `park`: for jobs that are suspended so that others run (preemption), on hosts with a slow tier, such as a node without
  CPUs. When the job is suspended, and stands still, its memory goes to these nodes; room is what a move leaves there
  (`reserve`), and what does not fit stays. When it is resumed, it is held, and its memory comes back to the nodes of
  its CPUs, or to those that a request in its comment names by then, before it goes on: for `max_hold_seconds` at most,
  then `when_hold_ends` says what becomes of the rest. All of it moves twice for each suspension, and all of that hold
  is the job's run time to Slurm: raise `max_hold_seconds`, and do not park jobs that take turns (gang scheduling).
  Each page comes back to its node if the job has as many nodes as it was parked on; else to where the processes run
  that use it, or as `strategy` says. A job without a cpuset is not parked, and none on nodes of its own. Where none of
  the nodes has memory, the rule does as without it; the log, `pageferry doctor` and `pageferry explain` say so. With
  `huge_pages = "keep"`, huge pages that find none free at home stay parked, until they come home as spilled memory.
- `huge_pages = "keep"`: no transparent huge page of the job is split by a move. As many as the target node has free
  ones for move, whole and before all else; those that have none stay, or, with `when_full = "spill"`, go whole to the
  next nearest node that has (`no_huge_page` in outcomes and metrics). Everything else moves as ever. If there are too
  few, the node is compacted first (`/sys/devices/system/node/nodeN/compact`): the kernel then moves pages of all
  processes on it, within the node, for up to seconds on a large one, which count as the move's; a plan does not do
  that, nor what comes home, and may say less. What is left to chance: who takes a free huge page between the last
  count and the call (milliseconds) may have the kernel split one; the outcome says if it split any meanwhile, on this
  host (`huge_pages_split`). A huge page that the job maps only in part stays; so may folios smaller than huge pages
  be split. hugetlb pages are never split, whatever is said here. It takes CAP_SYS_ADMIN to see which pages are huge.
- `hugetlb_surplus`: a hugetlb page goes where the pool of its size has a free one on the target node. If it has none,
  the page stays (`no_huge_page`), or, with `when_full = "spill"`, goes to the next nearest node whose pool has; with
  `"refuse"` nothing moves. So each pool has as many pages when the job has ended as when it began. With `true` the
  kernel makes a page of the target node's memory where the pool has none free, and gives the page that is left back to
  the memory of the old node: the pools of both nodes stay so, also when the job has ended (`nr_hugepages` of each node;
  the outcome gives the pools before and after). The kernel makes no gigantic page (1 GiB), whatever is said here.
- `narrow_mems`: for jobs that are to stay where they were moved, also with what they allocate later, and with what a
  program binds elsewhere. When a move has ended, `cpuset.mems` of the job's steps has the nodes that it was moved to,
  those of its CPUs, and those where it still has memory. Before a move elsewhere Slurm's own is written back, and so it
  is after a move that failed or that the rule no longer narrows. The agent's log says `narrowed` or `not narrowed`, and
  why; the move itself does not fail for it. What it costs, and what it cannot do:
  - **It is a limit.** Where none of the nodes has room beyond `reserve`, the job is not narrowed; one that needs more
    than they have later is short of memory though other nodes have some: the kernel swaps, and then kills a process
    that may use these nodes, perhaps of another job. Raise `reserve`, and give such jobs a memory limit. Huge pages
    that a program has reserved must be free there, or it gets SIGBUS.
  - On cgroup version 2 the kernel moves by itself whatever lies outside, so there the nodes of what rules keep are left
    in, such as those of libraries that others map, too: often that is all there are, and the log says so. On version 1
    (`cpuset.memory_migrate` 0) nothing is moved, and these nodes are left out.
  - On version 2 the kernel looks through all of the job's memory once for each thread and node that is left out, while
    the job is held: seconds for gigabytes in small pages with dozens of threads. On both, memory policies of a
    program (`numactl`, mbind) are translated to the narrower set, and not back when it is widened, unless it asked for
    MPOL_F_STATIC_NODES. A policy whose nodes are left in stays as it is: `pageferry explain JOB` names the policies.
  - Steps that begin later have Slurm's `cpuset.mems`, until the next move. Memory that comes home is moved within the
    nodes that there are. `pageferry move` by hand widens if its target is outside, and narrows nothing; `pageferry
    plan` does neither, and says that the target is outside.
  - PBS reads in the `cpuset.mems` of jobs what it gave them, so PBS's jobs are not narrowed.
- `hot_seconds`: it takes a kernel with idle page tracking (CONFIG_IDLE_PAGE_TRACKING). On one without it, such as
  Debian's, the referenced bits of each process tell it, which takes CAP_DAC_OVERRIDE for the agent (`security.md`);
  without that, what many processes share goes first, and nothing is looked at.
- `rate`: a move, and all that comes home after one job's end, may take an hour; then it is stopped, what has moved
  stays where it is, and the history says that it took too long. With `"16M"` that is some 56 GiB.
- Whoever moves memory by hand (`pageferry move` as root, but for `--cpus` through the agent) is not asked for a rule.
"""

_MATCH = """
### `[rule.match]`: which jobs

All that is given must hold. Names are globs (`*`, `?`, `[...]`), or lists of globs of which one must match, all of
the name, capital and small letters apart.
"""

_SETS = """
### `[[rule]]`: what holds for them
"""

_SPILL = """
### `[rule.spill]`: memory that lies far from the job's CPUs

`rate` of the rule, or else of `[spill]`, is how fast it comes home.
"""

_HOST = """
## The host's own settings

They hold for each job whose rule does not say otherwise.
"""


def reference() -> str:
    """Return docs/policy.md."""
    parts = [_HEAD, _MATCH, *_table(Match), _SETS, *_table(Rule, without=("match", "spill")), _SPILL]
    parts += _table(RuleSpill)
    parts.append(_HOST)
    for name, kind in get_type_hints(config.Settings).items():
        if name != "rule":
            parts += [f"\n### `[{name}]`\n", *_table(kind)]
    return "".join(parts)


def _table(kind: type[msgspec.Struct], without: tuple[str, ...] = ()) -> Iterator[str]:
    yield "\n| key | value | default | meaning |\n|---|---|---|---|\n"
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.name in without:
            continue
        hint = hints[field.name]
        meaning = " ".join(words for words in _metas(hint, "description") if words)
        yield f"| `{field.name}` | {_value(hint)} | {_default(field, kind)} | {meaning} |\n"


def _value(hint: Any) -> str:
    """Return in words what a key takes."""
    kind = bare(hint)
    if get_origin(kind) is Literal:
        return ", ".join(f'`"{word}"`' for word in get_args(kind))
    words = {bool: "`true`, `false`", Globs: "globs", Name: "a short text", Bytes: "a size", str: "a text"}
    words |= {Nodes: 'a list of nodes, such as `"4-5"`', Weights: 'weights of nodes, such as `"0:3,2:1"`'}
    words |= {Special: 'a list of nodes, such as `"2-3"`, or `"cpuless"`'}
    words |= {config.Folder: "the path of a directory", config.Address: "an IP address and a port"}
    if kind in words:
        return words[kind]
    if kind is Rate:
        return 'a size, at least `"1M"`'
    least = next(_metas(hint, "ge"), None)
    above, most, below = (next(_metas(hint, name), None) for name in ("gt", "le", "lt"))
    low = f"at least {least}" if least is not None else f"more than {above}"
    return f"{low}, at most {most}" if most is not None and below is None else low


def _default(field: msgspec.structs.FieldInfo, kind: type[msgspec.Struct]) -> str:
    if field.default is msgspec.NODEFAULT:
        return "needed"
    if field.default is None:
        return "any" if kind is Match else _HOSTS.get(field.name, "the host's") if kind in (Rule, RuleSpill) else ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, Bytes):
        return f'`"{field.default >> 20}M"`'
    return f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default:g}`"


_HOSTS = {
    "mode": '`"move"`',
    "strategy": '`"relative"`',
    "weights": "1 each",
    "when_hold_ends": '`"go on"`',
    "rate": "no limit",
    "reserve": "1/64 of it, at least 16 MiB",
    "huge_pages": '`"split"`',
    "hugetlb_surplus": "`false`",
    "hot_seconds": "it is not looked at",
    "libraries": "none",
    "xattr": "`true`",
    "reference_count": "`true`",
    "leave_filesystems": "none",
    "park": "none",
    "narrow_mems": "`false`",
    "owners_may_ask": "`false`",
    "owners_field": '`"Comment"`',
}
"""What holds where neither the rule nor the host has a key; a test compares it with `Policy`."""


def _metas(hint: Any, name: str) -> Iterator[Any]:
    """Yield what a field's limits and descriptions (msgspec.Meta) say, at any depth of its type."""
    for meta in getattr(hint, "__metadata__", ()):
        if getattr(meta, name, None) is not None:
            yield getattr(meta, name)
    for part in get_args(hint) if not isinstance(hint, str) else ():
        yield from _metas(part, name)
