"""Takes names out of a plan's inputs: each is replaced by a number, the same one wherever it stands.

Numbers count names in the order in which they come, so that nothing of a name can be found again by trying. What a plan
is made of stays as it is (sizes, addresses, nodes, pids, which file is which), and so does each verdict: asked of
other names, the rules would not say the same. `docs/replay.md` says what this does not hide.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from pageferry.replay.write import Recorded
from pageferry_planner.model import Backing, Verdict
from pageferry_planner.policy import MOVE, STAY, Facts, Rules

_DELETED = " (deleted)"
_KERNELS_OWN = frozenset({"", "dev", "shm", "zero", "anon_hugepage"})
"""Parts of paths that the kernel itself gives: /dev/zero is shared anonymous memory."""

_OBJECT = re.compile(r"/(memfd:|SYSV)(.*)", re.DOTALL)
_LIBRARY = re.compile(r"\.so(\.[0-9]+)*\Z")

_KEPT_WORDS = frozenset({"", STAY, MOVE})
"""What the rules themselves know."""

_NAMELESS = frozenset({"job-only", "reference-count", "xattr"})
"""Rules that say of a verdict nothing that anybody named."""


class _Names:
    """Numbers names as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def word(self, name: str) -> str:
        if name in _KEPT_WORDS:
            return name
        return self._numbers.setdefault(name, f"n{len(self._numbers) + 1}")

    def path(self, path: str) -> str:
        """Replace a path part by part; that it was deleted, and that it is a library, stays to be seen."""
        body = path.removesuffix(_DELETED)
        deleted = path[len(body) :]
        if found := _OBJECT.fullmatch(body):
            return f"/{found[1]}{self.word(found[2])}{deleted}"
        return "/".join(part if part in _KERNELS_OWN else self._part(part) for part in body.split("/")) + deleted

    def _part(self, part: str) -> str:
        library = _LIBRARY.search(part)
        return self.word(part) + (library[0] if library else "")

    def backing(self, backing: Backing) -> Backing:
        space = backing.space if backing.space.startswith("sysv:") else self.path(backing.space)
        return replace(backing, space=space, path=self.path(backing.path))

    def verdict(self, verdict: Verdict) -> Verdict:
        return verdict if verdict.rule in _NAMELESS else replace(verdict, detail=self.word(verdict.detail))

    def rules(self, rules: Rules) -> Rules:
        globs: dict[str, Any] = {name: tuple(map(self.word, value)) for name, value in _of_type(rules, tuple).items()}
        return replace(rules, **globs)

    def facts(self, facts: Facts) -> Facts:
        texts: dict[str, Any] = {name: self.word(text) for name, text in _of_type(facts, str).items()}
        return replace(facts, **texts)


def _of_type(value: Rules | Facts, kind: type) -> dict[str, Any]:
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: content for name, content in found.items() if isinstance(content, kind)}


def anonymised(recorded: Recorded) -> Recorded:
    """Return what was recorded, without the names of jobs, processes and files, and without the site's globs."""
    names = _Names()
    inputs = recorded.inputs
    snapshot = inputs.snapshot
    return Recorded(
        of="a job",
        inputs=replace(
            inputs,
            snapshot=replace(
                snapshot,
                processes=tuple(replace(process, name=names.word(process.name)) for process in snapshot.processes),
                backings=tuple(map(names.backing, snapshot.backings)),
                verdicts=tuple(map(names.verdict, snapshot.verdicts)),
            ),
            facts=tuple(map(names.facts, inputs.facts)),
            request=replace(inputs.request, rules=names.rules(inputs.request.rules)),
        ),
        anonymised=True,
    )
