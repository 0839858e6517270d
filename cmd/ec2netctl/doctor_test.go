package main

import (
	"strings"
	"testing"
	"time"

	"ec2netd/api/apitest"
	"ec2netd/service/doctor"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// healthy is an instance on which there is nothing to do.
func healthy() *doctor.Facts {
	f := &doctor.Facts{
		Daemon: doctor.Daemon{State: online()}, Systemd: "257.13-1~deb13u1",
		Links: []doctor.Link{{Name: "ens5", Group: plan.Group, ReversePath: 2}, {Name: "ens6", Group: plan.Group}},
		Probes: []doctor.Probe{
			{Path: metadata.Path{Device: "ens5", Endpoint: metadata.EndpointIPv4}, Took: 2 * time.Millisecond},
			{Path: metadata.Path{Device: "ens5", Endpoint: metadata.EndpointIPv6}, Error: "no route"},
		},
	}
	for _, name := range []string{
		"systemd-networkd.service", "systemd-networkd-wait-online.service", "systemd-resolved.service", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket",
	} {
		f.Units = append(f.Units, networkd.UnitState{Name: name, Load: "loaded", Active: "active", File: "enabled", Preset: "enabled"})
	}
	return f
}

func TestFindings(t *testing.T) { // H5
	s := healthy()
	s.Daemon.State = apitest.State()
	s.Systemd = "252.39-1~deb12u2"
	s.Conflicts = []state.Conflict{{Name: "NetworkManager", Evidence: []string{"NetworkManager.service is active", "it manages ens6\x1b[2J"}, Advice: "systemctl disable --now NetworkManager.service"}}
	c := &ctl{environment: environment{width: 100}}
	golden(t, c.describeFindings(doctor.Diagnose(s)))
	c.uid = 1000
	if out := c.describeFindings(doctor.Diagnose(s)); !strings.HasSuffix(out, "\n2 problems, 1 warning.\nCommands that change something are for root.\n") {
		t.Error(out)
	}
	if out := c.describeFindings(doctor.Diagnose(healthy())); !strings.HasSuffix(out, "\nNothing to do.\n") || strings.Contains(out, "→") {
		t.Error(out)
	}
}
