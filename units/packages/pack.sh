#!/bin/sh
# Builds the deb and the rpm from the files that "make install" has installed in ROOT, and removes
# those of other versions. The Makefile runs it in the top directory, with NFPM, GO, MAINTAINER,
# HOMEPAGE and SOURCE_DATE_EPOCH in its environment.
set -eu

if [ $# != 4 ]; then
	echo "usage: $0 ARCH ROOT VERSION DIRECTORY" >&2
	exit 2
fi
arch=$1 root=$2 version=$3 directory=$4
case "$arch" in
amd64) rpm_arch=x86_64 ;;
arm64) rpm_arch=aarch64 ;;
*)
	echo "$0: no packages for $arch" >&2
	exit 1
	;;
esac
here=${0%/*}
work=$directory/$arch

mkdir -p "$work"
rm -f "$directory"/*_"$arch".deb "$directory"/*."$rpm_arch".rpm
# shellcheck disable=SC2086 # GO may have arguments
$GO run "./$here/bom" -root "$root" -version "$version" -maintainer "$MAINTAINER" \
	-licences "$work/dependencies.txt" -spdx "$work/ec2netd.spdx.json" usr/bin/ec2netctl usr/lib/ec2netd/ec2netd
sed "s|@maintainer@|$MAINTAINER|" "$here/changelog.yaml" >"$work/changelog.yaml"
sed "s|@changelog@|$work/changelog.yaml|" "$here/nfpm.yaml" >"$work/nfpm.yaml"
for packager in deb rpm; do
	ARCH=$arch ROOT=$root BOM=$work PACKAGE_VERSION=$version TZ=UTC \
		"$NFPM" package --config "$work/nfpm.yaml" --packager "$packager" --target "$directory/" >"$work/log" || {
		cat "$work/log" >&2
		exit 1
	}
done
