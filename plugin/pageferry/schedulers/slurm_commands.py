"""Slurm's controller through squeue and scontrol, from Slurm 22.05 on.

squeue's --Format pads each field to its width in bytes (src/squeue/print.c, _print_str), so that records can be cut by
place: a job's name, which its user chooses, and line ends in a comment forge nothing. `scontrol show job` has no such
form, and `squeue --json` lists every job of the cluster on 22.05.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pageferry.comment import FIELD_BYTES
from pageferry.errors import SchedulerError, UsageError
from pageferry.kernel.files import printable
from pageferry.schedulers.control import (
    READ_SECONDS,
    WRITE_SECONDS,
    JobRecord,
    checked_job_id,
    features_of,
    is_not_suspended,
    refused,
    silent,
)

_ID_FIELDS = {"JobID": 16, "JobArrayID": 64}
_FIELDS = {
    **_ID_FIELDS,
    "State": 24,
    "UserID": 16,
    "UserName": 256,
    "Partition": 256,
    "QOS": 256,
    "Account": 256,
    "Feature": 1024,
    "NumNodes": 16,
    "NumCPUs": 16,
    "NodeList": 8192,
    "admin_comment": FIELD_BYTES,
    "Comment": FIELD_BYTES,
    "Name": 256,
}
_NOTHING = b"(null)"
_TASK = re.compile(r"[0-9]+_[0-9]+")
_SHOWN_BYTES = 300


@dataclass(frozen=True, slots=True)
class SlurmCommands:
    """Slurm's commands, those in PATH or in `folder`; implements `control.Control`."""

    folder: Path | None = None

    def describe(self) -> str:
        """Return which way this is, for people."""
        place = f" in {self.folder}" if self.folder is not None else ""
        return f"Slurm's commands{place}"

    def job(self, job_id: int | str) -> JobRecord:
        """Return what the controller knows of a job."""
        wanted = checked_job_id(job_id)
        # An array's ID stands for all of its tasks, of which there may be thousands: first only which.
        address = self._address(wanted)
        for record in self._records(address, _FIELDS):
            if wanted in {_text(record["JobID"]), _text(record["JobArrayID"])}:
                return self._job(record, address)
        raise UsageError(f"job {wanted}: no such job")

    def suspend(self, job_id: int | str) -> None:
        """Have a job suspended; it returns before the job is frozen. One that is suspended already is success."""
        self._write("scontrol", "suspend", self._address(checked_job_id(job_id)))

    def resume(self, job_id: int | str) -> None:
        """Have a job resumed. One that is not suspended is success."""
        self._write("scontrol", "resume", self._address(checked_job_id(job_id)))

    def set_admin_comment(self, job_id: int | str, text: str) -> None:
        """Write a job's AdminComment, over the one that is there."""
        if "\0" in text:
            raise UsageError("a comment cannot hold a null byte")
        address = self._address(checked_job_id(job_id))
        self._write("scontrol", "update", f"JobId={address}", f"AdminComment={text}")

    def _address(self, wanted: str) -> str:
        for record in self._records(wanted, _ID_FIELDS):
            raw, task = _text(record["JobID"]), _text(record["JobArrayID"])
            if wanted in {raw, task}:
                # A pending part of an array, "7_[3-9]", has no name of its own but the array's.
                return task if _TASK.fullmatch(task) else str(_needed(record, "JobID", wanted))
        raise UsageError(f"job {wanted}: no such job")

    def _job(self, record: Mapping[str, bytes], address: str) -> JobRecord:
        return JobRecord(
            id=_needed(record, "JobID", address),
            address=address,
            state=_text(record["State"]),
            user_id=_needed(record, "UserID", address),
            hosts=self._hosts(record["NodeList"], address),
            admin_comment=_value(record["admin_comment"]).decode("utf-8", "surrogateescape"),
            partition=_text(record["Partition"]),
            name=_text(record["Name"]),
            comment=_value(record["Comment"]).decode("utf-8", "surrogateescape"),
            qos=_text(record["QOS"]),
            account=_text(record["Account"]),
            user_name=_text(record["UserName"]),
            features=_features(record["Feature"]),
            num_nodes=_number(record["NumNodes"]),
            num_cpus=_number(record["NumCPUs"]),
        )

    def _hosts(self, field: bytes, address: str) -> tuple[str, ...]:
        if _is_full(field):
            raise SchedulerError(f"job {address}: its list of nodes is longer than {_FIELDS['NodeList']} bytes")
        nodes = _text(field)
        if not nodes or nodes.startswith("-"):
            return ()
        said = self._run(READ_SECONDS, "scontrol", "show", "hostnames", nodes)
        if said.returncode != 0:
            raise SchedulerError(f"job {address}: scontrol show hostnames: {_complaint(said)}")
        return tuple(printable(name) for name in said.stdout.split())

    def _records(self, job_id: str, fields: Mapping[str, int]) -> Iterator[dict[str, bytes]]:
        wanted = ",".join(f"{name}:{width}" for name, width in fields.items())
        # Without --noconvert 2048 CPUs would be "2K".
        words = ("squeue", "--all", "--noheader", "--noconvert", "--states=all", f"--jobs={job_id}")
        said = self._run(READ_SECONDS, *words, f"--Format={wanted}")
        if said.returncode != 0:
            raise refused(f"job {job_id}", _complaint(said))
        width = sum(fields.values()) + 1
        if len(said.stdout) % width:  # a field that this Slurm does not know is left out, with a warning
            raise SchedulerError(f"job {job_id}: squeue's answer cannot be read: {_complaint(said)}")
        for start in range(0, len(said.stdout), width):
            record, place = {}, start
            for name, length in fields.items():
                record[name] = said.stdout[place : place + length]
                place += length
            yield record

    def _write(self, *words: str) -> None:
        said = self._run(WRITE_SECONDS, *words)
        complaint = _complaint(said)
        if said.returncode == 0 or (words[1] == "resume" and is_not_suspended(complaint)):
            return
        job = words[2].removeprefix("JobId=")
        raise refused(f"job {job}: scontrol {words[1]}", complaint.removesuffix(f" for job {job}"))

    def _run(self, seconds: float, *words: str) -> subprocess.CompletedProcess[bytes]:
        program = words[0] if self.folder is None else str(self.folder / words[0])
        try:
            return subprocess.run(
                [program, *(os.fsencode(word) for word in words[1:])],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
                env=_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise silent(" ".join(words[:2]), seconds, writing=seconds == WRITE_SECONDS) from error
        except OSError as error:
            raise SchedulerError(f"{program} cannot be run: {error.strerror}") from error
        except UnicodeEncodeError as error:
            raise UsageError("a comment must be text that can be encoded") from error


def _environment() -> dict[str, str]:
    """Return our environment without the words that change what the commands ask for or print."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCONTROL_"))}


def _value(field: bytes) -> bytes:
    value = field.rstrip(b" ")
    return b"" if value == _NOTHING else value


def _text(field: bytes) -> str:
    return printable(_value(field))


def _is_full(field: bytes) -> bool:
    """Say whether a field has a byte at its end: it may have been cut there."""
    return not field.endswith(b" ")


def _features(field: bytes) -> tuple[str, ...]:
    features = features_of(_text(field))
    return features[:-1] if _is_full(field) else features


def _needed(record: Mapping[str, bytes], name: str, job: str) -> int:
    """Return a number of a job's record without which the record makes no sense."""
    number = _number(record[name])
    if number is None:
        raise SchedulerError(f"job {job}: squeue's answer cannot be read: {name} is {_text(record[name])!a}")
    return number


def _number(field: bytes) -> int | None:
    """Return a number of Slurm's, of 32 bits; None where there is none."""
    text = _text(field)
    return int(text) if text.isascii() and text.isdigit() and int(text) < 1 << 32 else None


def _complaint(said: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a command wrote to stderr as one line; a job_submit plugin's words come before Slurm's own."""
    return "; ".join(printable(line) for line in said.stderr[:_SHOWN_BYTES].splitlines() if line.strip())
