package disk

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
)

// ownSite is a site with the generated files of a link.
func ownSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	write(t, s.at(base), "[Match]\nDriver=ena\n")
	link(t, s.at(dropin.NetworkPath("ens6")), base)
	write(t, s.at(dropin.NetworkDropIn("ens6")), "[Match]\nPermanentMACAddress=02:00:00:00:00:01\n")
	write(t, s.at(dropin.HoldPath), "[Match]\nName=ens7\n")
	write(t, s.at(dropin.BaseDropIn), "[Network]\nKeepConfiguration=yes\n")
	return s
}

// hasOwn checks that the generated files are in a tree.
func hasOwn(t *testing.T, s *site, when string) {
	t.Helper()
	tree := s.Tree()
	if got := tree.Network("ens6").MACAddress(); got != "02:00:00:00:00:01" {
		t.Errorf("%s: the drop-in is for %q", when, got)
	}
	for _, p := range []string{dropin.HoldPath, dropin.BaseDropIn} {
		if tree.Read(p) == "" {
			t.Errorf("%s: no %s", when, p)
		}
	}
	if len(tree.Generated()) != 1 {
		t.Errorf("%s: generated for %v", when, tree.Generated())
	}
}

// E6, J2: however many files others have, and of what size, the daemon's own are seen. What is not
// seen would be removed.
func TestFlood(t *testing.T) {
	for name, flood := range map[string]func(*testing.T, *site){
		"directories of drop-ins": func(t *testing.T, s *site) {
			for n := range file.MostNames + 100 {
				if err := os.Mkdir(s.at(fmt.Sprintf("%s/00-%d.network.d", dropin.Directory, n)), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		},
		"units": func(t *testing.T, s *site) {
			for n := range file.MostNames + 100 {
				write(t, s.at(fmt.Sprintf("%s/00-%d.network", dropin.Directory, n)), "")
			}
		},
		"drop-ins of the link": func(t *testing.T, s *site) {
			for n := range file.MostNames + 100 {
				write(t, s.at(fmt.Sprintf("%s.d/00-%d.conf", dropin.NetworkPath("ens6"), n)), "")
			}
		},
		"text": func(t *testing.T, s *site) {
			for n := range mostText>>20 + 2 {
				write(t, s.at(fmt.Sprintf("/etc/systemd/network/%d.network", n)), strings.Repeat("#\n", 1<<19-1))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := ownSite(t)
			hasOwn(t, s, "before")
			flood(t, s)
			hasOwn(t, s, "after")
		})
	}
}

// E6: what cannot be listed for a moment is as it was last.
func TestNoDescriptor(t *testing.T) {
	s := ownSite(t)
	hasOwn(t, s, "before")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err := os.Open(s.Root)
	tree := s.Tree()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("a directory can be opened: %v", err)
	}
	if got := tree.Network("ens6").MACAddress(); got != "02:00:00:00:00:01" || len(tree.Generated()) != 1 {
		t.Errorf("without descriptors: the drop-in is for %q, generated for %v", got, tree.Generated())
	}
	if _, err := tree.Every(); err == nil {
		t.Error("nothing says that the tree is not of now")
	}
	hasOwn(t, s, "after")
	if _, err := s.Tree().Every(); err != nil {
		t.Error(err)
	}
}
