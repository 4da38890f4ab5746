#!/bin/sh
# PID 1 of the box: loads the modules, puts a writable layer over the host's tree, and runs
# the job it finds in the firmware configuration. Its own console is the kernel's; the job's
# output goes through pipes to two virtio-serial ports, its exit status to a third.
export PATH=/bin

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
  insmod "/modules/$module"
done < /modules/order

fw=/sys/firmware/qemu_fw_cfg/by_name/opt/org.snapback
until [ -e /dev/vport0p3 ]; do usleep 5000; done
status=/dev/vport0p3

fail() {
  echo "box: $*" >/dev/console
  echo "failed $*" >$status
  sleep 1000000
}

# cache=loose: the host's tree does not change under the box as far as the box is concerned.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower \
  || fail "cannot mount the host's file tree"
mount -t tmpfs -o size=90% upper /upper
mkdir /upper/u /upper/w
mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w root /new \
  || fail "cannot put a writable layer over the host's file tree"

mkdir -p /new/dev /new/proc /new/sys /new/run /new/tmp
mount -t tmpfs -o mode=755 run /new/run
mount -t tmpfs -o mode=1777,size=90% tmp /new/tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control \
  || fail "cannot enable the cgroup controllers"
cat $fw/job/raw >/new/run/snapback-box-job
cat $fw/mounts/raw >/mounts.sh
ulimit -n 65536
ulimit -l unlimited
hostname box
ip link set lo up

# Paths the job needs although a tmpfs of the box hides them, and the shared directories.
. /mounts.sh

for dir in dev proc sys; do
  mount --move /$dir /new/$dir
done
mount --bind /new/dev /dev
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 pts /new/dev/pts
for pair in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
  ln -sf "/proc/self/${pair#*:}" "/new/dev/${pair%%:*}"
done

mkfifo /out /err
{ cat </out >/dev/vport0p1; : >/out.done; } &
{ cat </err >/dev/vport0p2; : >/err.done; } &
echo "started" >$status
# The host's tree becomes the root of the mount namespace, not only of the job: the kernel
# lets nobody in a mere chroot make a user namespace.
(cd /new && mount --move . / && exec chroot . /bin/sh /run/snapback-box-job) </dev/null >/out 2>/err
code=$?

# The pipes are empty when their readers have ended. A process that the job left behind
# may hold them open for ever: it gets one second.
tries=0
until [ -e /out.done ] && [ -e /err.done ] || [ $tries -ge 100 ]; do
  usleep 10000
  tries=$((tries + 1))
done
sync
echo "exit $code" >$status
# The host ends the machine when it has read everything.
sleep 1000000
