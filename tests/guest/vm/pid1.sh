#!/run/guest/busybox sh
# shellcheck shell=dash
# PID 1 of the guest once the root is in place, or a service where systemd is that: run one command, say how it ended,
# power off. As PID 1 it also collects what the command leaves behind. Arguments: run or shell, the command's port, the status port.
busybox=/run/guest/busybox
echo "guest: the command starts after $($busybox cut -d' ' -f1 /proc/uptime) s" >/dev/console

case "$1" in
    # A controlling terminal, so that job control and Ctrl-C work as they do elsewhere.
    shell) $busybox setsid -c /run/guest/command <>"$2" >&0 2>&1 ;;
    *) $busybox setsid /run/guest/command </dev/null >"$2" 2>&1 ;;
esac
code=$?
# First the results, then the status: who reads it may rely on them.
$busybox sync
echo $code >"$3"
$busybox poweroff -f
