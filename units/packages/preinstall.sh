#!/bin/sh
# Runs before the files are installed. deb: install, or upgrade; rpm: the number of versions afterwards.
set -e
case "$1" in
upgrade | [2-9]*)
	# See postinstall.
	if [ -e /usr/lib/systemd/network/80-ec2.network ]; then
		ln -f /usr/lib/systemd/network/80-ec2.network /usr/lib/systemd/network/.80-ec2.network.kept
	fi
	;;
esac
