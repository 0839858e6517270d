#!/bin/sh
# After the files are gone. deb: remove, purge, or upgrade; rpm: how many versions stay.
set -e
case "$1" in
remove | 0)
	# What was generated builds upon the base unit, which is gone.
	for dropin in /run/systemd/network/*.d/50-ec2netd.conf; do
		[ -e "$dropin" ] || continue
		dir=${dropin%/50-ec2netd.conf}
		# Links beside the drop-in of the base unit are those of others.
		if [ "${dir##*/}" != 80-ec2.network.d ]; then
			if [ -L "${dir%.d}" ]; then rm -f "${dir%.d}"; fi
			find "$dir" -type l -delete
		fi
		rm -f "$dir"/*-ec2netd*.conf
		rmdir --ignore-fail-on-non-empty "$dir"
	done
	rm -f /run/systemd/network/80-ec2-new.network
	rm -rf /run/ec2netd
	# dpkg calls the next installation none, but presets are to decide again where ifupdown is back.
	returned=no
	if [ "$1" = remove ] && [ -e /var/lib/ec2netd/before ] && systemctl is-enabled --quiet networking.service; then returned=yes; fi
	rm -rf /var/lib/ec2netd
	if [ $returned = yes ]; then
		mkdir -p /var/lib/ec2netd
		echo 'ifupdown has the ENIs again' >/var/lib/ec2netd/returned
	fi
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload || :
		# Not networkctl: rpm may have its scriptlets in a network namespace of their own.
		busctl --quiet call org.freedesktop.network1 /org/freedesktop/network1 org.freedesktop.network1.Manager Reload || :
	fi
	;;
esac
case "$1" in
purge)
	for dir in /etc/systemd/system/*.wants; do
		rm -f "$dir"/ec2netd.service "$dir"/ec2netd.socket "$dir"/ec2netd-*.service "$dir"/ec2netd-*.socket
	done
	rm -f /etc/systemd/system/dbus-org.ec2netd1.service
	rm -rf /var/lib/ec2netd
	;;
esac
