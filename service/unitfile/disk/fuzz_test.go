package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/unitfile"
)

// FuzzLook: wherever somebody else's file leads and whatever stands in it, looking at it
// ends, and nothing outside the root is read (D4, F2).
func FuzzLook(f *testing.F) {
	f.Add("/opt/x.network", "[Match]\nName=ens6\n[RoutingPolicyRule]\nFrom=10.0.1.20\nTable=10001\nPriority=10001\n")
	f.Add("../../../../secret", "")
	f.Add("/dev/null", "[")
	f.Add("70-ens6.network", "\x00")
	f.Add("/../secret", "[Match]\n")
	const secret = "[Secret]\n"
	f.Fuzz(func(t *testing.T, target, content string) {
		if strings.Contains(content, secret) {
			return
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		s := &Reader{Root: filepath.Join(dir, "root")}
		file := dropin.NetworkPath("ens6")
		above := s.at("/etc/systemd/network/70-ens6.network")
		for _, p := range []string{s.at("/opt/x.network"), s.at(file + ".d/60-x.conf"), above} {
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []string{s.at("/opt/x.network"), s.at(file + ".d/60-x.conf")} {
			if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if os.Symlink(target, above) != nil {
			return
		}
		unit := s.Tree().Look("70-ens6.network")
		for _, text := range unit.Texts {
			if strings.Contains(text.Content, secret) {
				t.Errorf("%q led out of the root by %s", target, text.Path)
			}
		}
		if unit.Masked && len(unit.Texts) > 0 {
			t.Errorf("a mask has %v", unit.Texts)
		}
		there := (&reading{Reader: s, contents: make(map[string]*unitfile.Content), text: mostText, count: mostFiles}).file("/etc/systemd/network/70-ens6.network").Exists()
		if taken := s.Tree().Extent("ens6").Taken; (taken == "/etc/systemd/network/70-ens6.network") != there {
			t.Errorf("%q: taken by %q", target, taken)
		}
	})
}
