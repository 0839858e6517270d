#!/bin/sh
# Before the files go. deb: remove, or upgrade; rpm: how many versions stay.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

# The base unit goes with the package, and without one networkd would leave the links
# alone from the next boot on: so that the machine can be reached, a copy stays that has
# them ask DHCP. The primary ENI has one of its own, since only one default route can be
# the best.
base=/usr/lib/systemd/network/80-ec2.network
left() {
	echo '# Left by ec2netd when it was removed, so that networkd goes on configuring the'
	echo '# ENIs. Remove it when something else does; installing ec2netd again does so.'
	cat "$base"
}
if [ -e "$base" ] && systemctl is-enabled --quiet systemd-networkd.service; then
	if [ ! -e /etc/systemd/network/80-ec2.network ]; then
		mkdir -p /etc/systemd/network
		left >/etc/systemd/network/80-ec2.network
	fi
	for dropin in /run/systemd/network/70-*.network.d/50-ec2netd.conf; do
		[ -e "$dropin" ] || continue
		grep -q '^RouteMetric=512$' "$dropin" || continue
		unit=${dropin%.d/50-ec2netd.conf}
		name=${unit#/run/systemd/network/70-}
		unit=/etc/systemd/network/70-$name
		name=${name%.network}
		[ -e "$unit" ] || left | sed "s/^Driver=.*/Name=$name/; s/^RouteMetric=.*/RouteMetric=512/" >"$unit"
	done
fi

if [ -d /run/systemd/system ]; then
	systemctl stop ec2netd-wait-online.service ec2netd.service ec2netd.socket ec2netd-metrics.socket ec2netd-release.service || :
fi
# dpkg keeps what is enabled until the purge, as for every package.
if [ "$1" = 0 ]; then
	(cd /usr/lib/systemd/system && systemctl --no-reload disable ec2netd*.service ec2netd*.socket) || :
fi
