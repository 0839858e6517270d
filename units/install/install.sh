#!/bin/sh
# Installs or removes the files of files.list. "make install" and "make uninstall" run it in the
# top directory, with the variables of the Makefile in its environment.
set -eu

fail() {
	echo "$0: $*" >&2
	exit 1
}

action=${1-}
case "$action" in
install | uninstall) ;;
*) fail 'the argument must be install or uninstall' ;;
esac
for name in DESTDIR PREFIX SYSCONFDIR BASH_COMPLETIONS FISH_COMPLETIONS ZSH_COMPLETIONS BIN EC2NETCTL; do
	eval "value=\${$name?is not set: run make $action}"
	case "$value" in
	*[\|\&\\]*) fail "$name contains |, & or \\: $value" ;;
	esac
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$tmp/names" <<END
s|@prefix@|$PREFIX|g
s|@bindir@|$PREFIX/bin|g
s|@libexecdir@|$PREFIX/lib/ec2netd|g
s|@unitdir@|$PREFIX/lib/systemd/system|g
s|@datadir@|$PREFIX/share|g
s|@sysconfdir@|$SYSCONFDIR|g
s|@bash_completions@|$BASH_COMPLETIONS|g
s|@fish_completions@|$FISH_COMPLETIONS|g
END

# substitute SOURCE RESULT [NAME] replaces all names; NAME is what messages call the source.
substitute() {
	sed -f "$tmp/names" "$1" >"$2"
	if grep '@[a-z_]\{1,\}@' "$2" >&2; then
		fail "unknown name in ${3-$1}"
	fi
}

# put MODE SOURCE DESTINATION
put() {
	echo "install $3"
	install -D -T -m "$1" "$2" "$DESTDIR$3"
}

install_line() {
	case "$kind" in
	program) put 0755 "$BIN/$source" "$destination" ;;
	file) put 0644 "$source" "$destination" ;;
	template)
		substitute "$source" "$tmp/file"
		put 0644 "$tmp/file" "$destination"
		;;
	completion)
		"$EC2NETCTL" completion "$source" >"$tmp/file" </dev/null
		put 0644 "$tmp/file" "$destination"
		;;
	link)
		echo "install $destination"
		install -d "$DESTDIR${destination%/*}"
		ln -sfn "$source" "$DESTDIR$destination"
		;;
	config)
		if [ ! -e "$DESTDIR$destination" ]; then
			put 0644 "$source" "$destination"
		fi
		;;
	tree | directory) ;;
	*) fail "unknown kind in $list: $kind $source $destination" ;;
	esac
}

uninstall_line() {
	case "$kind" in
	config) ;;
	tree) rm -rf "$DESTDIR$destination" ;;
	directory)
		if [ -d "$DESTDIR$destination" ] && [ ! -L "$DESTDIR$destination" ]; then
			rmdir --ignore-fail-on-non-empty "$DESTDIR$destination"
		fi
		;;
	*)
		echo "remove $destination"
		rm -f "$DESTDIR$destination"
		;;
	esac
}

# There may be several directories of zsh: a line for each.
list=${0%/*}/files.list
sed -e '/^#/d' -e '/^$/d' -e '/@zsh_completions@/d' "$list" >"$tmp/lines"
for directory in $ZSH_COMPLETIONS; do
	sed -n "s|@zsh_completions@|$directory|p" "$list" >>"$tmp/lines"
done
substitute "$tmp/lines" "$tmp/list" "$list"
while read -r kind source destination; do
	case "$destination" in
	*/) destination=$destination${source##*/} ;;
	esac
	"${action}_line"
done <"$tmp/list"
