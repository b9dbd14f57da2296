"""Parking in the agent: which job is to be parked now, what that breaks off, and until when it is known to be parked.

Where its memory goes then, and how it comes back, is `pageferry.parking`'s; the moves themselves are `migrations`'.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from pageferry import parking
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.placing import Placing
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Tended
from pageferry.applied import Destination
from pageferry.errors import UsageError
from pageferry.policy import Mode, Policy


class Parking:
    """What is parked of a host's jobs, and what is to be; told when Slurm suspends and resumes one."""

    def __init__(self, placing: Placing, chronicle: Chronicle, site: Site) -> None:
        self._placing = placing
        self._chronicle = chronicle
        self._site = site
        self._not_parked: set[str] = set()

    def nodes(self, tended: Tended) -> tuple[int, ...]:
        """Return where a job's memory is parked now, as its rule says; none unless it is suspended, and held."""
        policy = self._site.policy(tended.facts)
        if tended.phase is not Phase.HELD or policy.mode is not Mode.MOVE:
            return ()
        try:
            return self._placing.parking(tended.job, policy)
        except UsageError as error:
            if str(error) not in self._not_parked:  # it is so for each job, each time
                self._not_parked.add(str(error))
                self._chronicle.tell(tended, "not parked", str(error), logging.WARNING)
            return ()

    def policy(self, tended: Tended) -> Policy:
        """Return what holds for a job: what was parked comes back, whatever its rule says by now."""
        policy = self._site.policy(tended.facts)
        return replace(policy, mode=Mode.MOVE) if self._placing.parked(tended.job) else policy

    def destination(self, tended: Tended, migration: Migration, home: tuple[int, ...]) -> Destination | None:
        """Return where memory goes that is to be parked, or is, and take note of it; None: it is neither."""
        parked = self._placing.parked(tended.job)
        left = tuple(sorted({*self._placing.left(tended.job), *parked}))
        if parked:
            self._placing.leave(tended.job, left)  # what does not come now is to come home later
        if migration.cause is Cause.PARK:
            self._placing.park(tended.job, migration.nodes)
            return parking.away(migration.policy, home, migration.nodes)
        if not parked:
            return None
        strategy = migration.wish.strategy if migration.wish is not None else None
        migration.sources = parked
        return parking.back(migration.policy, parked, home, migration.nodes, strategy, left=left)

    def comes_back(self, tended: Tended, migration: Migration) -> bool:
        """Say whether a migration that began with a suspension brings back what was parked, since the job goes on."""
        goes_on = migration.cause is Cause.SUSPEND and tended.phase is not Phase.HELD
        return goes_on and bool(self._placing.parked(tended.job))

    def suspended(self, tended: Tended) -> None:
        """Slurm suspends a job: what comes back of it need not, if it is to be parked."""
        migration = tended.migration
        if migration is None or migration.cause is not Cause.UNPARK or migration.errand is None:
            return
        if self.nodes(tended):
            migration.errand.interrupt()

    def thawed(self, tended: Tended) -> None:
        """Slurm lets a job go on: what of it is being parked need not be any more, and comes back next."""
        migration = tended.migration
        if migration is not None and migration.cause is Cause.PARK and migration.errand is not None:
            migration.errand.interrupt()

    def finished(self, tended: Tended, migration: Migration) -> None:
        """A job's memory has come back as far as it could, unless that is to be tried once more.

        So it is if the job is suspended again, or if nothing has moved: what could not be brought where somebody wished
        comes to where the job's CPUs are, what the hold's time was not enough for comes while the job runs.
        """
        failed = migration.outcome is None and (migration.wish is not None or migration.late)
        if migration.cause is Cause.UNPARK and not failed and tended.phase is not Phase.HELD:
            self._placing.park(tended.job, ())  # else it would be tried for ever
            if migration.outcome is not None and migration.outcome["complete"]:
                self._placing.leave(tended.job, ())


def broken_off(tended: Tended, migration: Migration) -> bool:
    """Say whether a move is stopped, as its job goes on before it was parked, or is suspended before it was back."""
    held = tended.phase is Phase.HELD
    return (migration.cause is Cause.PARK and not held) or (migration.cause is Cause.UNPARK and held)
