package main

import (
	"log/slog"
	"net"
	"strings"

	"ec2netd/service/agent"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/presence"
	"ec2netd/service/systemd"
	"ec2netd/service/udev"
)

// Files that the units make: socketUnits are the sockets by their name for the service, and
// registryLink is Symlinks= of ec2netd.socket.
var socketUnits = map[string]string{socketName: systemd.Socket, metricsName: systemd.MetricsSocket}

const registryLink = "/run/varlink/registry/org.ec2netd.Network"

// ownDirectories are those that releaseUnit makes.
var ownDirectories = []string{plan.Directory, "/run/ec2netd", "/var/lib/ec2netd"}

// presenceOf has what is removed of the daemon's own made anew (F12). The loop is nil where nothing
// is configured.
func presenceOf(listeners map[string]net.Listener, loop *agent.Agent, bus *networkd.Client, log *slog.Logger) *presence.Watcher {
	options := presence.Options{
		Unit: ownUnit, MakerUnit: releaseUnit, Units: networkd.Units{Client: bus}, Directories: ownDirectories,
		Sockets: make(map[string][]string), Links: map[string]func() error{runsLink: announce}, Log: log,
	}
	for name, listener := range listeners {
		// An administrator may have it elsewhere, where the sandbox shows nothing.
		if file := listener.Addr().String(); strings.HasPrefix(file, "/run/") {
			options.Sockets[socketUnits[name]] = []string{file}
			if name == socketName {
				options.Sockets[socketUnits[name]] = []string{file, registryLink}
			}
		}
	}
	if loop != nil {
		options.Restore = loop.Restore
		options.Links[cloudInitLink] = func() error { return leaveNetwork("/") }
	}
	return presence.New(options)
}

// announce tells udevd that the daemon runs.
func announce() error { return udev.Announce(runsLink, plan.NoPolicy) }
