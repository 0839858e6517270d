#!/bin/sh
# Runs after the files are installed. deb: configure [PREVIOUS VERSION]; rpm: the number of
# installed versions of the package.
set -e

# networkd regards a file with a new inode as changed: on systemd 252 the next reload would
# interrupt IPv6 of the primary ENI for half a second. So keep a file with the same content.
base=/usr/lib/systemd/network/80-ec2.network
kept=/usr/lib/systemd/network/.80-ec2.network.kept
if [ -e "$kept" ]; then
	if cmp -s "$kept" "$base"; then mv -f "$kept" "$base"; else rm -f "$kept"; fi
fi

case "$1" in
configure) if [ -z "$2" ]; then first=yes; else first=no; fi ;;
1) first=yes ;;
[2-9]*) first=no ;;
*) exit 0 ;; # dpkg undoes a failed step
esac

# The udev rule of amazon-ec2-net-utils enables an instance of each unit for each ENI, by symlinks
# that no package owns. rpm removes the old package later, so their targets still exist.
for link in /etc/systemd/system/*.wants/refresh-policy-routes@* /etc/systemd/system/*.wants/policy-routes@*; do
	case "$(readlink "$link")" in
	/usr/lib/systemd/system/* | /lib/systemd/system/*) rm -f "$link" ;;
	esac
done

command -v systemctl >/dev/null || exit 0
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi

# If ec2netd is masked, its presets must not decide which software configures the links, and the
# files of an earlier removal stay.
masked=no
if [ "$(readlink /etc/systemd/system/ec2netd.service)" = /dev/null ]; then masked=yes; fi
if [ $masked = yes ]; then
	:
elif [ "$first" = yes ] || [ -e /var/lib/ec2netd/returned ]; then
	# Record what a removal has to restore for ifupdown: see preremove.
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
	# Presets decide what is enabled, with precedence for those of the administrator; nothing is started.
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
	# A version without an alias for bus activation has enabled the unit. systemctl reenable would
	# also enable the sockets.
	alias=/etc/systemd/system/dbus-org.ec2netd1.service
	if [ -L /etc/systemd/system/multi-user.target.wants/ec2netd.service ] && [ ! -L $alias ]; then
		ln -s /usr/lib/systemd/system/ec2netd.service $alias
		if [ -d /run/systemd/system ]; then
			systemctl daemon-reload || :
		fi
	fi
fi
if [ $masked = no ] && [ "$first" = no ] && [ -d /run/systemd/system ]; then
	# The network does not change meanwhile. A unit that does not run is not started.
	systemctl try-restart ec2netd.service || :
fi

# Remove the files that an earlier removal has left.
for file in /etc/systemd/network/80-ec2.network /etc/systemd/network/70-*.network \
	/run/systemd/network/80-ec2.network /run/systemd/network/75-ec2netd-*.network; do
	if [ $masked = no ] && [ -f "$file" ] && grep -q '^# Left by ec2netd when it was removed' "$file"; then
		rm -f "$file"
	fi
done

# The units of amazon-ec2-net-utils continue to run without their files. Stopping them does not
# change addresses, routes or rules; the package's files in /run stay in force until ec2netd starts.
if [ -d /run/systemd/system ]; then
	if [ $masked = no ] && ! systemctl is-active --quiet ec2netd.service &&
		[ -n "$(find /run/systemd/network -path '*.network.d/ec2net_*.conf' 2>/dev/null)" ]; then
		echo "amazon-ec2-net-utils is stopped, and ec2netd follows changes from the next boot on. To have it take over now: sudo ec2netctl takeover"
	fi
	systemctl stop 'refresh-policy-routes@*.timer' 'refresh-policy-routes@*.service' 'policy-routes@*.service' || :
	systemctl reset-failed 'refresh-policy-routes@*' 'policy-routes@*' 2>/dev/null || :
fi
