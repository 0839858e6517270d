package presence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"ec2netd/service/file"
)

// Events to watch. fsnotify would also report each write, and so wake the daemon for its own
// writes; with inotify the daemon selects the events.
const (
	// ofDirectory: somebody removes or moves a file in it, or the directory itself, or creates a
	// directory in it.
	ofDirectory = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_MOVED_TO |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
	// ofFile: unlinking an open socket does not delete it, but changes its number of links.
	ofFile = unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_DONT_FOLLOW
)

// depth is the depth of the daemon's files below a directory.
const depth = 2

// bufferSize has room for many events; the kernel queues more.
const bufferSize = 16 << 10

// watch is an inotify instance.
type watch struct {
	instance *os.File
	paths    map[int]string
	// read closes events when inotify fails; err then says why.
	events chan []event
	done   chan struct{}
	err    error
}

// event is an event of the kernel, see inotify(7).
type event struct {
	watch int
	mask  uint32
	name  string
}

func newWatch() (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("asking the kernel to tell of files (inotify; see sysctl fs.inotify.max_user_instances): %w", err)
	}
	w := &watch{instance: os.NewFile(uintptr(fd), "inotify"), paths: make(map[int]string), events: make(chan []event), done: make(chan struct{})}
	go w.read()
	return w, nil
}

func (w *watch) close() {
	close(w.done)
	w.instance.Close()
}

// read passes events on until the instance is closed.
func (w *watch) read() {
	defer close(w.events)
	buffer := make([]byte, bufferSize)
	for {
		n, err := w.instance.Read(buffer)
		if err != nil {
			w.err = fmt.Errorf("reading what the kernel tells of files: %w", err)
			return
		}
		select {
		case w.events <- parse(buffer[:n]):
		case <-w.done:
			return
		}
	}
}

// parse splits events: four numbers of 32 bits, and a name padded with NUL bytes.
func parse(text []byte) (found []event) {
	for len(text) >= unix.SizeofInotifyEvent {
		length := int(binary.NativeEndian.Uint32(text[12:]))
		e := event{watch: int(int32(binary.NativeEndian.Uint32(text))), mask: binary.NativeEndian.Uint32(text[4:])}
		text = text[unix.SizeofInotifyEvent:]
		if length > len(text) {
			break
		}
		name, _, _ := bytes.Cut(text[:length], []byte{0})
		e.name = string(name)
		text = text[length:]
		found = append(found, e)
	}
	return found
}

// forget returns the path of an event, and forgets it if no more events will follow for it.
func (w *watch) forget(e event) string {
	path := w.paths[e.watch]
	if e.mask&unix.IN_IGNORED != 0 {
		delete(w.paths, e.watch)
	}
	return path
}

// add watches a file, if it exists. A file that is already watched stays watched. Changes of a
// file that cannot be watched are noticed late.
func (w *watch) add(path string, mask uint32) {
	connection, err := w.instance.SyscallConn()
	if err != nil {
		return
	}
	_ = connection.Control(func(fd uintptr) {
		if number, err := unix.InotifyAddWatch(int(fd), path, mask); err == nil {
			w.paths[number] = path
		}
	})
}

// single watches a file that is not a directory.
func (w *watch) single(path string) { w.add(path, ofFile) }

// tree watches a directory and its subdirectories.
func (w *watch) tree(dir string) { w.below(dir, depth) }

func (w *watch) below(dir string, levels int) {
	w.add(dir, ofDirectory)
	if levels == 0 {
		return
	}
	names, _ := file.List(dir, "*")
	for _, name := range slices.DeleteFunc(names, func(name string) bool { return name[0] == '.' }) {
		path := filepath.Join(dir, name)
		if of, err := os.Lstat(path); err == nil && of.IsDir() {
			w.below(path, levels-1)
		}
	}
}
