#!/bin/sh
# Becomes the first process of a throw-away host: throwaway_host.sh TOP HIERARCHIES GROUPS SHARED COMMAND...
#
# Its files are this host's with a layer over them, kept in memory at TOP/written and seen there as /run/written; its root
# is TOP/root. HIERARCHIES is what is mounted below /sys/fs/cgroup, a line for each: "." (version 2 at the top) or "NAME
# OPTIONS"; GROUPS are the groups of this host, a line for each, that are its top groups; SHARED are folders of this host,
# a line for each, that it has, too. Called by tests/support/throwaway_host.py, in a shell of its own.
set -eu

if [ "$1" != --within ]; then
    printf '%s\n' "$3" | while read -r group; do echo $$ >"$group/cgroup.procs"; done
    exec unshare --mount --pid --cgroup --uts --ipc --net --fork --kill-child "$0" --within "$@"
fi
shift
top=$1
hierarchies=$2
shared=$4
shift 4

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$top"
mkdir "$top/written" "$top/work" "$top/root"
mount -t overlay -o "lowerdir=/,upperdir=$top/written,workdir=$top/work" overlay "$top/root"
cd "$top/root"

mount -t proc proc proc
# What this kernel is set to is not the throw-away host's to change.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount --bind sys/devices/system/node sys/devices/system/node # where a unit has to be able to write
mount -o remount,bind,ro sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mkdir run/written
mount --bind -o ro "$top/written" run/written
[ -z "$shared" ] || printf '%s\n' "$shared" | while read -r folder; do
    mkdir -p ".$folder"
    mount --bind "$folder" ".$folder"
done

[ "$hierarchies" = . ] || mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
printf '%s\n' "$hierarchies" | while read -r name options; do
    mkdir -p "sys/fs/cgroup/$name"
    case $name in
    . | unified) mount -t cgroup2 cgroup2 "sys/fs/cgroup/$name" ;;
    *) mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/$name" ;;
    esac
done

# Of all that this host would start, only what is asked for: units are loaded from their usual places, and none is wanted.
mount -t tmpfs -o mode=755 tmpfs etc/systemd/system
for wanted in lib/systemd/system/*.wants lib/systemd/system-generators; do
    [ ! -d "$wanted" ] || mount -t tmpfs -o mode=755 tmpfs "$wanted"
done
# An image of this host's kind may forbid packages to start anything.
[ ! -e usr/sbin/policy-rc.d ] || mount --bind usr/bin/true usr/sbin/policy-rc.d
# dpkg would have all of the host's manual indexed again, with each package that brings a page.
[ ! -d var/lib/man-db ] || mount -t tmpfs -o mode=755 tmpfs var/lib/man-db
ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
mkdir etc/systemd/system/sysinit.target.wants
ln -s /lib/systemd/system/systemd-journald.service etc/systemd/system/sysinit.target.wants/

exec env -i container=throwaway PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 chroot . "$@"
