#!/bin/sh
# Boots the machine's systemd as process 1 of namespaces of its own. Everything it may change is hidden from the machine:
# /etc, /usr/local and /var are overlays that end with it, /run, /tmp, /var/tmp and /var/log are empty, /sys and /proc/sys
# are read-only, loopback is the only network. Started by test_systemd.py through unshare; the argument names the cgroup.
set -eu
if [ "${2:-}" = "" ]; then
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run
    mkdir /run/cgroup
    mount -t cgroup2 cgroup2 /run/cgroup
    mkdir "/run/cgroup/$1"
    echo $$ >"/run/cgroup/$1/cgroup.procs"
    umount /run/cgroup
    exec unshare --cgroup sh "$0" "$1" inside
fi

mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o remount,bind,ro /sys
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
for place in etc usr/local var; do
    mkdir -p "/run/overlay/$place/upper" "/run/overlay/$place/work"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=/run/overlay/$place/upper,workdir=/run/overlay/$place/work" "/$place"
done
for place in /tmp /var/tmp /var/log; do
    mount -t tmpfs -o mode=1777 tmpfs "$place"
done

: >/etc/fstab
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
units=/etc/systemd/system
mkdir -p $units
for unit in timers.target swap.target cryptsetup.target systemd-udevd.service systemd-udevd-control.socket \
    systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-sysctl.service systemd-modules-load.service \
    systemd-remount-fs.service systemd-binfmt.service systemd-hwdb-update.service systemd-random-seed.service \
    systemd-update-utmp.service systemd-pstore.service kmod-static-nodes.service systemd-machine-id-commit.service \
    dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount networking.service apparmor.service \
    ifupdown-wait-online.service ifupdown-pre.service systemd-networkd.service systemd-networkd-wait-online.service \
    systemd-resolved.service systemd-timesyncd.service keyboard-setup.service console-setup.service; do
    ln -sf /dev/null "$units/$unit"
done
printf '[Unit]\nDescription=Nothing yet\nDefaultDependencies=no\n' >$units/quintet-test.target
export container=quintet-test
exec /lib/systemd/systemd --system --unit=quintet-test.target --show-status=no
