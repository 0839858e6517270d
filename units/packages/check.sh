#!/bin/sh
# Checks the packages in a directory. A copy of the sources elsewhere, built at another time, in
# another time zone and with another umask, must result in the same bytes, and lintian and rpmlint
# must report nothing. lintian-overrides and rpmlint.toml list the exceptions, with reasons.
# "make check-packages" runs it in the top directory; the arguments are for the second make.
set -eu

if [ $# -lt 2 ]; then
	echo "usage: $0 PACKAGES COPY [VARIABLE=VALUE...]" >&2
	exit 2
fi
packages=$1 copy=$2
shift 2

for tool in lintian rpmlint rpm; do
	command -v "$tool" >/dev/null && continue
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "$tool is missing. As root on Debian: apt-get install lintian rpmlint rpm" >&2
		exit 1
	fi
	apt-get -qq update >/dev/null
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends lintian rpmlint rpm >/dev/null
	break
done

rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
(
	umask 077
	TZ=Asia/Tokyo make --no-print-directory -C "$copy" packages "$@" >/dev/null
)
for package in "$copy"/build/packages/*.deb "$copy"/build/packages/*.rpm; do
	cmp "$package" "$packages/${package##*/}"
done
lintian --allow-root --fail-on error,warning "$packages"/*.deb
rpmlint --strict --config "${0%/*}/rpmlint.toml" "$packages"/*.rpm
rm -rf "$copy"
