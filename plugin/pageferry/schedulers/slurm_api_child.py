"""The process that calls pyslurm for `slurm_api`: one request as JSON from stdin, one answer as JSON to stdout.

A process of its own, since libslurm ends the process in which it finds no configuration, waits for minutes in C for a
controller that is away, and is loaded for all symbols. Imports nothing of pageferry: it is run by path, isolated.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def answer(request: dict[str, Any], pyslurm: Any) -> dict[str, Any]:
    """Return what a request's verb is answered with, or the type, number and words of the exception."""
    try:
        return {"ok": _VERBS[request["verb"]](request, pyslurm)}
    except Exception as error:  # noqa: BLE001  (whatever it is, the parent says it)
        return _failed(error)


def _ping(_: dict[str, Any], pyslurm: Any) -> dict[str, Any]:
    said = pyslurm.slurmctld.ping_primary()
    return {"version": str(pyslurm.__version__), "responding": bool(said.is_responding)}


def _load(request: dict[str, Any], pyslurm: Any) -> dict[str, Any]:
    job = _job(request["job"], pyslurm)
    nodes = job.allocated_nodes
    return {
        "id": job.id,
        "array_id": job.array_id,
        "array_task_id": job.array_task_id,
        "state": job.state,
        "user_id": job.user_id,
        "hosts": pyslurm.utils.helpers.nodelist_from_range_str(nodes) if nodes else [],
        "admin_comment": job.admin_comment or "",
        "partition": job.partition or "",
        "name": job.name or "",
        **_sizes_and_names(job),
    }


def _sizes_and_names(job: Any) -> dict[str, Any]:
    """Return what the site's rules ask of a job; what this pyslurm has not is not known."""
    found = {name: getattr(job, name, None) or "" for name in ("qos", "account", "user_name")}
    features = getattr(job, "features", None)
    sizes = {"num_nodes": getattr(job, "num_nodes", None), "num_cpus": getattr(job, "cpus", None)}
    return {
        **{name: str(value) for name, value in found.items()},
        "features": [str(word) for word in features] if isinstance(features, (list, tuple)) else [],
        **{name: size if isinstance(size, int) else None for name, size in sizes.items()},
    }


def _suspend(request: dict[str, Any], pyslurm: Any) -> None:
    _job(request["job"], pyslurm).suspend()


def _resume(request: dict[str, Any], pyslurm: Any) -> None:
    _job(request["job"], pyslurm).unsuspend()


def _comment(request: dict[str, Any], pyslurm: Any) -> None:
    # An empty text is left out of the update, and the old comment would stay.
    changes = pyslurm.JobSubmitDescription(admin_comment=request["text"] or " ")
    _job(request["job"], pyslurm).modify(changes)


def _job(wanted: str, pyslurm: Any) -> Any:
    """Return the one job that is meant: an array's ID is that of its last task, but stands for all."""
    if "_" not in wanted:
        job = pyslurm.Job.load(int(wanted))
        if job.id == int(wanted):
            return job
    for job in pyslurm.Jobs.load().values():
        if wanted in {str(job.id), f"{job.array_id}_{job.array_task_id}"}:
            return job
    raise LookupError("Invalid job id specified")


def _failed(error: Exception) -> dict[str, Any]:
    return {"error": type(error).__name__, "errno": getattr(error, "errno", None), "text": str(error)}


_VERBS = {"ping": _ping, "load": _load, "suspend": _suspend, "resume": _resume, "comment": _comment}


def main() -> None:
    """Answer the one request."""
    request = json.load(sys.stdin)
    try:
        pyslurm = importlib.import_module("pyslurm")
    except Exception as error:  # noqa: BLE001  (an extension can fail in any way)
        said = {**_failed(error), "error": "ImportError"}
    else:
        said = answer(request, pyslurm)
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
