package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ec2netd/service/networkd"
	"ec2netd/service/store"
)

// The time that a release may take: TimeoutStopSec= of its unit is a little longer. It tries
// again in between, as the bus and networkd may be starting.
const (
	releaseTime  = 12 * time.Second
	releasePause = 200 * time.Millisecond
)

// release removes the unit by which networkd leaves new ENIs alone, and tells networkd to
// reload, if the daemon has ended and is not about to be started again. ENIs that are waiting
// for the daemon get their own unit or the base unit by that. Others that come get the base
// unit without this (E9), see plan.HoldProperty.
//
// It reloads also where the unit is gone already: the daemon may have ended between a change
// of a file and the reload. A reload in which no file changed touches no link (facts: reload).
func release(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	files, bus := &store.Store{}, &networkd.Client{}
	defer bus.Close()
	if bus.Returns(ctx, ownUnit) {
		log.Debug("ec2netd is about to start again")
		return nil
	}
	if err := returnNetwork("/"); err != nil {
		log.Warn("cloud-init and ifupdown leave the network alone until the next boot", "reason", err.Error())
	}
	if err := files.Release(); err != nil {
		return fmt.Errorf("%w: remove it and run networkctl reload", err)
	}
	for !bus.Gone() { // one that starts reads its files
		owner, err := bus.Owner(ctx)
		if err == nil && owner != "" {
			err = bus.Reload(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: run networkctl reload", err)
		case <-time.After(releasePause):
		}
	}
	return nil
}
