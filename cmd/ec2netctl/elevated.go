package main

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ec2netd/service/file"
)

// caller is who has started the program, as far as that matters for what it may do with root's
// rights (J4).
type caller struct {
	// elevated: the program has other rights than the user at the terminal, by sudo, pkexec, su
	// or a set-user-ID wrapper. What that user says by environment and arguments is not to be
	// followed further than the command itself goes.
	elevated bool
	// ownsSession: the program has the rights of the owner of the login session that it runs
	// in. It is false where there is no session, as for systemd's pagers.
	ownsSession bool
}

// callerOf finds out who the caller is: getenv is the environment, uid and euid are those of the
// process, cgroup and loginUID have the files of these names in /proc/self.
func callerOf(getenv func(string) (string, bool), uid, euid int, cgroup, loginUID string) caller {
	_, sudo := getenv("SUDO_UID")
	_, pkexec := getenv("PKEXEC_UID")
	_, doas := getenv("DOAS_USER")
	owner, known := sessionOwner(cgroup)
	c := caller{
		elevated:    sudo || pkexec || doas || uid != euid || known && owner != euid,
		ownsSession: known && owner == euid,
	}
	// The audit UID is that of the login, and stays the same through su. 2^32-1 is none.
	if login, err := strconv.ParseUint(strings.TrimSpace(loginUID), 10, 32); err == nil && login != 1<<32-1 && login != uint64(euid) { //nolint:gosec // no UID is negative
		c.elevated = true
	}
	return c
}

var userSlice = regexp.MustCompile(`^user-(\d+)\.slice$`)

// sessionOwner returns the owner of the login session of a process, as sd_pid_get_owner_uid(3)
// finds it: by the slice of the user in its control group.
func sessionOwner(cgroup string) (uid int, known bool) {
	for line := range strings.Lines(cgroup) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 || (fields[0] != "0" && fields[1] != "name=systemd") {
			continue
		}
		for part := range strings.SplitSeq(fields[2], "/") {
			if m := userSlice.FindStringSubmatch(part); m != nil {
				uid, err := strconv.Atoi(m[1])
				return uid, err == nil
			}
		}
	}
	return 0, false
}

// thisCaller is who has started this process.
func thisCaller() caller {
	read := func(path string) string {
		text, err := file.Read(path, 4<<10)
		if err != nil {
			return ""
		}
		return text
	}
	return callerOf(os.LookupEnv, os.Getuid(), os.Geteuid(), read("/proc/self/cgroup"), read("/proc/self/loginuid"))
}

// systemPath is where programs are looked for with the rights of somebody else. It leaves
// /usr/local out, which is not root's alone on every distribution.
const systemPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// harmless are the variables that are kept with the rights of somebody else, and what they may
// be: nothing in them names a file, a socket or a program.
var harmless = map[string]*regexp.Regexp{
	"TERM":                regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]{0,63}$`),
	"LANG":                locale,
	"LC_ALL":              locale,
	"LC_CTYPE":            locale,
	"LC_MESSAGES":         locale,
	"LC_TIME":             locale,
	"TZ":                  regexp.MustCompile(`^([A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2})?$`),
	"COLUMNS":             digits,
	"LINES":               digits,
	"NO_COLOR":            regexp.MustCompile(`^[ -~]{0,64}$`),
	"SUDO_UID":            digits,
	"PKEXEC_UID":          digits,
	"DOAS_USER":           regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`),
	"SYSTEMD_PAGER":       pagerOff,
	"PAGER":               pagerOff,
	"SYSTEMD_PAGERSECURE": regexp.MustCompile(`^[A-Za-z0-9]{0,16}$`),
	"SYSTEMD_LESS":        lessOptions,
	"SYSTEMD_LESSCHARSET": lessCharset,
	// For the unit of a takeover, see systemd.exec(5).
	"EXIT_CODE":   regexp.MustCompile(`^[a-z]{0,16}$`),
	"EXIT_STATUS": regexp.MustCompile(`^[A-Z0-9]{0,16}$`),
}

var (
	locale = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$`)
	digits = regexp.MustCompile(`^[0-9]{1,10}$`)
	// pagerOff is what a pager can be set to that is none.
	pagerOff = regexp.MustCompile(`^( *|cat)$`)
	// lessOptions are those of less(1) that are single letters and take no value: -k, -o and -t
	// name files, + has a command, and long ones begin with two dashes.
	lessOptions = regexp.MustCompile(`^ *-?[aAcCeEfFgGiIJKLmMnNqQrRsSuUwWX~]{0,32}$`)
	lessCharset = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,31}$`)
)

// safeEnvironment is what is left of an environment with the rights of somebody else. All that
// this program and those that it starts take from the environment comes from it: search paths
// of programs and libraries, sockets of buses, files of less, terminfo and locales, HOME.
func safeEnvironment(environ []string) []string {
	safe := []string{"PATH=" + systemPath}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if may, ok := harmless[name]; ok && may.MatchString(value) {
			safe = append(safe, pair)
		}
	}
	slices.Sort(safe)
	return slices.Compact(safe)
}

// replaceEnvironment makes an environment that of this process.
func replaceEnvironment(environ []string) {
	os.Clearenv()
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		must(os.Setenv(name, value))
	}
}

// openRegular opens a file with the rights of somebody else, if it is a regular one: opening a
// device or a FIFO can do something.
func openRegular(name string) (*os.File, error) {
	// O_PATH looks up and does not open.
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var what unix.Stat_t
	if err := unix.Fstat(fd, &what); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if what.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	//nolint:forbidigo // it is a regular file, and its reader bounds it
	return os.Open(path.Join("/proc/self/fd", strconv.Itoa(fd)))
}
