package networkd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// instance is a root with networkd's state directory.
func instance(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, netifPath, "links"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// A bus that takes connections and says nothing, as a socket does whose daemon does not
// run yet, holds nobody up for long.
func TestSilentBus(t *testing.T) {
	root := instance(t)
	socket := filepath.Join(root, "bus")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c := &Client{Address: "unix:path=" + socket, Root: root}
	defer c.Close()
	done := make(chan error, 1)
	go func() {
		_, err := c.Owner(t.Context())
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, ErrNoBus) {
			t.Errorf("Owner: %v", err)
		}
	case <-time.After(10 * dialTimeout):
		t.Fatal("Owner does not return")
	}
}

// Before networkd has run, nobody is asked.
func TestBeforeNetworkd(t *testing.T) {
	c := &Client{Address: "unix:path=/nonexistent", Root: t.TempDir()}
	if owner, err := c.Owner(t.Context()); owner != "" || err != nil {
		t.Errorf("%q, %v", owner, err)
	}
	c.Root = instance(t)
	if _, err := c.Owner(t.Context()); !errors.Is(err, ErrNoBus) {
		t.Errorf("without a bus: %v", err)
	}
}

func TestLink(t *testing.T) {
	root := instance(t)
	text := "# This is private data. Do not parse.\nADMIN_STATE=configured\nNETWORK_FILE=/run/systemd/network/70-ens6.network\nNETWORK_FILE_DROPINS=\"\"\nDHCP_LEASE=/run/systemd/netif/leases/3\nDOMAINS=example.com\\032corp.example\n"
	for file, content := range map[string]string{"links/3": text, "leases/3": "ADDRESS=10.0.1.11\nMTU=9001\nT1=1800\nDOMAINNAME=example.com\\032corp.example\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, netifPath, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, netifPath, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := &Client{Root: root}
	if got, want := c.Link(3), (LinkState{Administrative: "configured", File: "/run/systemd/network/70-ens6.network",
		Lease: Lease{Known: true, MTU: 9001, Domains: "example.com corp.example"}, Domains: "example.com corp.example"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := c.Link(4); got != (LinkState{}) {
		t.Errorf("a link that networkd does not know: %+v", got)
	}
}

// D14: what a DHCP server says becomes a line of a unit file, or nothing.
func TestDomains(t *testing.T) {
	for name, want := range map[string]string{
		"ec2.internal":                     "ec2.internal",
		`example.com\032corp.example`:      "example.com corp.example",
		`a\032\032b\032`:                   "a b",
		`a\010[Route]`:                     "",
		`a\032b;c`:                         "",
		"..":                               "",
		"":                                 "",
		strings.Repeat("a", 254):           "",
		`x\032` + strings.Repeat("a", 254): "",
	} {
		if got := domains(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
