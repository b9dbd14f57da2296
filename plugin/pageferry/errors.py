"""The one family of errors that pageferry raises, each with the exit code that the command line ends with.

An error's text is one line that an operator can act on; the cause is chained. Only the command line prints it.
"""

from __future__ import annotations

from typing import ClassVar

MOST_CHARACTERS = 4096
"""No error's text is longer, whatever names and lines of others it carries."""


class PageferryError(Exception):
    """Base of all that pageferry raises on purpose. As text, it is one line that can be printed and sent anywhere."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return shown(super().__str__(), MOST_CHARACTERS)


class UsageError(PageferryError):
    """What was asked for makes no sense here: no such job, node or process."""

    exit_code = 2


class ConfigError(PageferryError):
    """A configuration file is wrong; the text names file, line, key and value."""

    exit_code = 3


class KernelError(PageferryError):
    """The kernel, its configuration or our privileges do not allow what is needed."""

    exit_code = 4


class SchedulerError(PageferryError):
    """The batch scheduler could not be asked, or its answer could not be read."""

    exit_code = 4


class Stopped(PageferryError):  # noqa: N818 - an outcome, not an error
    """Somebody wanted it stopped before it had begun."""


class Vanished(PageferryError):  # noqa: N818 - an outcome, not an error
    """A process or cgroup ended while it was read: a normal outcome, never a failure of the whole."""


class Denied(KernelError):  # noqa: N818
    """The kernel refused a file or a process to us (EACCES, EPERM): a capability is missing."""


class Silent(KernelError):  # noqa: N818
    """A process does not answer: whoever reads its memory map would wait, perhaps for ever."""


def one_line(text: str) -> str:
    r"""Return text of others as one line of text that a terminal shows as it stands, and that any encoding can hold.

    Control characters, line ends, direction marks and lone surrogates become \xNN, \uNNNN or \UNNNNNNNN; a surrogate
    that stands for a byte (PEP 383) becomes that byte's \xNN.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def shown(text: str, most: int) -> str:
    """Return text of others as one line, as `one_line` does, of at most so many of its characters."""
    line = one_line(text[:most])
    return line if len(text) <= most and len(line) <= most else f"{line[: most - 3]}..."


def _escaped(char: str) -> str:
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]
