"""What of OpenPBS on this host stands in pageferry's way, and what to change with which command.

MoM's own copy of the hook and of its settings is looked at, since that is what runs. Their format: OpenPBS's
src/lib/Libutil/hook.c, hook_save().
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pageferry.doctor.findings import Finding, ok, warn
from pageferry.errors import PageferryError, Vanished
from pageferry.kernel.files import printable, read_file
from pageferry.pbs.event import Kind
from pageferry.render import shipped
from pageferry.render_pbs import ALARM_SECONDS, alarm_of

_INSTALL = "pageferry render pbs, and qmgr < pageferry.qmgr on the server's host"
_CHECK_SECONDS = 10.0
_PBS_CGROUPS_ORDER = 100


def examine_pbs(root: Path = Path("/")) -> Iterator[Finding]:
    """Look at MoM's copy of the hook; nothing is found where there is no PBS."""
    try:
        conf = _settings(root / "etc/pbs.conf")
    except Vanished:
        return
    home = Path(conf.get("PBS_MOM_HOME") or conf.get("PBS_HOME") or "/var/spool/pbs")
    hooks = root / str(home).lstrip("/") / "mom_priv/hooks"
    if conf.get("PBS_START_MOM", "1") == "0" or not hooks.is_dir():
        yield ok("OpenPBS", f"no MoM on this host ({hooks} is not there)")
        return
    try:
        hook = _settings(hooks / "pageferry.HK")
        text = read_file(hooks / "pageferry.PY")
    except Vanished:
        yield warn("PBS hook", f"MoM has none: {_INSTALL}")
        return
    wrong = list(_registered(hook))
    yield from wrong or [ok("PBS hook", f"MoM has it, alarm {hook.get('alarm', str(ALARM_SECONDS))} s")]
    if text.strip() != read_file(shipped("hooks") / "pbs/pageferry_hook.py").strip():
        yield warn("PBS hook file", f"MoM's is not this version's: {_INSTALL}")
    with suppress(Vanished):
        config = read_file(hooks / "pageferry.CF")
        yield from _timed(hook, config)
        yield from _configured(config)


def _registered(hook: dict[str, str]) -> Iterator[Finding]:
    if hook.get("enabled", "TRUE").upper() != "TRUE":
        yield warn("PBS hook", "disabled: qmgr -c 'set hook pageferry enabled = True'")
    missing = [kind.value for kind in Kind if kind.value not in hook.get("event", "").split(",")]
    if missing:
        yield warn("PBS hook", f"events missing ({', '.join(missing)}): {_INSTALL}")
    order = hook.get("order", "1")
    if order.isdigit() and int(order) <= _PBS_CGROUPS_ORDER:
        yield warn("PBS hook", f"order {order} is before pbs_cgroups: qmgr -c 'set hook pageferry order = 200'")
    if hook.get("fail_action", "none").lower() not in {"none", ""}:
        text = f"fail_action {printable(hook['fail_action'])}: qmgr -c 'set hook pageferry fail_action = none'"
        yield warn("PBS hook", text)


def _timed(hook: dict[str, str], config: bytes) -> Iterator[Finding]:
    """A hook that waits as long as its alarm leaves its job suspended, to be tried again at once and without end."""
    alarm = hook.get("alarm", str(ALARM_SECONDS))
    known = alarm_of(config)
    if alarm.isdigit() and known is not None and int(alarm) < known:
        text = (
            f"its alarm is {alarm} s, and pageferry-hook.json says {known:g}: say there what qmgr says, and import it"
        )
        yield warn("PBS hook", text)


def _configured(text: bytes) -> Iterator[Finding]:
    """Have the hook itself say what is wrong with its configuration."""
    words = ["/usr/bin/python3", "-I", "-S", str(shipped("hooks") / "pbs/pageferry_hook.py")]
    try:
        checked = subprocess.run(words, input=text, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        yield warn("PBS hook configuration", f"cannot be checked: {error}")
        return
    faults = checked.stderr.splitlines()
    for fault in faults:
        yield warn("PBS hook configuration", f"pageferry-hook.json: {printable(fault)}")
    if not faults:
        yield ok("PBS hook configuration", "no fault")


def _settings(path: Path) -> dict[str, str]:
    """Return the lines KEY=VALUE of a file. Raises Vanished."""
    found = {}
    try:
        lines = read_file(path).decode("utf-8", "replace").splitlines()
    except Vanished:
        raise
    except PageferryError:
        return {}
    for line in lines:
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found[key.strip()] = value.strip().strip('"')
    return found
