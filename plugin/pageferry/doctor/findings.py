"""What the doctor says of one thing that it looked at. How to look is left to the doctor's modules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Grade(Enum):
    """How bad a finding is. FAIL: pageferry cannot do its work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; the text of one that is not OK says what to change."""

    grade: Grade
    subject: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding for a program."""
        return {"grade": self.grade.value.lower(), "subject": self.subject, "text": self.text}


def ok(subject: str, text: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(Grade.OK, subject, text)


def warn(subject: str, text: str) -> Finding:
    """Return a finding of something to change, without which some of the work is done."""
    return Finding(Grade.WARN, subject, text)


def fail(subject: str, text: str) -> Finding:
    """Return a finding that keeps pageferry from its work."""
    return Finding(Grade.FAIL, subject, text)
