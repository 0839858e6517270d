#!/bin/sh
# Runs after the files are removed. deb: remove, purge, or upgrade; rpm: the number of remaining
# versions.
set -e
case "$1" in
remove | 0)
	# The generated files depend on the base unit, which has been removed.
	for dropin in /run/systemd/network/*.d/50-ec2netd.conf; do
		[ -e "$dropin" ] || continue
		dir=${dropin%/50-ec2netd.conf}
		# Symlinks beside the drop-in of the base unit belong to others.
		if [ "${dir##*/}" != 80-ec2.network.d ]; then
			if [ -L "${dir%.d}" ]; then rm -f "${dir%.d}"; fi
			find "$dir" -type l -delete
		fi
		rm -f "$dir"/*-ec2netd*.conf
		rmdir --ignore-fail-on-non-empty "$dir"
	done
	rm -f /run/systemd/network/80-ec2-new.network
	rm -rf /run/ec2netd
	# For dpkg the next installation is not the first one, but presets must be applied again if ifupdown
	# has been restored.
	returned=no
	if [ "$1" = remove ] && [ -e /var/lib/ec2netd/before ] && systemctl is-enabled --quiet networking.service; then returned=yes; fi
	rm -rf /var/lib/ec2netd
	if [ $returned = yes ]; then
		mkdir -p /var/lib/ec2netd
		echo 'ifupdown has the ENIs again' >/var/lib/ec2netd/returned
	fi
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload || :
		# Do not use networkctl: rpm may run its scriptlets in their own network namespace.
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
