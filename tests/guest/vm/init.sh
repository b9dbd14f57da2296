#!/busybox sh
# shellcheck shell=dash
# The guest's start: reach the host's files, make a usual machine of them, and go over to pid1.sh in them. It
# uses only busybox: each program that a script starts over 9p costs an emulated CPU a tenth of a second. The
# words of this run are the files in /words.

say() { echo "guest: $*" >/dev/console; }
die() { say "$*"; /busybox poweroff -f; }
word() { /busybox cat "/words/$1"; }

/busybox mkdir -p /bin /proc /sys /dev /host /memory /root
/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod "$module" || die "cannot load $module"; done
# The command's port, and after it the status port, are announced a moment after their driver is loaded.
until set -- /dev/vport*p2 && [ -c "$1" ]; do usleep 10000; done
status=$1
port=/dev/hvc0
[ -c $port ] || port=${status%2}1

# A guest that came this far shows that its accelerator works; nothing more is asked of it.
[ "$(word mode)" = probe ] && { echo 0 >"$status"; poweroff -f; }

# Loose caching is safe on a share that is only read, and it is what makes Python usable over 9p.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host || die "no host files"
mount -t tmpfs -o size=1536m,mode=755 memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root || die "no overlay"

cd /root || die "no root"
for place in proc sys dev; do mount --move /$place $place; done
mkdir -p dev/shm dev/pts dev/mqueue
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts dev/pts
mount -t mqueue mqueue dev/mqueue
mount -t hugetlbfs -o mode=1777 huge dev/hugepages 2>/dev/null || {
    mkdir -p dev/hugepages && mount -t hugetlbfs -o mode=1777 huge dev/hugepages
}
mount -t tmpfs -o mode=755 run run
mkdir -p run/lock run/results
ln -sfn /proc/self/fd dev/fd
ln -sfn /proc/self/fd/0 dev/stdin
ln -sfn /proc/self/fd/1 dev/stdout
ln -sfn /proc/self/fd/2 dev/stderr
# Files on the overlay show one device in stat and another in /proc/PID/maps; what tests map should not.
[ "$(word tmp)" = no ] || mount -t tmpfs -o mode=1777 tmp tmp
# A repository below /tmp is hidden by that, and another system's tree has none.
repository=$(word repository)
if [ ! -e ".$repository/pyproject.toml" ]; then
    mkdir -p ".$repository"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro repository ".$repository" || die "no repository"
fi
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none results run/results || die "no results"

if [ "$(word cgroup)" = v1 ]; then
    mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
    for kind in cpuset cpu cpuacct memory devices freezer pids; do
        mkdir "sys/fs/cgroup/$kind"
        mount -t cgroup -o "$kind" cgroup "sys/fs/cgroup/$kind" || die "no cgroup v1 $kind"
    done
else
    mount -t cgroup2 cgroup sys/fs/cgroup
fi

hostname guest
# With only 127.0.0.1, getaddrinfo finds no address for a name (AI_ADDRCONFIG): the guest has one more.
printf '127.0.0.1 localhost\n10.77.0.1 guest\n' >etc/hosts
echo guest >etc/hostname
ip addr add 127.0.0.1/8 dev lo
ip addr add 10.77.0.1/32 dev lo
ip link set lo up

mkdir run/guest
cp /busybox /pid1.sh /words/command run/guest
set -- /run/guest/busybox sh /run/guest/pid1.sh "$(word mode)" "$port" "$status"
if [ "$(word systemd)" = yes ]; then
    # Of all that the host would start, only the journal and the command: units are loaded from their usual places, and
    # none is wanted. Nor may an image's policy keep packages from starting theirs.
    rm -rf lib/systemd/system/*.wants lib/systemd/system-generators etc/systemd/system usr/sbin/policy-rc.d
    # dpkg reads the names of all files of all packages, and a page of the manual has all of it indexed again: both take
    # an emulated machine longer than all that a test wants of it. Here it knows which packages there are, and no more.
    mkdir -p /memory/dpkg/info /memory/dpkg/updates /memory/dpkg/triggers
    cp var/lib/dpkg/status /memory/dpkg
    echo 1 >/memory/dpkg/info/format
    mount --bind /memory/dpkg var/lib/dpkg
    mkdir etc/systemd/system
    printf '[Unit]\nAfter=basic.target\n[Service]\nExecStart=%s\nKillMode=process\n' "$*" >etc/systemd/system/guest.service
    mkdir etc/systemd/system/sysinit.target.wants etc/systemd/system/multi-user.target.wants
    ln -s /lib/systemd/system/systemd-journald.service etc/systemd/system/sysinit.target.wants
    ln -s ../guest.service etc/systemd/system/multi-user.target.wants
    ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
    set -- /lib/systemd/systemd
fi
# A true change of root, not a chroot: the kernel's own helpers (modprobe) then see these files too, and user
# namespaces are allowed.
exec switch_root /root "$@"
