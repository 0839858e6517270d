#!/bin/sh
# After the files are there. deb: configure [VERSION BEFORE]; rpm: how many versions of
# the package there are now.
set -e

# networkd takes a file with a new inode for a changed one: on systemd 252 the next reload
# would cost IPv6 of the primary ENI half a second. One of the same content is kept.
base=/usr/lib/systemd/network/80-ec2.network
kept=/usr/lib/systemd/network/.80-ec2.network.kept
if [ -e "$kept" ]; then
	if cmp -s "$kept" "$base"; then mv -f "$kept" "$base"; else rm -f "$kept"; fi
fi

case "$1" in
configure) if [ -z "$2" ]; then first=yes; else first=no; fi ;;
1) first=yes ;;
[2-9]*) first=no ;;
*) exit 0 ;; # what dpkg undoes
esac

# The udev rule of amazon-ec2-net-utils enables an instance of each unit for each ENI, by links
# that no package owns. For rpm the old package goes after this: they have a target yet.
for link in /etc/systemd/system/*.wants/refresh-policy-routes@* /etc/systemd/system/*.wants/policy-routes@*; do
	case "$(readlink "$link")" in
	/usr/lib/systemd/system/* | /lib/systemd/system/*) rm -f "$link" ;;
	esac
done

command -v systemctl >/dev/null || exit 0
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi

# Where ec2netd is kept out of the way, what owns the links is not for its presets to say,
# and what a removal left stays.
masked=no
if [ "$(readlink /etc/systemd/system/ec2netd.service)" = /dev/null ]; then masked=yes; fi
if [ $masked = yes ]; then
	:
elif [ "$first" = yes ] || [ -e /var/lib/ec2netd/returned ]; then
	# For a removal, which brings ifupdown back: see preremove.
	rm -f /var/lib/ec2netd/returned
	before=
	if systemctl is-enabled --quiet networking.service 2>/dev/null; then
		before='enable networking.service'
		if systemctl is-enabled --quiet ifupdown-wait-online.service 2>/dev/null; then
			before="$before
enable ifupdown-wait-online.service"
		fi
		for unit in systemd-networkd.service systemd-networkd-wait-online.service; do
			systemctl is-enabled --quiet $unit || before="$before
disable $unit"
		done
	fi
	# Presets decide what is enabled, the admin's before ours; nothing is started.
	while read -r verb unit _; do
		case "$verb" in
		enable | disable)
			for dir in /etc /usr/lib /lib; do
				if [ -e "$dir/systemd/system/$unit" ]; then
					systemctl preset "$unit" || :
					break
				fi
			done
			;;
		esac
	done </usr/lib/systemd/system-preset/80-ec2netd.preset
	if [ -n "$before" ] && ! systemctl is-enabled --quiet networking.service; then
		mkdir -p /var/lib/ec2netd
		echo "$before" >/var/lib/ec2netd/before
	fi
else
	# Enabled by a version whose bus activation did not go by an alias. Not systemctl reenable,
	# which would enable the sockets too.
	alias=/etc/systemd/system/dbus-org.ec2netd1.service
	if [ -L /etc/systemd/system/multi-user.target.wants/ec2netd.service ] && [ ! -L $alias ]; then
		ln -s /usr/lib/systemd/system/ec2netd.service $alias
		if [ -d /run/systemd/system ]; then
			systemctl daemon-reload || :
		fi
	fi
fi
if [ $masked = no ] && [ "$first" = no ] && [ -d /run/systemd/system ]; then
	# The network stays as it is meanwhile. What does not run is not started.
	systemctl try-restart ec2netd.service || :
fi

# What a removal left in our place.
for file in /etc/systemd/network/80-ec2.network /etc/systemd/network/70-*.network \
	/run/systemd/network/80-ec2.network /run/systemd/network/75-ec2netd-*.network; do
	if [ $masked = no ] && [ -f "$file" ] && grep -q '^# Left by ec2netd when it was removed' "$file"; then
		rm -f "$file"
	fi
done

# The units of amazon-ec2-net-utils go on running without their files. Stopping them
# touches no address, route or rule; its files in /run stay in force until ec2netd starts.
if [ -d /run/systemd/system ]; then
	if [ $masked = no ] && ! systemctl is-active --quiet ec2netd.service &&
		[ -n "$(find /run/systemd/network -path '*.network.d/ec2net_*.conf' 2>/dev/null)" ]; then
		echo "amazon-ec2-net-utils is stopped, and ec2netd follows changes from the next boot on. To have it take over now: sudo ec2netctl takeover"
	fi
	systemctl stop 'refresh-policy-routes@*.timer' 'refresh-policy-routes@*.service' 'policy-routes@*.service' || :
	systemctl reset-failed 'refresh-policy-routes@*' 'policy-routes@*' 2>/dev/null || :
fi
