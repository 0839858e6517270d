package main

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// rounds of each figure; the median is reported.
const rounds = 5

// BenchmarkLabHotplug times the main job on each systemd, from the moment that the
// ENI is plugged in until its addresses and rules are in the kernel. The oracle is
// networkd's own limit: the same files written at once by hand, and one reload.
// Figures are medians, in milliseconds; the ratio is of daemon and oracle in the same
// round, since machines are noisy.
func BenchmarkLabHotplug(b *testing.B) {
	for _, suite := range vpc.Suites {
		b.Run(suite.Name, func(b *testing.B) {
			for range b.N {
				hotplugs(b, suite.Name)
			}
		})
	}
}

func hotplugs(b *testing.B, suite string) {
	l := boot(b, suite, nil)
	l.configured("ens5")
	handle, err := l.inst.Netlink()
	if err != nil {
		b.Fatal(err)
	}
	defer handle.Close()
	eni := l.attach(hotplugSpec())
	l.configured(eni.ID())
	// The files of the daemon are those of the oracle.
	l.run("sh", "-c", "mkdir /run/oracle && cp -a /run/systemd/network/70-"+eni.Name()+".* /run/oracle/")
	detach := func() {
		if err := eni.Detach(b.Context()); err != nil {
			b.Fatal(err)
		}
		l.until("the rules of the ENI are gone", func() (bool, error) { return len(l.rules(10001)) == 0, nil })
	}
	attach := func() time.Time {
		began := time.Now()
		if err := eni.Reattach(b.Context(), eni.Name()); err != nil {
			b.Fatal(err)
		}
		return began
	}
	var daemon, oracle, ratio, requests, refresh []float64
	for range rounds {
		detach()
		l.until("the daemon knows", func() (bool, error) { return len(l.describe().Interfaces) == 1, nil })
		// networkd would know the files of the last round otherwise, which the oracle's
		// does not either.
		l.run("networkctl", "reload")
		before := len(l.inst.Metadata().Requests())
		began := attach()
		l.applied(handle, eni)
		took := time.Since(began)
		count := imds.Count(l.inst.Metadata().Requests()[before:])
		l.configured(eni.ID())

		// H3: an address assigned, and a Refresh that waits for it.
		added, err := eni.AssignIPv4(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		l.run("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Refresh", "b", "true")
		refresh = append(refresh, ms(time.Since(began)))
		if !slices.Contains(l.addresses(eni.Name()), added[0]) {
			b.Errorf("after Refresh %s is not there", added[0])
		}
		if err := eni.UnassignIPv4(b.Context(), added...); err != nil {
			b.Fatal(err)
		}
		detach()

		l.run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		l.run("sh", "-c", "rm -rf /run/systemd/network/70-"+eni.Name()+".*; networkctl reload")
		began = attach()
		l.run("sh", "-c", "cp -a /run/oracle/* /run/systemd/network/ && networkctl reload")
		l.applied(handle, eni)
		limit := time.Since(began)
		detach()
		l.run("sh", "-c", "rm -rf /run/systemd/network/70-"+eni.Name()+".*; networkctl reload")
		l.run("systemctl", "start", "ec2netd.service")
		l.configured("ens5")
		attach()
		l.configured(eni.ID())

		daemon, oracle = append(daemon, ms(took)), append(oracle, ms(limit))
		ratio, requests = append(ratio, ms(took)/ms(limit)), append(requests, float64(count.Total))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(daemon), "hotplug-ms")
	b.ReportMetric(median(oracle), "oracle-ms")
	b.ReportMetric(median(ratio), "hotplug/oracle")
	b.ReportMetric(slices.Max(requests), "requests-max")
	b.ReportMetric(median(refresh), "refresh-ms")
}

// applied waits until the kernel has all addresses and rules of an ENI.
func (l *lab) applied(handle *netlink.Handle, eni *vpc.ENI) {
	l.t.Helper()
	want := sources(eni)
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	err := vpc.Until(ctx, "addresses and rules of "+eni.Name()+" are in the kernel", func() (bool, error) {
		link, err := handle.LinkByName(eni.Name())
		if err != nil {
			return false, nil //nolint:nilerr // the link is only coming
		}
		addresses, err := handle.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return false, err
		}
		rules, err := handle.RuleList(netlink.FAMILY_ALL)
		if err != nil {
			return false, err
		}
		var has, from []string
		for _, a := range addresses {
			has = append(has, a.IP.String())
		}
		for _, r := range rules {
			if r.Priority == 10001 && r.Src != nil {
				if ones, bits := r.Src.Mask.Size(); ones == bits {
					from = append(from, r.Src.IP.String())
				} else {
					from = append(from, r.Src.String())
				}
			}
		}
		slices.Sort(from)
		for _, a := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			if !slices.Contains(has, a.String()) {
				return false, nil
			}
		}
		return slices.Equal(from, want), nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
