"""Tells pageferry on this host what PBS does with a job, and lets PBS go on, whatever comes of it.

One file, for MoM's embedded Python (no site packages): it reads the event, asks the agent over its socket or, where no
agent runs, starts the command, keeps a time limit of its own below the hook's alarm, and always accepts. A preresume
hook that rejects, raises or is too slow would leave its job suspended and be called again eight times a second. What is
to be done about a job's memory is decided in pageferry; nothing here knows.

The configuration is JSON; a key that is not there has its default, and what is wrong is said in MoM's log:

    socket              where the agent listens
    command             what to start without an agent: a list of words, the first an absolute path; [] for nothing
    alarm               the hook's alarm, in seconds, as qmgr has it: a hook cannot see it
    preresume_seconds   how long MoM may wait here before a resume, at most 2 s less than the alarm
    seconds             how long it may wait at other events
    request_resource    the job's resource with a request that came with its submission, "" for none
    outcome_resource    the string resource that shows in qstat -f what became of a job's memory, "" for none
"""

import contextlib
import errno
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time

try:
    import pbs
except ImportError:  # to check a configuration, outside MoM
    pbs = None

DEFAULTS = {
    "socket": "/run/pageferry/agent.sock",
    "command": ["/usr/local/bin/pageferry", "pbs-event"],
    "alarm": 30,
    "preresume_seconds": 20,
    "seconds": 2,
    "request_resource": "",
    "outcome_resource": "",
}
_VNODE = re.compile(r"[(+]([^:+()]{1,300})")
"""The name of each vnode in exec_vnode: (a[0]:ncpus=1+a[1]:ncpus=1)+(b:ncpus=2)."""

JOBS_AT_ONCE = 16
TEXT_CHARACTERS = 1024
"""Of a request, as pageferry takes it, and of an outcome."""

ANSWER_BYTES = 1 << 20
EVENTS = (
    "execjob_begin",
    "execjob_postsuspend",
    "execjob_preresume",
    "execjob_resize",
    "execjob_epilogue",
    "execjob_end",
    "exechost_periodic",
)


# The configuration.


def read_config(text):
    """Return the configuration that a file's text means, and what is wrong with it, a line each."""
    config, faults = dict(DEFAULTS), []
    try:
        given = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        return config, [f"not JSON: {error}"]
    if not isinstance(given, dict):
        return config, ["not a JSON object"]
    for key, value in given.items():
        where = text.count("\n", 0, max(0, text.find(json.dumps(key)))) + 1
        shown = json.dumps(value)[:60]
        if key not in DEFAULTS:
            faults.append(f"line {where}: {json.dumps(key)[:60]}: unknown key; there are {', '.join(DEFAULTS)}")
        elif not _fits(key, value):
            faults.append(f"line {where}: {key} = {shown}: expected {_EXPECTED[key]}")
        else:
            config[key] = value
    return config, faults


_EXPECTED = {
    "socket": "an absolute path",
    "command": "a list of words, the first an absolute path, or []",
    "alarm": "a number from 3 to 86400",
    "preresume_seconds": "a number from 0 to 3600",
    "seconds": "a number from 0 to 3600",
    "request_resource": "the name of a resource, or an empty text",
    "outcome_resource": "the name of a resource, or an empty text",
}


def _fits(key, value):
    if key == "socket":
        return isinstance(value, str) and value.startswith("/") and len(value) < 108 and "\0" not in value
    if key == "command":
        words = isinstance(value, list) and all(isinstance(word, str) and "\0" not in word for word in value)
        return words and (not value or value[0].startswith("/"))
    if key == "alarm" or key.endswith("seconds"):
        least, most = (3, 86400) if key == "alarm" else (0, 3600)
        return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    return isinstance(value, str) and re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]{0,63})?", value) is not None


# What the event says.


