package networkd

import (
	"context"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// Units asks systemd to do something about units, over the connection of a Client. Where a job
// for the unit is under way that is of another mind, systemd refuses.
type Units struct{ Client *Client }

// Reload has a unit reload, and waits until it has.
func (u Units) Reload(ctx context.Context, unit string) error {
	return u.job(ctx, "ReloadUnit", unit, func(state string) bool { return state != "reloading" })
}

// Stop stops a unit, and waits until it is.
func (u Units) Stop(ctx context.Context, unit string) error {
	return u.job(ctx, "StopUnit", unit, func(state string) bool { return state == "inactive" || state == "failed" })
}

// RestartIfActive restarts a unit if it is active, and does not wait for that: it may be the
// caller's own.
func (u Units) RestartIfActive(ctx context.Context, unit string) error {
	return u.job(ctx, "TryRestartUnit", unit, nil)
}

// Bind mounts a directory of the host over the same path in the mount namespace of a service, until
// its process ends (systemctl bind, from systemd 248 on).
func (u Units) Bind(ctx context.Context, unit, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := u.Client.connection(ctx)
	if err != nil {
		return err
	}
	const readOnly, mkdir = false, false
	if err := systemd(conn).CallWithContext(ctx, systemdManager+".BindMountUnit", 0, unit, dir, dir, readOnly, mkdir).Err; err != nil {
		return fmt.Errorf("having systemd mount %s for %s: %w", dir, unit, err)
	}
	return nil
}

// job asks for a job, and waits until it is done and the state will do; nil for not to wait.
func (u Units) job(ctx context.Context, method, unit string, will func(state string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := u.Client.connection(ctx)
	if err != nil {
		return err
	}
	var queued dbus.ObjectPath
	if err := systemd(conn).CallWithContext(ctx, systemdManager+"."+method, 0, unit, "fail").Store(&queued); err != nil {
		return fmt.Errorf("asking systemd for %s of %s: %w", method, unit, err)
	}
	if will == nil {
		return nil
	}
	if _, err := waitFor(ctx, conn, unit, will); err != nil {
		return fmt.Errorf("waiting for %s of %s: %w", method, unit, err)
	}
	return nil
}
