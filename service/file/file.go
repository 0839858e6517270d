// Package file reads the files and directories of others within bounds (J2).
//
// A directory that others write to may contain anything under any name: a FIFO without a writer,
// a device, a directory, a symlink to itself, a file of gigabytes, a hundred thousand entries. No
// read of this package waits for another process, and none reads more than its limit. Other
// packages of the daemon and of ec2netctl read files only through this package; the linter
// rejects os.ReadFile and the like elsewhere.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Limit is the maximal size of a unit file. networkd accepts lines of up to 1 MiB; a drop-in with
// all addresses of the largest instance has 100 KiB.
const Limit = 1 << 20

// Limits of a directory.
const (
	// MostNames is the maximal number of matching names in a directory: List returns the first
	// ones in sorted order, which is also the order of systemd.
	MostNames = 4096
	// mostScanned is the maximal number of entries of a directory that are read.
	mostScanned = 1 << 18
	// chunk is the number of entries that are read at once.
	chunk = 1024
)

// Reasons why a file is not read.
var (
	ErrNotRegular = errors.New("it is not a regular file")
	ErrTooLarge   = errors.New("it is too large")
	ErrTooMany    = errors.New("it has too many entries")
)

// Read returns the content of a regular file of at most limit bytes. It follows symlinks. The
// null device, which systemd treats as a mask, is an empty file.
func Read(path string, limit int64) (string, error) {
	text, _, err := read(path, limit, 0)
	return string(text), err
}

// ReadOwn is like Read for a private file of this program: it does not follow a symlink, and
// requires that root or the program's user owns the file.
func ReadOwn(path string, limit int64) ([]byte, fs.FileInfo, error) {
	text, of, err := read(path, limit, unix.O_NOFOLLOW)
	if err != nil {
		return nil, nil, err
	}
	if s, ok := of.Sys().(*unixStat); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return nil, nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("user %d owns it", s.Uid)}
	}
	return text, of, nil
}

func read(path string, limit int64, flags int) ([]byte, fs.FileInfo, error) {
	// Opening some devices has side effects, so this does not try.
	look := os.Stat
	if flags&unix.O_NOFOLLOW != 0 {
		look = os.Lstat
	}
	of, err := look(path)
	if err != nil {
		return nil, nil, err
	}
	if isNull(of) {
		return nil, of, nil
	}
	fail := func(err error) ([]byte, fs.FileInfo, error) {
		return nil, nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	if err := acceptable(of, limit); err != nil {
		return fail(err)
	}
	// The file may have been replaced meanwhile, and opening it must not block.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|flags, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if of, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if err := acceptable(of, limit); err != nil {
		return fail(err)
	}
	// The file may grow, and files of the kernel have no size.
	text := make([]byte, 0, min(of.Size(), limit)+bytesMore)
	for {
		n, err := f.Read(text[len(text):min(cap(text), int(limit)+1)])
		text = text[:len(text)+n]
		switch {
		case int64(len(text)) > limit:
			return fail(tooLarge(limit))
		case errors.Is(err, io.EOF):
			return text, of, nil
		case err != nil:
			return nil, nil, err
		case len(text) == cap(text):
			text = slices.Grow(text, len(text))
		}
	}
}

// bytesMore is the room for content beyond the reported size of a file.
const bytesMore = 512

func acceptable(of fs.FileInfo, limit int64) error {
	if !of.Mode().IsRegular() {
		return fmt.Errorf("%w but %s", ErrNotRegular, kindOf(of.Mode()))
	}
	if of.Size() > limit {
		return tooLarge(limit)
	}
	return nil
}

func tooLarge(limit int64) error {
	return fmt.Errorf("%w: %d KiB are the most", ErrTooLarge, limit>>10)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	}
	return "something else"
}

// isNull reports whether a file is the null device, whatever its name.
func isNull(of fs.FileInfo) bool {
	s, ok := of.Sys().(*unixStat)
	return ok && of.Mode()&fs.ModeCharDevice != 0 && s.Rdev == unix.Mkdev(1, 3)
}

// List returns the names in a directory that match a pattern (see [path.Match]), sorted. A
// directory with more than MostNames of them yields the first ones, and [ErrTooMany]. One
// that does not exist has none.
func List(dir, pattern string) ([]string, error) {
	names, err := ListEach(dir, pattern)
	if names == nil {
		return nil, err
	}
	return names[0], err
}

// ListEach is List for several patterns at once: the names that match each of them.
func ListEach(dir string, patterns ...string) ([][]string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names := make([][]string, len(patterns))
	var many error
	trim := func(i int) {
		if len(names[i]) > MostNames {
			slices.Sort(names[i])
			names[i] = slices.Delete(names[i], MostNames, len(names[i]))
			many = &fs.PathError{Op: "list", Path: dir, Err: fmt.Errorf("%w: the first %d count", ErrTooMany, MostNames)}
		}
	}
	for scanned := 0; ; scanned += chunk {
		if scanned >= mostScanned {
			many = &fs.PathError{Op: "list", Path: dir, Err: fmt.Errorf("%w: %d are looked at", ErrTooMany, mostScanned)}
			break
		}
		some, err := f.Readdirnames(chunk)
		for i, pattern := range patterns {
			for _, name := range some {
				if ok, _ := path.Match(pattern, name); ok {
					names[i] = append(names[i], name)
				}
			}
			if len(names[i]) > 2*MostNames {
				trim(i)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	for i := range names {
		trim(i)
		slices.Sort(names[i])
	}
	return names, many
}

// Failed is an error of doing something to a file of the daemon's own: it names the file and
// not a hidden one that is to replace it, and says what to do.
func Failed(doing, path string, err error) error {
	dir := directory(err, path)
	err = fmt.Errorf("%s %s: %w", doing, path, Cause(err))
	if advice := advice(err, dir); advice != "" {
		return fmt.Errorf("%w: %s", err, advice)
	}
	return err
}

// Cause returns an error of package os without the path.
func Cause(err error) error {
	var at *fs.PathError
	var moved *os.LinkError
	switch {
	case errors.As(err, &at):
		return at.Err
	case errors.As(err, &moved):
		return moved.Err
	}
	return err
}

// directory returns the directory in which an operation on a file failed: that of the file, or
// the parent of a directory that could not be created for it.
func directory(err error, file string) string {
	var at *fs.PathError
	var moved *os.LinkError
	switch {
	case errors.As(err, &at) && at.Path != "":
		file = at.Path
	case errors.As(err, &moved) && moved.New != "":
		file = moved.New
	}
	return path.Dir(file)
}

// advice says what to do if a file in a directory cannot be written; empty if there is no general
// advice.
func advice(err error, dir string) string {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "free space in that file system (see df), and ec2netd writes it by itself"
	case errors.Is(err, unix.EROFS):
		return "have that file system mounted writable, and ec2netd writes it by itself"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		// The daemon has no capability to override the permissions.
		return "let root write to that directory: chown root " + dir + " && chmod u+rwx " + dir +
			". If that does not help, see lsattr -d " + dir + " and the sandbox in systemctl cat ec2netd.service"
	case errors.Is(err, fs.ErrNotExist):
		return "the directory is gone: systemctl restart ec2netd.service makes it anew"
	}
	return ""
}
