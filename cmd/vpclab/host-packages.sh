#!/bin/sh
# Installs the programs that the lab and the tests need besides Go, as root on Debian; elsewhere
# it lists those that are missing. Machines (MACHINE, EC2NETD_LONG) need QEMU too, which is large.
set -eu

tools='mmdebstrap systemd-nspawn nft ip dbus-daemon man groff mandoc'
packages='mmdebstrap systemd-container nftables iproute2 dbus-daemon man-db groff-base mandoc'
if [ -n "${MACHINE-}${EC2NETD_LONG-}" ]; then
	tools="$tools qemu-system-x86_64 mke2fs"
	packages="$packages qemu-system-x86 e2fsprogs"
fi

missing=
for tool in $tools; do
	PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -z "$missing" ]; then
	exit
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "These tools are missing:$missing. As root on Debian: apt-get install $packages" >&2
	exit 1
fi
echo "Installing$missing…"
apt-get -qq update >/dev/null
# shellcheck disable=SC2086 # words
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages >/dev/null
