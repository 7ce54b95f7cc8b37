#!/bin/sh
# What a package's scripts would do after files came or went: the user exists, systemd knows the units. Started by
# `make install` and `make uninstall` without DESTDIR; without systemd or root it does nothing.
set -eu
prefix="$1"
[ "$(id -u)" -eq 0 ] || exit 0
sysusers="$prefix/lib/sysusers.d/quintet.conf"
if [ -e "$sysusers" ] && command -v systemd-sysusers >/dev/null; then
    systemd-sysusers "$sysusers"
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
