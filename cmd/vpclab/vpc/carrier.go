package vpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// SetCarrier removes the carrier of the ENI's link, or restores it; the link stays in
// the instance, as when the ENA driver resets its device. A link that is plugged in
// again has its carrier.
func (e *ENI) SetCarrier(on bool) error {
	link := e.vpc.thread.link
	l, err := link.LinkByName(e.port)
	if err == nil {
		// One end of a veth pair has a carrier if the other end is up.
		if on {
			err = link.LinkSetUp(l)
		} else {
			err = link.LinkSetDown(l)
		}
	}
	if r := e.inst.current(); err == nil && r != nil && r.machine != nil {
		err = r.machine.setCarrier(e.vpc.life, e, on)
	}
	switch {
	case linkGone(err):
		return fmt.Errorf("changing the carrier of %s: its link is not plugged in, or the instance is off", e.id)
	case err != nil:
		return fmt.Errorf("changing the carrier of %s: %w", e.id, err)
	}
	return nil
}

// NoCarrier reports whether the ENI's link is plugged in, but without its carrier.
func (e *ENI) NoCarrier() bool {
	l, err := e.vpc.thread.link.LinkByName(e.port)
	return err == nil && l.Attrs().Flags&net.FlagUp == 0
}

// Blip removes the carrier for a time, like an ENA reset. It returns when the carrier
// is restored, also if ctx ends.
func (e *ENI) Blip(ctx context.Context, d time.Duration) error {
	if err := e.SetCarrier(false); err != nil {
		return err
	}
	var err error
	select {
	case <-time.After(d):
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return errors.Join(err, e.SetCarrier(true))
}
