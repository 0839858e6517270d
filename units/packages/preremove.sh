#!/bin/sh
# Runs before the files are removed. deb: remove, or upgrade; rpm: the number of remaining versions.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

# The base unit is removed with the package, and without one networkd would not configure the
# links from the next boot on. So that the machine stays reachable, the script leaves a copy
# that enables DHCP. The primary ENI gets its own copy, since only one default route can be the
# best.
base=/usr/lib/systemd/network/80-ec2.network
left() {
	echo '# Left by ec2netd when it was removed, so that networkd goes on configuring the'
	echo '# ENIs. Remove it when something else does; installing ec2netd again does so.'
	cat "$base"
}
primaries() {
	for dropin in /run/systemd/network/70-*.network.d/50-ec2netd.conf; do
		[ -e "$dropin" ] || continue
		grep -q '^RouteMetric=512$' "$dropin" || continue
		name=${dropin#/run/systemd/network/70-}
		echo "${name%.network.d/50-ec2netd.conf}"
	done
}

# If presets disabled ifupdown when ec2netd was installed, ifupdown configures the links again from
# the next boot on, if it is still installed and lists the primary ENI. Until then networkd uses
# files in /run, whose names differ from the daemon's own files.
before=/var/lib/ec2netd/before

# told reports whether the configuration of ifupdown lists a link.
told() {
	cat /etc/network/interfaces /etc/network/interfaces.d/* /run/network/interfaces.d/* 2>/dev/null |
		grep -Eq "^[[:space:]]*(auto|allow-[a-z]+)[[:space:]](.*[[:space:]])?$1([[:space:]]|\$)"
}
# If the daemon has not run in this boot, the links of the default routes identify the primary ENI. An
# image that is not booted has none.
routed() {
	while read -r name to _; do
		if [ "$to" = 00000000 ]; then echo "$name"; fi
	done </proc/net/route
	while read -r to length _ _ _ _ _ _ _ name; do
		if [ "$to $length" = '00000000000000000000000000000000 00' ] && [ "$name" != lo ]; then echo "$name"; fi
	done </proc/net/ipv6_route
}
# returns enables ifupdown if it can configure the ENIs again, and reports whether it did. It fails if
# ifupdown is masked.
returns() {
	[ -e $before ] || return 1
	command -v ifup >/dev/null || return 1
	names=$(primaries)
	if [ -z "$names" ] && [ -d /run/systemd/system ]; then
		names=$(routed 2>/dev/null)
		[ -n "$names" ] || return 1
	fi
	for name in $names; do
		told "$name" || return 1
	done
	systemctl --no-reload enable networking.service
}
back=no
if returns; then back=yes; fi
dir=/etc/systemd/network
primary=70-
leave=no
if [ $back = no ]; then
	if systemctl is-enabled --quiet systemd-networkd.service; then leave=yes; fi
elif [ -d /run/systemd/system ] && systemctl is-active --quiet systemd-networkd.service; then
	dir=/run/systemd/network
	primary=75-ec2netd-
	leave=yes
fi
if [ $leave = yes ] && [ -e "$base" ]; then
	if [ ! -e $dir/80-ec2.network ]; then
		mkdir -p $dir
		left >$dir/80-ec2.network
	fi
	for name in $(primaries); do
		unit=$dir/$primary$name.network
		[ -e "$unit" ] || left | sed "s/^Driver=.*/Name=$name/; s/^RouteMetric=.*/RouteMetric=512/" >"$unit"
	done
fi

if [ -d /run/systemd/system ]; then
	# An active socket would start its service again.
	systemctl stop ec2netd.socket ec2netd-metrics.socket || :
	systemctl stop ec2netd-wait-online.service ec2netd.service ec2netd-release.service || :
fi
if [ $back = yes ]; then
	while read -r verb unit; do
		systemctl --no-reload "$verb" "$unit" || :
	done <$before
fi
# dpkg keeps the enabled units until the purge, as for every package.
if [ "$1" = 0 ]; then
	(cd /usr/lib/systemd/system && systemctl --no-reload disable ec2netd*.service ec2netd*.socket) || :
fi
