"""The requests in jobs' comments: which are new, what they ask of this host, and the outcome in their place.

The texts are `comment`'s. What follows from a request is `migrations`', which asks Slurm when a job is suspended or
goes on; here Slurm is asked for what is to be served at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pageferry.agent import chores
from pageferry.agent.chronicle import Chronicle, for_operator
from pageferry.agent.errand import Result
from pageferry.agent.errands import ASK_SECONDS, Errands
from pageferry.agent.placing import Placing
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Stage, Tended
from pageferry.comment import PREFIX, format_request, parse
from pageferry.errors import UsageError


class Requests:
    """`jobs` are those of the host, by ID; `begin` is called with one and the migration that it is to have at once."""

    def __init__(
        self,
        jobs: Mapping[int, Tended],
        errands: Errands,
        *,
        placing: Placing,
        chronicle: Chronicle,
        site: Site,
        begin: Callable[[Tended, Migration], None],
    ) -> None:
        self._jobs = jobs
        self._errands = errands
        self._placing = placing
        self._chronicle = chronicle
        self._site = site
        self._begin = begin
        self._pokes: set[int] = set()
        self._poking = False

    def poke(self, jobs: Iterable[int]) -> None:
        """See whether any of these jobs has a request that is to be served at once; one question at a time."""
        self._pokes |= set(jobs)
        if self._poking or not self._pokes:
            return
        asked, self._pokes, self._poking = sorted(self._pokes), set(), True
        self._errands.send(chores.ask(asked), partial(self._poked, time.monotonic()), seconds=ASK_SECONDS)

    def _poked(self, at: float, result: Result) -> None:
        self._poking = False
        for job, answer in (result.value or {}).get("jobs", {}).items():
            if (tended := self._jobs.get(int(job))) is not None:
                tended.know(answer)
                migration = Migration(Cause.REQUEST, Stage.READY)
                self.understand(tended, migration, at, answer)
                if migration.wish is not None and migration.wish.now:
                    # What was asked for before, and has not begun, is no longer asked for.
                    tended.queue = [one for one in tended.queue if one.cause is not Cause.REQUEST or one.reply]
                    self._serving(tended, migration)
                    self._begin(tended, migration)
        self.poke(())

    def understand(self, tended: Tended, migration: Migration, at: float, answer: Mapping[str, Any] | None) -> None:
        """Take the request out of a job's comment, as it was asked for `at` that time, unless it was served before.

        While our outcome is on its way, other hosts' may come into the comment: the request in it is still the same.
        """
        if answer is None:
            return
        if not tended.served:  # by an agent before us
            tended.served, tended.answered_at = self._placing.served(tended.job), math.inf
        text, wish, wrong = "", None, None
        try:
            request = parse(answer["comment"])
        except UsageError as error:
            text, wrong = answer["comment"], str(error)
        else:
            wish = request.for_any(tended.hosts) if request is not None else None
            text = format_request(request) if request is not None and wish is not None else ""
        if text != tended.served or at > tended.answered_at:
            migration.text, migration.wish, migration.error = text, wish, wrong
        policy = self._site.policy(tended.facts)
        if not migration.text and policy.owners_may_ask and policy.owners_field == "Comment":
            self._understand_owner(tended, migration, answer["owners_comment"])

    def _understand_owner(self, tended: Tended, migration: Migration, comment: str) -> None:
        """Take the owner's request out of the comment that users may write; it stays there, and is served once."""
        text = comment.strip()
        if not text.startswith(PREFIX) or text == self._placing.served_owner(tended.job):
            return
        migration.text, migration.memory_only, migration.by_owner = text, True, True
        try:
            request = parse(comment)
            wish = request.for_any(tended.hosts) if request is not None else None
            if wish is None:  # it is for other hosts
                migration.text, migration.memory_only, migration.by_owner = "", False, False
            elif wish.cpus is not None or wish.now:
                raise UsageError("cpus=, now: an owner asks for memory alone, with a suspension")
            migration.wish = wish
        except UsageError as error:
            migration.error = str(error)

    def served(self, tended: Tended, migration: Migration) -> None:
        """Take note that a migration's request, if it is from a comment, is served, and write its outcome there."""
        if not migration.text:
            return
        self._serving(tended, migration)
        if self._site.settings.agent.write_outcome == "AdminComment" and tended.job in self._jobs:
            served = "" if migration.by_owner else migration.text
            chore = chores.write_back(tended.job, tended.hosts, for_operator(migration), served)
            ended = partial(self._written, tended, migration)
            self._errands.send(chore, ended, job=tended.job, seconds=ASK_SECONDS)

    def _written(self, tended: Tended, migration: Migration, result: Result) -> None:
        if result.value is None or not result.value["written"]:
            why = result.error or "other hosts' outcomes were written over it"
            self._chronicle.tell(tended, "not written back", why, logging.WARNING)
        elif tended.served == migration.text:
            tended.answered_at = time.monotonic()

    def _serving(self, tended: Tended, migration: Migration) -> None:
        """Take note that a request is served, or about to be: it is not read once more."""
        if migration.by_owner:
            self._placing.keep_served_owner(tended.job, migration.text)
            return
        tended.served, tended.answered_at = migration.text, math.inf
        self._placing.keep_served(tended.job, migration.text)
