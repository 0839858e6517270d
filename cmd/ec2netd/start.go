package main

import (
	"fmt"
	"log/slog"
	"os"

	"ec2netd/service/store"
)

// startUnit runs this program with --before-networkd before networkd starts.
const startUnit = "ec2netd-networkd-start.service"

// beforeNetworkd puts in place what the daemon has prepared for the start of networkd (E7). What
// it must take away again, on 252, is there only while it runs.
func beforeNetworkd(log *slog.Logger) error {
	_, notRunning := os.Stat(runsLink)
	if err := (&store.Store{}).Start(notRunning == nil); err != nil {
		return fmt.Errorf("%w: it is prepared again when ec2netd has seen networkd start", err)
	}
	log.Debug("networkd may start")
	return nil
}