def messages_of(kind, event, config, until):
    """Return what pageferry is told of an event: of many jobs in several messages, each of which is no long line."""
    every = kind == "exechost_periodic"
    jobs = [event.job_list[name] for name in event.job_list] if every else [event.job]
    hosts = _hosts()
    told = []
    for first in range(0, max(1, len(jobs)), JOBS_AT_ONCE):
        some = jobs[first : first + JOBS_AT_ONCE]
        message = {"verb": "pbs", "event": kind, "hosts": hosts, "until": until}
        message["jobs"] = [_job(job, hosts, config) for job in some]
        if every:
            message["keep"] = [str(job.id) for job in jobs]
        elif kind == "execjob_preresume":
            seconds = max(0.5, config["seconds"])
            message["jobs"][0]["comment"] = _comment(event.job.id, min(until, time.monotonic() + seconds))
        told.append(message)
    return told


def _hosts():
    names = [pbs.get_local_nodename(), socket.gethostname()]
    return sorted({name for given in names if given for name in (str(given), str(given).partition(".")[0])})


def _job(job, hosts, config):
    return {
        "id": _text(job, "id", 256),
        "exec_vnode": _vnodes(_text(job, "exec_vnode", 1 << 20), hosts),
        "session": _session(job),
        "user": _text(job, "euser", 256),
        "asked": _resource(job, config["request_resource"]),
        "comment": "",
        "queue": _text(job, "queue", 256),
        "account": _text(job, "Account_Name", 256),
        "project": _text(job, "project", 256),
        "name": _text(job, "Job_Name", 256),
        "nodes": _count(job, "nodect"),
        "cpus": _count(job, "ncpus"),
    }


def _vnodes(text, hosts):
    """Return what of exec_vnode is this host's: of a job on a thousand hosts that is little."""
    ours = [name for name in dict.fromkeys(_VNODE.findall(text)) if name.partition("[")[0] in hosts]
    return f"({'+'.join(ours)})"[:4096] if ours else ""


def _text(job, name, most=TEXT_CHARACTERS):
    value = getattr(job, name, None)
    return "" if value is None else str(value)[:most]


def _session(job):
    # None on a sister MoM.
    try:
        return max(0, int(getattr(job, "session_id", None) or 0))
    except (TypeError, ValueError):
        return 0


def _resource(job, name):
    if not name:
        return ""
    try:
        value = job.Resource_List[name]
    except Exception:  # noqa: BLE001 - the site has not defined it, or PBS does not know it here
        return ""
    return "" if value is None else str(value)[:TEXT_CHARACTERS]


def _count(job, name):
    try:
        return max(0, int(_resource(job, name) or 0))
    except ValueError:
        return 0


def _comment(job_id, until):
    """Ask the server for a job's comment, which MoM does not have; in a child, since nothing ends a call that hangs."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            os.write(
                write_end, str(pbs.server().job(job_id).comment or "").encode("utf-8", "replace")[:TEXT_CHARACTERS]
            )
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        said = b""
        while select.select([read_end], [], [], max(0, until - time.monotonic()))[0]:
            part = os.read(read_end, 65536)
            if not part:
                return said.decode("utf-8", "replace")
            said += part
        log(f"the server did not say the comment of job {job_id} in time; it is taken to have none", error=True)
        return ""
    finally:
        os.close(read_end)
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except OSError:
            pass  # it has ended


# Asking.


def ask(message, config, until):
    """Return pageferry's answer, {} if there is none in time; what was begun goes on."""
    answer = _asked(message, config, until)
    if answer is None:
        log(f"{message['event']}: no answer in time; PBS goes on", error=True)
    return answer or {}


def _asked(message, config, until):
    line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    try:
        return _ask_agent(line, config["socket"], until)
    except socket.timeout:  # noqa: UP041 - its name before Python 3.10
        return None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise
    if not config["command"]:
        log(f"no agent listens at {config['socket']}, and no command is configured", error=True)
        return {}
    return _run_command(line, config["command"], until)


def _ask_agent(line, path, until):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(_left(until))
        agent.connect(path)
        agent.sendall(line)
        answer = _answer(agent.fileno(), until)
    return json.loads(answer) if answer else None


