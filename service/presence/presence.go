// Package presence restores the daemon's directories, files and sockets while it runs if somebody
// removes them (F12).
//
// inotify reports removals, so the package costs nothing while nobody removes anything. An event
// carries no data: it only requests a look at everything. The loop writes generated files and the
// daemon's own state again, since it knows their content. The rest requires systemd:
//
//   - Directories. They are mounted in the daemon's sandbox, each onto itself, and everything else
//     in /run is read-only there. If the host's directory has been removed, the daemon can neither
//     create it nor write to a new one. systemd creates it (MakerUnit), and mounts it in the sandbox
//     of the daemon, as "systemctl bind" does. This ends no connection of a client, and the daemon
//     keeps its state.
//   - Sockets. Only their units can create them again, and only while the service does not run. The
//     watcher stops the units and restarts the service, which starts them. This comes last, after
//     everything else is written.
//
// The package does not know the content of files, and decides nothing about links.
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

	"ec2netd/service/schedule"
)

// Delays of looks and attempts.
const (
	// settleTime gives whoever removes something the time to continue.
	settleTime = 50 * time.Millisecond
	// pause is the least time between two looks, in case somebody removes things repeatedly.
	pause = time.Second
	// slowestRetry bounds the time between two failed attempts; the first retry is after pause.
	slowestRetry = time.Minute
	// youngTime is the least time that the daemon has run when it asks for a restart, so that
	// useless restarts do not follow each other at once.
	youngTime = 2 * time.Second
	// actTime bounds one attempt. systemd is quick, unless it is shutting down.
	actTime = 30 * time.Second
)

// Units are the requests to systemd.
type Units interface {
	// Reload reloads a unit, and waits until it has finished.
	Reload(ctx context.Context, unit string) error
	// Bind mounts a directory of the host in the sandbox of a running service.
	Bind(ctx context.Context, unit, dir string) error
	// Stop stops a unit, and waits until it has finished.
	Stop(ctx context.Context, unit string) error
	// RestartIfActive restarts a unit unless it is stopped or stopping. It does not wait.
	RestartIfActive(ctx context.Context, unit string) error
}

// Options of a [Watcher].
type Options struct {
	// Unit is the daemon's own service. Reloading MakerUnit creates the directories.
	Unit, MakerUnit string
	Units           Units
	// Directories to which the daemon writes. A directory that is missing at the start is ignored.
	Directories []string
	// Sockets maps the socket units to their files: the socket itself, which must be visible for
	// the daemon, and symlinks to it, of which only those that exist at the start count.
	Sockets map[string][]string
	// Links maps the daemon's own symlinks to the functions that create them.
	Links map[string]func() error
	// Restore writes missing files again, and returns when this is done; nil for no files.
	Restore func(ctx context.Context)
	Log     *slog.Logger
}

// Watcher is a task of the daemon.
type Watcher struct {
	Options
	// made are the directories as they were last created, and files the files of Sockets that
	// count.
	made  map[string]identity
	files map[string]bool
	// moved are directories that somebody has moved: they may still be mounted in the sandbox.
	moved map[string]bool
	watch *watch
	began time.Time
	said  string
	delay time.Duration
}

// identity identifies a file.
type identity struct{ dev, ino uint64 }

// look returns the file at a path without following symlinks. It returns false for no file, and for
// a directory that has been removed and is still mounted.
func look(path string) (identity, bool) {
	var of unix.Stat_t
	if err := unix.Lstat(path, &of); err != nil || of.Nlink == 0 {
		return identity{}, false
	}
	return identity{of.Dev, of.Ino}, true
}

// New returns a watcher for the files that exist now.
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

// String returns the name of the task.
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

// run watches until inotify fails or ctx ends.
func (w *Watcher) run(ctx context.Context) error {
	watch, err := newWatch()
	if err != nil {
		return err
	}
	defer watch.close()
	w.watch = watch
	w.follow()
	// Files may have been removed before the watch.
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

// matters reads events, and reports whether something may have been removed.
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
			// The daemon, or somebody else, is about to rename this file.
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

// follow adds watches for all existing files.
func (w *Watcher) follow() {
	for _, dir := range w.Directories {
		w.watch.tree(dir)
	}
	for file := range w.files {
		w.watch.single(file)
	}
}

// mend looks for missing files, and restores them. It returns the time until the next attempt, 0 if
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
	// Restore files even if a directory is missing: the others exist.
	if w.Restore != nil {
		w.Restore(bounded)
	}
	restarting, wait, failed := w.restart(bounded, without)
	err = errors.Join(err, failed)
	switch {
	case ctx.Err() != nil:
		return 0 // the daemon is ending because of the restart
	case err != nil:
		w.say(err)
		w.delay = schedule.Double(w.delay, pause, slowestRetry)
		return w.delay
	case restarting:
		return actTime // in case the restart does not happen
	case wait > 0:
		return wait
	}
	w.said, w.delay = "", 0
	return 0
}

// lost returns the directories that have been removed, moved or replaced.
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

// directories makes systemd create missing directories, and mount them in the sandbox. The error
// names those for which this fails.
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

// restart restarts the service if a directory is not available otherwise, or if the file of a
// socket has been removed. It may return a time to wait first.
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

// lostSockets returns the removed files of sockets, and their units.
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

// say logs an error once.
func (w *Watcher) say(err error) {
	text := err.Error()
	if w.said == text {
		w.Log.Debug("still failing", "reason", text)
		return
	}
	w.said = text
	w.Log.Warn("Failed to have files made anew; trying again", "reason", text)
}
