#!/bin/sh
# Prints the package version of this commit: the version of its tag, or else one that sorts before
# the next release, which is the first in the changelog.
set -eu

if tag=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null); then
	echo "${tag#v}"
	exit
fi
next=$(sed -n 's/^- semver: //p;T;q' "${0%/*}/changelog.yaml")
commit=$(git rev-parse --short=7 HEAD 2>/dev/null || echo unknown)
echo "$next~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$commit"
