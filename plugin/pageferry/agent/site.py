"""The settings that hold now, for all parts of the agent: read at the start, and again when somebody asks for it.

New settings take the place of the old ones as a whole, or not at all. What they mean is left to those who look here.
"""

from __future__ import annotations

import pwd
from contextlib import suppress
from pathlib import Path

from pageferry import config
from pageferry.config import Settings
from pageferry.errors import ConfigError, PageferryError
from pageferry.policy import Facts, Policy
from pageferry.schedulers.slurm_config import read_settings

SLURM_CONF = Path("/etc/slurm/slurm.conf")


class Site:
    """`settings` and `slurm_user` (the ID of SlurmUser, None: nobody's) are those that hold; look each time.

    `path`: where `reload` reads from. Raises ConfigError for settings that name a user whom there is not.
    """

    def __init__(self, settings: Settings, path: Path = config.PATH) -> None:
        self.settings = settings
        self.slurm_user = slurm_user(settings)
        self.path = path

    @property
    def trusted(self) -> frozenset[int]:
        """The users who may do everything."""
        return frozenset({0} if self.slurm_user is None else {0, self.slurm_user})

    def policy(self, facts: Facts | None) -> Policy:
        """Return what holds for a job of Slurm's; None: nothing is known of it."""
        return self.settings.policy(facts or Facts("slurm"))

    def knows(self, facts: Facts | None) -> bool:
        """Say whether a job's policy is certain: either it is known, or no rule asks anything of a job."""
        return facts is not None or not self.settings.asks_of_jobs

    def reload(self) -> tuple[str, ...]:
        """Read the settings again; return what is wrong, a line each: then the old ones still hold."""
        reading = config.read(self.path, here=True)
        if reading.faults:
            return reading.faults
        try:
            user = slurm_user(reading.settings)
        except ConfigError as error:  # who is asked for names is away, just now
            return (str(error),)
        self.settings, self.slurm_user = reading.settings, user
        return ()


def slurm_user(settings: Settings) -> int | None:
    """Return the user ID of SlurmUser: the one of the settings, else of slurm.conf, else none. Raises ConfigError."""
    name = settings.agent.slurm_user
    if name is not None:
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError as error:
            raise ConfigError(f"agent.slurm_user: no such user: {name!a}") from error
    with suppress(PageferryError, KeyError):
        names = [setting.value for setting in read_settings(SLURM_CONF) if setting.key.lower() == "slurmuser"]
        return pwd.getpwnam(names[-1].partition("(")[0]).pw_uid if names else None
    return None
