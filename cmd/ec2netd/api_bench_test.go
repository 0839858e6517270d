package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// BenchmarkLabAPI times what clients wait for, on an instance with 15 ENIs of 50
// addresses: the description of everything by either API, which is to take at most 10 ms,
// and a Refresh of one ENI that waits, after an address was assigned: at most 300 ms.
// Figures are medians, in milliseconds. The clients are in this process, so that the
// start of busctl is not counted.
func BenchmarkLabAPI(b *testing.B) {
	for _, suite := range vpc.Suites {
		b.Run(suite.Name, func(b *testing.B) {
			for range b.N {
				asks(b, suite.Name)
			}
		})
	}
}

func asks(b *testing.B, suite string) {
	const enis, addresses, times = 15, 50, 21
	l := boot(b, suite, nil)
	l.configured("ens5")
	var last *vpc.ENI
	for range enis - 1 {
		last = l.attach(vpc.ENISpec{IPv4Count: addresses})
	}
	l.until(fmt.Sprintf("%d ENIs are configured", enis), func() (bool, error) {
		s, err := l.tryDescribe()
		return err == nil && len(s.Interfaces) == enis && !slices.ContainsFunc(s.Interfaces, func(i state.Interface) bool {
			return i.State != state.ENIConfigured || slices.ContainsFunc(i.Items, func(item state.Item) bool {
				return item.Kind == state.ItemRule && item.Networkd != state.Yes
			})
		}), nil
	})
	root := fmt.Sprintf("/proc/%d/root", l.inst.Leader())
	conn, err := dbus.Connect("unix:path=" + root + "/run/dbus/system_bus_socket")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	link, err := net.Dial("unix", root+"/run/ec2netd/org.ec2netd.Network")
	if err != nil {
		b.Fatal(err)
	}
	defer link.Close()
	replies := bufio.NewReader(link)
	manager := conn.Object("org.ec2netd1", "/org/ec2netd1")

	var overBus, overVarlink, refresh []float64
	size := 0
	for range times {
		var text string
		began := time.Now()
		if err := manager.CallWithContext(b.Context(), "org.ec2netd1.Manager.Describe", 0).Store(&text); err != nil {
			b.Fatal(err)
		}
		overBus = append(overBus, ms(time.Since(began)))
		size = len(text)

		// The text alone, as over D-Bus: what a client makes of it is its own.
		began = time.Now()
		if _, err := link.Write([]byte(`{"method":"org.ec2netd.Network.Describe"}` + "\x00")); err != nil {
			b.Fatal(err)
		}
		reply, err := replies.ReadBytes(0)
		if err != nil {
			b.Fatal(err)
		}
		overVarlink = append(overVarlink, ms(time.Since(began)))
		if !json.Valid(reply[:len(reply)-1]) || len(reply) < size/2 {
			b.Fatalf("Varlink described in %d bytes what D-Bus did in %d", len(reply), size)
		}
	}
	for range rounds {
		if err := last.UnassignIPv4(b.Context(), last.IPv4()[len(last.IPv4())-1]); err != nil {
			b.Fatal(err)
		}
		l.refresh(b.Context(), manager)
		added, err := last.AssignIPv4(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		l.refresh(b.Context(), manager)
		refresh = append(refresh, ms(time.Since(began)))
		if !slices.Contains(l.addresses(last.Name()), added[0]) {
			b.Errorf("after Refresh %s is not there", added[0])
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(overBus), "describe-dbus-ms")
	b.ReportMetric(median(overVarlink), "describe-varlink-ms")
	b.ReportMetric(float64(size)/1000, "describe-kB")
	b.ReportMetric(median(refresh), "refresh-15x50-ms")
}

func (l *lab) refresh(ctx context.Context, manager dbus.BusObject) {
	l.t.Helper()
	var text string
	if err := manager.CallWithContext(ctx, "org.ec2netd1.Manager.Refresh", 0, true).Store(&text); err != nil {
		l.t.Fatal(err)
	}
}
