package agent

import (
	"context"
	"time"

	"ec2netd/service/schedule"
	"ec2netd/service/status"
)

// Restore writes files of the daemon's again that somebody has removed, and returns when that is
// done (F12). The agent must run. Whatever is missing is seen by the next pass in any case; this
// is for whoever is told of it.
func (a *Agent) Restore(ctx context.Context) {
	done := make(chan struct{})
	select {
	case a.restores <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// restoreAll makes a pass, which restores the generated files, and has the daemon's own looked
// for.
func (a *Agent) restoreAll(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	a.prepared = 0
	a.pass(ctx)
	for _, f := range a.storedFiles() {
		f.Hurry()
	}
	a.keep(time.Now())
}

// restore writes generated files again that somebody has removed, as they were: the plan follows
// from what is on disk. It reports whether they are there.
func (a *Agent) restore() bool {
	written, err := a.Store.Restore()
	if len(written) > 0 {
		a.Log.Warn("Somebody has removed generated files: "+status.Few(written)+"; wrote them again", "files", written)
		a.restored = append(a.restored, written...)
		a.seen = a.seen.With(a.Files.Tree())
	}
	return err == nil || a.stored(err)
}

// stored notes whether generated files could be written, and reports it.
func (a *Agent) stored(err error) bool {
	if err == nil {
		a.storeErr, a.storeTry = "", schedule.Try{}
		a.said.Clear("store")
		return true
	}
	a.storeErr = err.Error()
	if now := time.Now(); !now.Before(a.storeTry.Next) {
		a.storeTry.Delay = schedule.Double(a.storeTry.Delay, firstStore, slowestStore)
		a.storeTry.Next = now.Add(a.storeTry.Delay)
	}
	a.said.Warn("store", "Cannot write configuration files; trying again", "reason", err.Error())
	return false
}
