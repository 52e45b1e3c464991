# Boots systemd as the first process of a machine that has everything of this one, may change all of it, and leaves
# nothing: what it writes is in memory that goes with it. To be run as the first process of its namespaces.
#
#   boot.sh CGROUP DIRECTORY-OF-THE-PROGRAMS SOURCE-DIRECTORY HOSTNAME
set -e
cgroup=$1 programs=$2 source=$3 name=$4

mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root /mnt/cgroup /mnt/dev /mnt/source /mnt/source-work

# A part of the tree of processes of its own; others boot at the same time. What a killed test left goes.
mount -t cgroup2 cgroup2 /mnt/cgroup
for left in $(find /mnt/cgroup -mindepth 1 -maxdepth 1 -name 'flannel-testing-*' -mmin +2); do
    grep -q 'populated 1' "$left/cgroup.events" || find "$left" -depth -type d -exec rmdir {} + || true
done
mkdir "/mnt/cgroup/$cgroup"
echo $$ >"/mnt/cgroup/$cgroup/cgroup.procs"

mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
# Settings of the network are the machine's own, all others belong to everybody.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t proc proc /mnt/dev
mount --bind /mnt/dev/sys/net proc/sys/net
umount /mnt/dev
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/shm dev/pts
for device in null zero full random urandom tty net/tun; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
# The source, as if everything in it had been built.
mkdir -p usr/src/flannel-rs
mount -t overlay overlay -o "lowerdir=$source,upperdir=/mnt/source,workdir=/mnt/source-work" usr/src/flannel-rs
mkdir -p usr/src/flannel-rs/target/release
mount --bind "$programs" usr/src/flannel-rs/target/release

# Nothing of what the distribution starts, and nothing that belongs to the whole machine.
rm -rf lib/systemd/system/*.wants etc/systemd/system/*.wants etc/systemd/system/etcd* etc/systemd/network
echo "$name" >etc/hostname
hostname "$name"
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
printf '[Unit]\nWants=systemd-journald.socket\n' >etc/systemd/system/test.target
rm -rf run/systemd var/lib/etcd/*

export container=flannel-testing
exec unshare --cgroup sh -c '
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    exec chroot . /lib/systemd/systemd --system --unit=test.target --show-status=no --log-target=journal'
