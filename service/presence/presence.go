// Package presence sees to it that the daemon's directories, files and sockets are there while
// it runs, whoever removes them (F12).
//
// It is told by inotify, and costs nothing while nobody removes anything. An event carries no
// data: it only asks for a look at everything. Generated files and what the daemon keeps for a
// restart are for the loop to write again, as it knows their content. The rest takes systemd:
//
//   - Directories. The daemon's sandbox has them mounted, each one onto itself, and all else in
//     /run is read-only in it. Once the host's directory has been removed, the daemon can neither
//     make it nor write to one that somebody else makes. systemd makes it (MakerUnit), and mounts
//     it in the sandbox of the daemon, as "systemctl bind" does: that ends no connection of a
//     client, and the daemon knows afterwards what it knew before.
//   - Sockets. Only their units can make them anew, and only while the service does not run. They
//     are stopped, and the service is restarted, which starts them. That comes last, when all else
//     is written.
//
// The package does not know what is in a file, and decides nothing about links.
package presence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Times of a look.
const (
	// settleTime is how long whoever removes something has to get on with it.
	settleTime = 50 * time.Millisecond
	// pause is the least time between two looks: somebody may remove things again and again.
	pause = time.Second
	// slowestRetry bounds the time between two attempts that fail; the first comes after pause.
	slowestRetry = time.Minute
	// youngTime is how long the daemon has run at least when it asks for a restart, so that one
	// that is of no use is not followed by the next at once.
	youngTime = 2 * time.Second
	// actTime bounds what one attempt may take. systemd is quick, unless it is about to end.
	actTime = 30 * time.Second
)

// Units are what systemd is asked for.
type Units interface {
	// Reload has a unit reload, and waits for the end of that.
	Reload(ctx context.Context, unit string) error
	// Bind mounts a directory of the host in the sandbox of a service that runs.
	Bind(ctx context.Context, unit, dir string) error
	// Stop stops a unit, and waits for the end of that.
	Stop(ctx context.Context, unit string) error
	// RestartIfActive restarts a unit unless it is stopped or about to be. It does not wait.
	RestartIfActive(ctx context.Context, unit string) error
}

// Options of a [Watcher].
type Options struct {
	// Unit is the daemon's own service, and MakerUnit the one that makes the directories when it
	// is reloaded.
	Unit, MakerUnit string
	Units           Units
	// Directories that the daemon writes to. One that is not there at the start was not removed.
	Directories []string
	// Sockets are files by the socket unit that makes them: the socket itself, which must be where
	// the daemon can see it, and links to it, of which those count that are there at the start.
	Sockets map[string][]string
	// Links are symbolic links of the daemon's, by path, and what makes them.
	Links map[string]func() error
	// Restore has the files written again that are missing, and returns when that is done; nil for
	// nobody to do that.
	Restore func(ctx context.Context)
	Log     *slog.Logger
}

// Watcher is a task of the daemon.
type Watcher struct {
	Options
	// made are the directories as they were made last, and files those of Sockets that count.
	made  map[string]identity
	files map[string]bool
	// moved are directories that somebody has moved: in the sandbox they may still be there.
	moved map[string]bool
	watch *watch
	began time.Time
	said  string
	delay time.Duration
}

// identity tells a file from any other one.
type identity struct{ dev, ino uint64 }

// look returns what is at a path without following it. It is false if nothing is, or a
// directory that has been removed and is still mounted.
func look(path string) (identity, bool) {
	var of unix.Stat_t
	if err := unix.Lstat(path, &of); err != nil || of.Nlink == 0 {
		return identity{}, false
	}
	return identity{of.Dev, of.Ino}, true
}

// New returns a watcher for what is there now.
func New(options Options) *Watcher {
	w := &Watcher{Options: options, began: time.Now(), made: make(map[string]identity), files: make(map[string]bool), moved: make(map[string]bool)}
	for _, dir := range w.Directories {
		if of, ok := look(dir); ok {
			w.made[dir] = of
		}
	}
	for _, files := range w.Sockets {
		for i, file := range files {
			_, there := look(file)
			w.files[file] = there || i == 0
		}
	}
	return w
}

// String names the task.
func (w *Watcher) String() string { return "presence" }

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	for {
		err := w.run(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the daemon is ending, which is no error
		}
		w.say(fmt.Errorf("files of ec2netd that somebody removes are missed: %w", err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(slowestRetry):
		}
	}
}

// run watches until the kernel tells nothing any more, or ctx ends.
func (w *Watcher) run(ctx context.Context) error {
	watch, err := newWatch()
	if err != nil {
		return err
	}
	defer watch.close()
	w.watch = watch
	w.follow()
	// What was removed while nobody watched.
	due := time.After(settleTime)
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case batch, ok := <-watch.events:
			if !ok {
				return watch.err
			}
			if w.matters(batch) && due == nil {
				due = time.After(max(settleTime, time.Until(last.Add(pause))))
			}
		case <-due:
			due = nil
			if again := w.mend(ctx); again > 0 {
				due = time.After(again)
			}
			last = time.Now()
		}
	}
}