def _run_command(line, command, until):
    """Start the command in a session of its own: MoM kills our process group when we end, and a move takes longer."""
    with open(os.devnull, "r+b") as null:
        process = subprocess.Popen(
            # Through a shell, which is there at once: the command may be on a file system that hangs.
            ["/bin/sh", "-c", 'exec "$@"', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=null,
            start_new_session=True,
            close_fds=True,
            cwd="/",
            preexec_fn=_unblock,  # noqa: PLW1509 - there is one thread
        )
    with contextlib.suppress(BrokenPipeError):  # it has ended; how, is seen below
        _write(process.stdin.fileno(), line, until)
    process.stdin.close()
    answer = _answer(process.stdout.fileno(), until)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if not answer and process.wait(max(0, until - time.monotonic())) in (126, 127):
            raise OSError(f"{command[0]} cannot be started")
    return json.loads(answer) if answer else None


def _write(descriptor, data, until):
    """Write to a pipe that may be full, until the time is up."""
    os.set_blocking(descriptor, False)
    while data and select.select([], [descriptor], [], max(0, until - time.monotonic()))[1]:
        data = data[os.write(descriptor, data) :]


def _unblock():
    # pbs_python blocks the signals that would end it, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _answer(descriptor, until):
    """Read one line, until its time is up."""
    said = b""
    while b"\n" not in said and len(said) < ANSWER_BYTES:
        if not select.select([descriptor], [], [], max(0, until - time.monotonic()))[0]:
            return b""
        part = os.read(descriptor, 65536)
        if not part:
            return b""
        said += part
    return said.partition(b"\n")[0]


def _left(until):
    return max(0.01, until - time.monotonic())


# What is told.


def log(text, error=False):
    """Say something in MoM's log, as one line."""
    line = "".join(char if char.isprintable() else "?" for char in f"pageferry: {text}")[:1000]
    pbs.logmsg(pbs.EVENT_ERROR if error else pbs.EVENT_DEBUG, line)


def tell(kind, event, answer, config):
    """Say in the log, and in the job's resource, what pageferry answered."""
    if "error" in answer:
        log(answer["error"], error=True)
    if kind == "execjob_preresume" and answer.get("told"):
        text = str(answer["told"])
        log(f"job {event.job.id}: {text}", error=text.startswith("failed"))
        _show(event.job, text, config)
    for job_id, text in (answer.get("outcomes") or {}).items():
        if job_id in event.job_list:
            _show(event.job_list[job_id], str(text), config)


def _show(job, text, config):
    name = config["outcome_resource"]
    if not name:
        return
    text = text[:TEXT_CHARACTERS]
    vnodes = _VNODE.findall(_text(job, "exec_vnode", 1 << 20))
    if len({vnode.partition("[")[0] for vnode in vnodes}) > 1:  # PBS joins what several MoMs say, if it is JSON
        text = json.dumps({_hosts()[0]: text})
    job.resources_used[name] = text


def kind_of(event):
    """Return the name of an event that we know, None for another."""
    for name in EVENTS:
        number = getattr(pbs, name.upper(), None)
        if number is not None and event.type == number:
            return name
    return None


def main():
    """Serve one event."""
    event = pbs.event()
    try:
        kind = kind_of(event)
        if kind is not None:
            _serve(kind, event)
    except Exception as error:  # noqa: BLE001 - PBS must go on
        _complain(error)
    finally:
        event.accept()


def _age():
    """Return how long we have run: Python's start takes its time, and the alarm counts that too."""
    with open("/proc/self/stat", "rb") as stat, open("/proc/uptime", "rb") as uptime:
        began = int(stat.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0, float(uptime.read().split()[0]) - began)


def _complain(error):
    with contextlib.suppress(Exception):  # there is nobody left to tell
        log(f"{type(error).__name__}: {error}", error=True)


def _opened(path, flags):
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would have MoM wait for a writer


def _serve(kind, event):
    text, path = "", getattr(pbs, "hook_config_filename", None)
    if path:
        with open(path, encoding="utf-8", errors="replace", opener=_opened) as file:
            text = file.read(1 << 20)
    config, faults = read_config(text)
    for fault in faults:
        log(f"configuration: {fault}; its default holds", error=True)
    seconds = config["preresume_seconds" if kind == "execjob_preresume" else "seconds"]
    until = time.monotonic() + max(0, min(seconds, config["alarm"] - 2) - _age())
    for message in messages_of(kind, event, config, until):
        tell(kind, event, ask(message, config, until), config)


if pbs is not None:
    main()
elif __name__ == "__main__":
    _, problems = read_config(sys.stdin.read())
    sys.exit("\n".join(problems) or 0)
