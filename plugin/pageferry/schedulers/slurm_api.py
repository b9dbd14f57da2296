"""Slurm's controller through pyslurm, where that is installed and was built for the release that runs here.

Each request is a short-lived process of its own, which `slurm_api_child` says why; so it needs no more trust in
libslurm than in Slurm's commands, and has their time limits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from pageferry.comment import FIELD_BYTES
from pageferry.errors import SchedulerError, UsageError
from pageferry.kernel.files import printable
from pageferry.schedulers import slurm_api_child
from pageferry.schedulers.control import (
    READ_SECONDS,
    WRITE_SECONDS,
    Control,
    JobRecord,
    checked_job_id,
    features_of,
    is_not_suspended,
    refused,
    silent,
)
from pageferry.schedulers.slurm_commands import SlurmCommands

_SHOWN_BYTES = 300
_Number = Annotated[int, Meta(ge=0, lt=1 << 32)]


class _Pong(msgspec.Struct):
    """What the child says of pyslurm."""

    version: str
    responding: bool


class _Loaded(msgspec.Struct):
    """What the child says of a job."""

    id: _Number
    array_id: _Number | None
    array_task_id: _Number | None
    state: str
    user_id: _Number
    hosts: list[str]
    admin_comment: str
    partition: str
    name: str
    qos: str
    account: str
    user_name: str
    features: list[str]
    num_nodes: _Number | None
    num_cpus: _Number | None


Answer = TypeVar("Answer", _Pong, _Loaded)


@dataclass(frozen=True, slots=True)
class SlurmApi:
    """pyslurm, as the interpreter `python` finds it; implements `control.Control`."""

    python: tuple[str, ...] = (sys.executable, "-I")
    read_seconds: float = READ_SECONDS
    write_seconds: float = WRITE_SECONDS

    def describe(self) -> str:
        """Return which way this is, for people; raises SchedulerError where it is none."""
        said = _answer("pyslurm", self._ask("pyslurm", self.read_seconds, verb="ping"), _Pong)
        version = _text(said.version)
        if not said.responding:
            raise SchedulerError(f"pyslurm {version}: slurmctld does not answer it")
        return f"pyslurm {version}"

    def job(self, job_id: int | str) -> JobRecord:
        """Return what the controller knows of a job."""
        wanted = checked_job_id(job_id)
        said = _answer(f"job {wanted}", self._ask(f"job {wanted}", self.read_seconds, verb="load", job=wanted), _Loaded)
        task = said.array_task_id
        return JobRecord(
            id=said.id,
            address=str(said.id) if task is None else f"{said.array_id}_{task}",
            state=_text(said.state),
            user_id=said.user_id,
            hosts=tuple(map(_text, said.hosts)),
            admin_comment=said.admin_comment[:FIELD_BYTES].rstrip(" "),
            partition=_text(said.partition),
            name=_text(said.name),
            qos=_text(said.qos),
            account=_text(said.account),
            user_name=_text(said.user_name),
            features=features_of(_text(",".join(said.features))),
            num_nodes=said.num_nodes,
            num_cpus=said.num_cpus,
        )

    def suspend(self, job_id: int | str) -> None:
        """Have a job suspended; it returns before the job is frozen. One that is suspended already is success."""
        self._write("suspend", job_id)

    def resume(self, job_id: int | str) -> None:
        """Have a job resumed. One that is not suspended is success."""
        self._write("resume", job_id)

    def set_admin_comment(self, job_id: int | str, text: str) -> None:
        """Write a job's AdminComment, over the one that is there."""
        if "\0" in text:
            raise UsageError("a comment cannot hold a null byte")
        self._write("comment", job_id, text=text)

    def _write(self, verb: str, job_id: int | str, **more: str) -> None:
        wanted = checked_job_id(job_id)
        self._ask(f"job {wanted}: {verb}", self.write_seconds, verb=verb, job=wanted, **more)

    def _ask(self, what: str, seconds: float, **request: str) -> object:
        try:
            child = subprocess.run(
                [*self.python, slurm_api_child.__file__],
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise silent(what, seconds, writing=request["verb"] not in {"ping", "load"}) from error
        # libslurm's own messages, such as what a job_submit plugin tells the user, come by stderr alone.
        lines = [printable(line) for line in child.stderr.splitlines() if line.strip()]
        extra = "; ".join(lines)[:_SHOWN_BYTES]
        try:
            said = json.loads(child.stdout)
        except (ValueError, RecursionError) as error:
            raise SchedulerError(f"{what}: pyslurm ended: {extra or f'exit code {child.returncode}'}") from error
        if not isinstance(said, dict):
            raise SchedulerError(f"{what}: pyslurm's answer cannot be read")
        if "ok" in said:
            return said["ok"]
        text = _text(said.get("text"))
        if said.get("error") == "ImportError":
            raise SchedulerError(f"pyslurm cannot be used: {text}")
        if request["verb"] == "resume" and is_not_suspended(text):
            return None
        raise refused(what, f"{text} ({extra})" if extra else text)


def choose(folder: Path | None = None) -> Control:
    """Return pyslurm, if it is installed and this Slurm answers it, else Slurm's commands, those in `folder`."""
    api = SlurmApi()
    try:
        api.describe()
    except SchedulerError:
        return SlurmCommands(folder)
    return api


def _answer(what: str, said: object, kind: type[Answer]) -> Answer:
    try:
        return msgspec.convert(said, kind)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise SchedulerError(f"{what}: pyslurm's answer cannot be read: {_text(error)[:_SHOWN_BYTES]}") from error


def _text(value: object) -> str:
    return printable(str(value).encode("utf-8", "backslashreplace"))