// matters takes events, and reports whether something may have been removed.
func (w *Watcher) matters(batch []event) bool {
	removed, made := false, false
	for _, e := range batch {
		dir := w.watch.forget(e)
		switch {
		case e.mask&unix.IN_Q_OVERFLOW != 0:
			removed, made = true, true
		case e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ATTRIB) != 0:
			removed = true
			if _, own := w.made[dir]; own && e.mask&unix.IN_MOVE_SELF != 0 {
				w.moved[dir] = true
			}
		case strings.HasPrefix(e.name, "."):
			// A file that the daemon, or somebody else, is about to rename.
		case e.mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
			removed = true
		case e.mask&unix.IN_ISDIR != 0:
			made = true
		}
	}
	if made {
		w.follow()
	}
	return removed
}

// follow watches all that is there.
func (w *Watcher) follow() {
	for _, dir := range w.Directories {
		w.watch.tree(dir)
	}
	for file := range w.files {
		w.watch.single(file)
	}
}

// mend looks for what is missing, and sees to it. It returns the time to the next attempt, 0 if
// nothing is left to do.
func (w *Watcher) mend(ctx context.Context) time.Duration {
	bounded, cancel := context.WithTimeout(ctx, actTime)
	defer cancel()
	without := w.directories(bounded)
	var err error
	for link, announce := range w.Links {
		if _, there := look(link); !there && without == nil {
			err = errors.Join(err, announce())
		}
	}
	w.follow()
	// Also where a directory is missing: the others are there.
	if w.Restore != nil {
		w.Restore(bounded)
	}
	restarting, wait, failed := w.restart(bounded, without)
	err = errors.Join(err, failed)
	switch {
	case ctx.Err() != nil:
		return 0 // the daemon is ending: the restart has come about
	case err != nil:
		w.say(err)
		w.delay = min(max(2*w.delay, pause), slowestRetry)
		return w.delay
	case restarting:
		return actTime // where that does not come about
	case wait > 0:
		return wait
	}
	w.said, w.delay = "", 0
	return 0
}

// lost are the directories that have been removed or moved, or have something else in their
// place.
func (w *Watcher) lost() (lost []string) {
	for _, dir := range w.Directories {
		was, made := w.made[dir]
		if !made {
			continue
		}
		if of, there := look(dir); !there || of != was || w.moved[dir] {
			lost = append(lost, dir)
		}
	}
	return lost
}

// directories has systemd make directories anew, and mount them in the sandbox. The error is about
// those for which that fails.
func (w *Watcher) directories(ctx context.Context) error {
	lost := w.lost()
	if len(lost) == 0 {
		return nil
	}
	if err := w.Units.Reload(ctx, w.MakerUnit); err != nil {
		return fmt.Errorf("somebody has removed %s: %w", strings.Join(lost, " and "), err)
	}
	var mounted []string
	var errs []error
	for _, dir := range lost {
		err := w.Units.Bind(ctx, w.Unit, dir)
		of, there := look(dir)
		if err == nil && !there {
			err = fs.ErrNotExist
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("somebody has removed %s: %w", dir, err))
			continue
		}
		w.made[dir] = of
		delete(w.moved, dir)
		mounted = append(mounted, dir)
	}
	if len(mounted) > 0 {
		w.Log.Warn("Somebody has removed "+strings.Join(mounted, " and ")+"; had systemd make that anew", "directories", mounted)
	}
	return errors.Join(errs...)
}

// restart has the service restarted where a directory is not to be had without that, or the file of
// a socket has been removed; or it returns the time to wait with that.
func (w *Watcher) restart(ctx context.Context, without error) (restarting bool, wait time.Duration, err error) {
	lost, units := w.lostSockets()
	why := without
	if len(lost) > 0 {
		why = errors.Join(why, fmt.Errorf("somebody has removed %s", strings.Join(lost, " and ")))
	}
	if why == nil {
		return false, 0, nil
	}
	if wait := youngTime - time.Since(w.began); wait > 0 {
		return false, wait, nil
	}
	for _, unit := range units {
		if err == nil {
			err = w.Units.Stop(ctx, unit)
		}
	}
	if err == nil {
		w.Log.Warn("Restarting to have files made anew", "reason", why.Error())
		err = w.Units.RestartIfActive(ctx, w.Unit)
	}
	if err != nil {
		units = append(units, w.Unit)
		return false, 0, fmt.Errorf("%w: run systemctl stop %s; systemctl start %s: %w", why, strings.Join(units, " "), w.Unit, err)
	}
	return true, 0, nil
}

// lostSockets are files of sockets that have been removed, and their units.
func (w *Watcher) lostSockets() (lost, units []string) {
	for _, unit := range slices.Sorted(maps.Keys(w.Sockets)) {
		before := len(lost)
		for _, file := range w.Sockets[unit] {
			if _, err := os.Lstat(file); w.files[file] && errors.Is(err, fs.ErrNotExist) {
				lost = append(lost, file)
			}
		}
		if len(lost) > before {
			units = append(units, unit)
		}
	}
	return lost, units
}

// say says what does not succeed, once.
func (w *Watcher) say(err error) {
	text := err.Error()
	if w.said == text {
		w.Log.Debug("still failing", "reason", text)
		return
	}
	w.said = text
	w.Log.Warn("Failed to have files made anew; trying again", "reason", text)
}
