package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctlPath returns the file of an IPv6 sysctl, which belongs to the network namespace of
// the thread that opens it.
func sysctlPath(link, name string) string {
	return filepath.Join("/proc/sys/net/ipv6/conf", link, name)
}

func sysctl(t *testing.T, link, name, value string) {
	t.Helper()
	if err := os.WriteFile(sysctlPath(link, name), []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A13: the snapshot shows whether a link has IPv6, whichever sysctl has switched it off.
func TestObserveIPv6(t *testing.T) {
	own(t)
	ens5, ens6 := newLink(t, "ens5"), newLink(t, "ens6")
	observer, err := NewObserver([]string{"veth"})
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close()
	check := func(when string, want map[int]IPv6) {
		t.Helper()
		snapshot, err := observer.Observe()
		if err != nil {
			t.Fatal(err)
		}
		for index, ipv6 := range want {
			at := slices.IndexFunc(snapshot.Links, func(l Link) bool { return l.Index == index })
			if at < 0 || snapshot.Links[at].IPv6 != ipv6 {
				t.Errorf("%s: link %d: %+v, want %d", when, index, snapshot.Links, ipv6)
			}
		}
	}
	check("at first", map[int]IPv6{ens5: IPv6On, ens6: IPv6On})
	sysctl(t, "ens6", "disable_ipv6", "1")
	check("off on one", map[int]IPv6{ens5: IPv6On, ens6: IPv6OffLink})
	sysctl(t, "all", "disable_ipv6", "1")
	check("off on all", map[int]IPv6{ens5: IPv6OffLink, ens6: IPv6OffLink})
	check("off by default", map[int]IPv6{newLink(t, "ens7"): IPv6OffLink})
	sysctl(t, "ens5", "disable_ipv6", "0")
	check("on again", map[int]IPv6{ens5: IPv6On, ens6: IPv6OffLink})
	if err := netlink.LinkSetMTU(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ens5}}, 1000); err != nil {
		t.Fatal(err)
	}
	check("with a small MTU", map[int]IPv6{ens5: IPv6None})
}

// A13: switching IPv6 on or off is an event, even if no address is added.
func TestWatchIPv6(t *testing.T) {
	own(t)
	newLink(t, "ens5")
	// The files belong to this thread's network namespace, whichever thread writes to them.
	files := make(map[string]*os.File)
	for _, name := range []string{"disable_ipv6", "addr_gen_mode"} {
		file, err := os.OpenFile(sysctlPath("ens5", name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files[name] = file
	}
	w := NewWatcher([]string{"veth"}, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	go func() {
		defer stop()
		<-w.Ready()
		set := func(name, value string) {
			if _, err := files[name].WriteAt([]byte(value), 0); err != nil {
				t.Error(err)
			}
		}
		// event waits for an event, and for the end of those that follow it.
		event := func(what string) {
			select {
			case <-w.Changed():
			case <-ctx.Done():
				t.Errorf("%s is no event", what)
				return
			}
			for {
				select {
				case <-w.Changed():
				case <-time.After(1500 * time.Millisecond): // duplicate address detection takes 1 s
					return
				}
			}
		}
		event("the start")
		set("disable_ipv6", "1")
		event("IPv6 off")
		set("addr_gen_mode", "1") // as networkd configures a link without a link-local address
		set("disable_ipv6", "0")
		event("IPv6 on")
	}()
	if err := w.Run(ctx); err != nil {
		t.Error(err)
	}
}

// A13: the answer of a kernel that was booted with ipv6.disable=1.
func TestWithoutIPv6(t *testing.T) {
	refuses := func(family byte, refusal error) dumping {
		return func(kind uint16, header []byte, start func(), each func(item []byte)) error {
			start()
			if header[0] == family {
				return refusal
			}
			if kind == unix.RTM_GETRULE {
				rule := make([]byte, ruleSize, ruleSize+8)
				rule[0], rule[4], rule[7] = header[0], 77, toTable
				rule = binary.NativeEndian.AppendUint16(rule, 8)
				rule = binary.NativeEndian.AppendUint16(rule, unix.FRA_PRIORITY)
				each(binary.NativeEndian.AppendUint32(rule, 7))
				return nil
			}
			route := make([]byte, unix.SizeofRtMsg, unix.SizeofRtMsg+8)
			route[0], route[4], route[7] = header[0], MainTable, header[7]
			route = binary.NativeEndian.AppendUint16(route, 8)
			route = binary.NativeEndian.AppendUint16(route, unix.RTA_OIF)
			if header[7] == unix.RTN_UNICAST {
				each(binary.NativeEndian.AppendUint32(route, 3))
			}
			return nil
		}
	}
	for _, refusal := range []error{unix.EAFNOSUPPORT, unix.EOPNOTSUPP} {
		dump := refuses(unix.AF_INET6, refusal)
		rules, ipv6, err := listRules(dump, 0)
		if err != nil || ipv6 != IPv6OffHost || len(rules) != 1 || !rules[0].IPv4 {
			t.Errorf("%v: rules %+v, %d, %v", refusal, rules, ipv6, err)
		}
		snapshot := &Snapshot{Links: []Link{{Index: 3}}}
		want := Route{Link: 3, Table: MainTable, Destination: netip.MustParsePrefix("0.0.0.0/0")}
		if _, err := listRoutes(dump, snapshot); err != nil || !slices.Equal(snapshot.Routes, []Route{want}) {
			t.Errorf("%v: routes %+v, %v", refusal, snapshot.Routes, err)
		}
	}
	// Any other answer is a failure, and IPv4 is not optional.
	for family, refusal := range map[byte]error{unix.AF_INET6: unix.EPERM, unix.AF_INET: unix.EAFNOSUPPORT} {
		if _, _, err := listRules(refuses(family, refusal), 0); !errors.Is(err, refusal) {
			t.Errorf("rules of family %d: %v, want %v", family, err, refusal)
		}
		if _, err := listRoutes(refuses(family, refusal), &Snapshot{}); !errors.Is(err, refusal) {
			t.Errorf("routes of family %d: %v, want %v", family, err, refusal)
		}
	}
	rules, ipv6, err := listRules(refuses(0, nil), 0)
	if err != nil || ipv6 != IPv6On || len(rules) != 2 {
		t.Errorf("rules %+v, %d, %v", rules, ipv6, err)
	}
}

// A13: a link with IPv6 counts as such, whatever the kernel reports about policy rules.
func TestOffHost(t *testing.T) {
	links := []Link{{IPv6: IPv6None}, {IPv6: IPv6On}, {IPv6: IPv6OffLink}}
	offHost(links, IPv6On)
	if want := []Link{{IPv6: IPv6None}, {IPv6: IPv6On}, {IPv6: IPv6OffLink}}; !reflect.DeepEqual(links, want) {
		t.Errorf("on a host with IPv6: %+v", links)
	}
	offHost(links, IPv6OffHost)
	if want := []Link{{IPv6: IPv6OffHost}, {IPv6: IPv6On}, {IPv6: IPv6OffLink}}; !reflect.DeepEqual(links, want) {
		t.Errorf("on a host without: %+v", links)
	}
}
