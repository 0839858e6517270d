package presence

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is the limit of every wait.
const patience = 20 * time.Second

// scene is the daemon's directories, with a fake systemd that creates them.
type scene struct {
	t    *testing.T
	root string
	// reloadErr and restartErr are the errors of systemd.
	reloadErr, restartErr error
	bindErr               map[string]error
	// young: the daemon has only just started.
	young bool

	mu       sync.Mutex
	calls    []string
	restores int
	log      bytes.Buffer
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, root: t.TempDir()}
	for _, dir := range []string{s.at("network/70-ens5.network.d"), s.at("own/start/70-ens5.network.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *scene) at(p string) string { return filepath.Join(s.root, p) }

func (s *scene) write(p string) {
	s.t.Helper()
	if err := os.WriteFile(s.at(p), []byte("x"), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) remove(p string) {
	s.t.Helper()
	if _, err := os.Lstat(s.at(p)); err != nil {
		s.t.Fatal(err)
	}
	if err := os.RemoveAll(s.at(p)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) note(call string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, strings.ReplaceAll(call, s.root, ""))
	return err
}

func (s *scene) Reload(_ context.Context, unit string) error {
	if s.reloadErr == nil {
		for _, dir := range []string{"network", "own"} {
			if err := os.MkdirAll(s.at(dir), 0o755); err != nil {
				s.t.Error(err)
			}
		}
	}
	return s.note("reload "+unit, s.reloadErr)
}

func (s *scene) Bind(_ context.Context, unit, dir string) error {
	return s.note("bind "+unit+" "+dir, s.bindErr[dir])
}
func (s *scene) Stop(_ context.Context, unit string) error { return s.note("stop "+unit, nil) }
func (s *scene) RestartIfActive(_ context.Context, unit string) error {
	return s.note("restart "+unit, s.restartErr)
}

func (s *scene) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(text)
}

// start runs a watcher until the test ends, and waits for its first look.
func (s *scene) start(options Options) {
	s.t.Helper()
	options.Unit, options.MakerUnit, options.Units = "daemon", "maker", s
	options.Directories = []string{s.at("network"), s.at("own"), s.at("never")}
	options.Restore = func(context.Context) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.restores++
	}
	options.Log = slog.New(slog.NewTextHandler(s, nil))
	w := New(options)
	if !s.young {
		w.began = w.began.Add(-youngTime)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	s.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	s.restored("at the start", func() {})
}

// restored does something, and waits until the files are written again.
func (s *scene) restored(what string, do func()) {
	s.t.Helper()
	before := s.count()
	began := time.Now()
	do()
	for s.count() == before {
		if time.Since(began) > patience {
			s.t.Fatalf("%s: nothing is written again", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *scene) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restores
}

// asked waits for the requests to systemd, from the first one on.
func (s *scene) asked(want ...string) {
	s.t.Helper()
	var got []string
	for began := time.Now(); time.Since(began) < patience; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got = slices.Clone(s.calls)
		s.mu.Unlock()
		if slices.Equal(got, want) {
			return
		}
	}
	s.t.Fatalf("systemd was asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

func (s *scene) said(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.log.String(), text)
}

// F12: files that are removed or moved away, in any directory of the daemon, are written again.
// Writing files causes no event, and neither does removing a hidden one.
func TestFiles(t *testing.T) {
	s := newScene(t)
	for _, file := range []string{"network/80.network", "network/70-ens5.network.d/50.conf", "own/views.json", "own/start/70-ens5.network.d/50.conf", "network/.hidden"} {
		s.write(file)
	}
	s.start(Options{})
	s.restored("a unit", func() { s.remove("network/80.network") })
	s.restored("a drop-in", func() { s.remove("network/70-ens5.network.d/50.conf") })
	s.restored("a file of the daemon's own", func() {
		if err := os.Rename(s.at("own/views.json"), s.at("elsewhere")); err != nil {
			t.Error(err)
		}
	})
	s.restored("a drop-in for networkd's start", func() { s.remove("own/start/70-ens5.network.d/50.conf") })
	s.restored("a directory of one unit", func() { s.remove("network/70-ens5.network.d") })

	before := s.count()
	if err := os.Mkdir(s.at("network/70-ens6.network.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.write("network/70-ens6.network.d/.50.conf")
		if err := os.Rename(s.at("network/70-ens6.network.d/.50.conf"), s.at("network/70-ens6.network.d/50.conf")); err != nil {
			t.Fatal(err)
		}
	}
	s.remove("network/.hidden")
	time.Sleep(pause + 3*settleTime)
	if now := s.count(); now != before {
		t.Errorf("the daemon's own writes had it look %d times", now-before)
	}
	s.restored("a drop-in that came later", func() { s.remove("network/70-ens6.network.d/50.conf") })
	s.asked()
}

// F12: systemd creates directories again and mounts them; the new ones are watched too.
func TestDirectories(t *testing.T) {
	s := newScene(t)
	s.start(Options{})
	s.restored("a directory", func() { s.remove("network") })
	s.asked("reload maker", "bind daemon /network")
	s.write("network/80.network")
	s.restored("a file in the new one", func() { s.remove("network/80.network") })
	s.restored("a directory that is moved, and another one", func() {
		if err := os.Rename(s.at("network"), s.at("elsewhere")); err != nil {
			t.Error(err)
		}
		s.remove("own")
	})
	s.asked("reload maker", "bind daemon /network", "reload maker", "bind daemon /network", "bind daemon /own")
	if n := s.said("Somebody has removed"); n != 2 {
		t.Errorf("it says %d times what was removed:\n%s", n, s.log.String())
	}
}

// F12: if systemd cannot mount a directory that it has created, the daemon gets a new sandbox.
func TestRestartForDirectory(t *testing.T) {
	s := newScene(t)
	s.reloadErr = errors.New("the job is not applicable")
	s.start(Options{})
	s.remove("own")
	s.asked("reload maker", "restart daemon")
}

// If systemd does nothing at all, the watcher asks again at growing intervals, and logs that once.
func TestNoSystemd(t *testing.T) {
	s := newScene(t)
	s.reloadErr, s.restartErr = errors.New("no bus"), errors.New("no bus")
	s.start(Options{})
	began := time.Now()
	s.remove("own")
	s.asked("reload maker", "restart daemon", "reload maker", "restart daemon", "reload maker", "restart daemon")
	if took := time.Since(began); took < 3*pause {
		t.Errorf("it was asked three times in %s", took)
	}
	if n := s.said("systemctl start daemon"); n != 1 {
		t.Errorf("what to do is said %d times:\n%s", n, s.log.String())
	}
}

// F12: if the file of a socket, or a symlink to it, is removed, a restart of the service starts
// its unit again.
func TestSockets(t *testing.T) {
	for _, removed := range []string{"own/socket", "registry/link"} {
		t.Run(filepath.Base(removed), func(t *testing.T) {
			s := newScene(t)
			socket, other := s.at("own/socket"), s.at("other")
			for _, path := range []string{socket, other} {
				listener, err := net.Listen("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
			}
			if err := errors.Join(os.Mkdir(s.at("registry"), 0o755), os.Symlink(socket, s.at("registry/link"))); err != nil {
				t.Fatal(err)
			}
			s.start(Options{Sockets: map[string][]string{"a.socket": {socket, s.at("registry/link")}, "b.socket": {other, s.at("registry/never")}}})
			s.restored("before the restart", func() { s.remove(removed) })
			s.asked("stop a.socket", "restart daemon")
		})
	}
}

// A socket without a file when the daemon starts has been removed: systemd has passed the socket.
func TestSocketWithoutFile(t *testing.T) {
	s := newScene(t)
	s.young = true
	began := time.Now()
	s.start(Options{Sockets: map[string][]string{"a.socket": {s.at("own/socket"), s.at("own/never")}}})
	s.asked("stop a.socket", "restart daemon")
	if took := time.Since(began); took < youngTime {
		t.Errorf("a daemon that has run for %s is restarted", took)
	}
}

// F12: a directory that systemd cannot mount does not affect the others, and a restart provides it
// after everything else is written.
func TestOneDirectoryFails(t *testing.T) {
	s := newScene(t)
	s.bindErr = map[string]error{s.at("network"): errors.New("no such file or directory")}
	s.start(Options{})
	s.restored("what can be", func() {
		s.remove("network")
		s.remove("own")
	})
	s.asked("reload maker", "bind daemon /network", "bind daemon /own", "restart daemon")
}

// E9: the daemon creates the symlink again by which udevd knows that the daemon runs.
func TestAnnounced(t *testing.T) {
	s := newScene(t)
	link := s.at("own/running")
	announce := func() error { return os.Symlink("/nowhere", link) }
	if err := announce(); err != nil {
		t.Fatal(err)
	}
	s.start(Options{Links: map[string]func() error{link: announce}})
	s.restored("the link", func() { s.remove("own/running") })
	if _, err := os.Lstat(link); err != nil {
		t.Error(err)
	}
	s.asked()
}

// The parser of events stays within its bounds.
func TestParse(t *testing.T) {
	text := func(length byte, name string) []byte {
		return append([]byte{1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, length, 0, 0, 0}, name...)
	}
	whole := append(text(8, "a.conf\x00\x00"), text(0, "")...)
	if got := parse(whole); !slices.Equal(got, []event{{1, 0x200, "a.conf"}, {1, 0x200, ""}}) {
		t.Errorf("%+v", got)
	}
	for n := range whole {
		if got := parse(whole[:n]); len(got) > 1 {
			t.Errorf("of %d bytes: %+v", n, got)
		}
	}
}
