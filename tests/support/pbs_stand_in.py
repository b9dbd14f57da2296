"""A stand-in for the module `pbs` of MoM's embedded Python: as much of it as a hook needs, from what was recorded.

Run as a program it is pbs_python: `pbs_stand_in.py HOOK EVENT_FILE RESULT_FILE`. EVENT_FILE has what MoM would know
(see tests/fixtures/openpbs.json), RESULT_FILE gets what the hook did: whether it accepted, what it logged, which
resources it set. As in the real one, accept() and reject() end the hook, a job's attributes are objects that only str()
makes texts, and resources are looked up by name, where one that is not defined raises.
"""

import json
import os
import sys
import time
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn


class Text:
    """An attribute's value: no str, but shown as one."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return str(self._value)


class Resources:
    """A job's Resource_List or resources_used. `defined`: all that the server has."""

    def __init__(self, values: Mapping[str, Any], defined: Collection[str]) -> None:
        self._values, self._defined = values, {*values, *defined}
        self.set: dict[str, str] = {}

    def __getitem__(self, name: str) -> Text | None:
        if name not in self._defined:
            raise KeyError(name)
        value = self._values.get(name)
        return value if value is None else Text(value)

    def __setitem__(self, name: str, value: str) -> None:
        if name not in self._defined:
            raise AttributeError(f"{name}: unknown resource")
        self.set[name] = value


def job_of(given: Mapping[str, Any], defined: Collection[str]) -> Any:
    """Return a job as an event has it: id is a plain text, the rest as recorded; None for what MoM does not know."""
    plain = {"id", "session_id"}
    values = {name: value if value is None or name in plain else Text(value) for name, value in given.items()}
    values["Resource_List"] = Resources(given.get("Resource_List", {}), defined)
    values["resources_used"] = Resources(given.get("resources_used", {}), defined)
    return types.SimpleNamespace(**values)


class Event:
    """An event, with its job or (exechost_periodic) its jobs; `end` is told whether the hook accepted it."""

    def __init__(self, given: Mapping[str, Any], jobs: Mapping[str, Any], end: Callable[[bool], NoReturn]) -> None:
        self.type = given["type"]
        self.accept = lambda: end(True)
        self.reject = lambda _why="": end(False)
        if given["event"] == "exechost_periodic":
            self.job_list = jobs
        else:
            self.job = next(iter(jobs.values()))


def module(given: Mapping[str, Any], result_path: str) -> types.ModuleType:
    """Return the module, for one event."""
    jobs = {job["id"]: job_of(job, given.get("resources_defined", ())) for job in given["jobs"]}
    log: list[tuple[int, str]] = []

    def end(accepted: bool) -> NoReturn:
        found = {name: job.resources_used.set for name, job in jobs.items() if job.resources_used.set}
        with open(result_path, "w") as file:
            json.dump({"accepted": accepted, "log": log, "set": found}, file)
        raise SystemExit(0)

    def server() -> Any:
        time.sleep(given.get("server_seconds", 0))
        comments = {job["id"]: job.get("server_comment") for job in given["jobs"]}
        return types.SimpleNamespace(job=lambda name: types.SimpleNamespace(comment=comments[name]))

    def logmsg(level: int, text: str) -> None:
        if given.get("log_raises"):
            raise SystemError("PY_SSIZE_T_CLEAN macro must be defined for '#' formats")
        log.append((level, text))

    event = Event(given, jobs, end)
    members = {
        "event": lambda: event,
        "server": server,
        "get_local_nodename": lambda: given.get("local_nodename", "guest"),
        "logmsg": logmsg,
        "EVENT_ERROR": 1,
        "EVENT_DEBUG": 128,
        "hook_config_filename": given.get("config_file"),
        **{name.upper(): number for name, number in given["types"].items()},
    }
    pbs = types.ModuleType("pbs")
    vars(pbs).update(members)
    return pbs


def main(hook: str, event_path: str, result_path: str) -> None:
    """Run a hook as pbs_python does: optimized, and not as `__main__`."""
    with open(event_path) as file:
        sys.modules["pbs"] = module(json.load(file), result_path)
    with open(hook) as file:
        source = file.read()
    os.chdir("/")
    exec(compile(source, "<embedded code object>", "exec", optimize=2), {"__name__": "builtins", "__file__": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
