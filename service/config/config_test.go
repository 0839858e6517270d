package config

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func load(t *testing.T, files map[string]string) Config {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := Load(root)
	for i, p := range c.Problems {
		c.Problems[i].File = strings.TrimPrefix(p.File, root)
	}
	for i, f := range c.Files {
		c.Files[i] = strings.TrimPrefix(f, root)
	}
	return c
}

func TestDefaults(t *testing.T) {
	want := Config{Drivers: []string{"ena", "ixgbevf", "vif"}, Platform: PlatformEC2, Refresh: time.Minute}
	if diff := cmp.Diff(want, load(t, nil)); diff != "" {
		t.Error(diff)
	}
	shipped, err := os.ReadFile("../../units/ec2netd.conf")
	if err != nil {
		t.Fatal(err)
	}
	want.Files = []string{"/etc/ec2netd.conf"}
	if diff := cmp.Diff(want, load(t, map[string]string{"etc/ec2netd.conf": string(shipped)})); diff != "" {
		t.Errorf("the shipped file: %s", diff)
	}
	// The commented lines are the defaults, and the file has all keys.
	spelled := strings.ReplaceAll(string(shipped), "\n#", "\n")
	lines := strings.Split(spelled, "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return !strings.HasPrefix(l, "[") && !strings.Contains(l, "=") || strings.Contains(l, " ") && !strings.HasPrefix(l, "Driver=")
	})
	got := load(t, map[string]string{"etc/ec2netd.conf": strings.Join(lines, "\n")})
	for _, id := range []Identity{{}, {ENIID: "eni-0123456789abcdef0", DeviceIndex: new(int), NetworkCard: new(int), Primary: new(bool)}} {
		if settings := For(got.ENIs, id); settings.ManagedBy == "" || settings.Undecided {
			t.Errorf("the shipped file with its comments taken off has no [ENI] section for all: %+v", settings)
		} else if settings.ManagedBy = ""; !cmp.Equal(settings, DefaultSettings()) {
			t.Errorf("the shipped file with its comments taken off: %s", cmp.Diff(DefaultSettings(), settings))
		}
	}
	got.ENIs = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the shipped file with its comments taken off:\n%s\n%s", strings.Join(lines, "\n"), diff)
	}
	all := map[string][]string{eniSection: slices.Collect(maps.Keys(eniKeys))}
	for section, keys := range sections {
		all[section] = slices.Collect(maps.Keys(keys))
	}
	for section, keys := range all {
		for _, key := range keys {
			if !strings.Contains(spelled, "\n"+key+"=") {
				t.Errorf("[%s] %s= is not in the shipped file", section, key)
			}
		}
	}
}

func TestDropIns(t *testing.T) {
	c := load(t, map[string]string{
		"etc/ec2netd.conf":                      "[Metadata]\nRefreshSec=10\nEndpoint=http://192.0.2.1/\n",
		"usr/lib/ec2netd.conf.d/10-vendor.conf": "[Metadata]\nRefreshSec=20\n",
		"usr/lib/ec2netd.conf.d/20-both.conf":   "[Metadata]\nRefreshSec=30\n",
		"etc/ec2netd.conf.d/20-both.conf":       "[Match]\nDriver=veth\n",
		"run/ec2netd.conf.d/30-masked.conf":     "[Metadata]\nRefreshSec=40\n",
		"etc/ec2netd.conf.d/30-masked.conf":     "-> /dev/null",
		"etc/ec2netd.conf.d/readme":             "[Metadata]\nRefreshSec=50\n",
	})
	want := Config{
		Drivers: []string{"ena", "ixgbevf", "vif", "veth"}, Platform: PlatformEC2, Refresh: 20 * time.Second, Endpoint: "http://192.0.2.1",
		Files: []string{"/etc/ec2netd.conf", "/usr/lib/ec2netd.conf.d/10-vendor.conf", "/etc/ec2netd.conf.d/20-both.conf"},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
}

func TestDrivers(t *testing.T) {
	for text, want := range map[string][]string{
		"Driver=veth":               {"ena", "ixgbevf", "vif", "veth"},
		"Driver=\nDriver=veth ena":  {"veth", "ena"},
		"Driver=ena ena":            {"ena", "ixgbevf", "vif"},
		"Driver=a \\\n# no\n  b":    {"ena", "ixgbevf", "vif", "a", "b"},
		"  Driver  =  veth  ":       {"ena", "ixgbevf", "vif", "veth"},
		"; Driver=no\nDriver=veth ": {"ena", "ixgbevf", "vif", "veth"},
	} {
		c := load(t, map[string]string{"etc/ec2netd.conf": "[Match]\n" + text})
		if !slices.Equal(c.Drivers, want) || len(c.Problems) > 0 {
			t.Errorf("%q: %v, %v", text, c.Drivers, c.Problems)
		}
	}
}

func TestPlatform(t *testing.T) {
	for text, want := range map[string]Platform{
		"Platform=any": PlatformAny, "Platform=ec2": PlatformEC2, "": PlatformEC2,
		"Platform=any\nPlatform=": PlatformEC2, "Platform=any\nPlatform=ec2": PlatformEC2,
	} {
		c := load(t, map[string]string{"etc/ec2netd.conf": "[Match]\n" + text})
		if c.Platform != want || len(c.Problems) > 0 {
			t.Errorf("%q: %s, %v", text, c.Platform, c.Problems)
		}
	}
	for _, value := range []string{"EC2", "gce", "any ec2"} {
		c := load(t, map[string]string{"etc/ec2netd.conf": "[Match]\nPlatform=any\nPlatform=" + value})
		if c.Platform != PlatformEC2 || len(c.Problems) != 1 || !strings.Contains(c.Problems[0].String(), "/etc/ec2netd.conf:3: Match.Platform: ") ||
			!strings.Contains(c.Problems[0].Message, "neither ec2 nor any") {
			t.Errorf("%q: %s, %v", value, c.Platform, c.Problems)
		}
	}
}

// A mistake is reported with file, line and key, and only affects that key.
func TestProblems(t *testing.T) {
	c := load(t, map[string]string{"etc/ec2netd.conf": `stray=1
[Match]
Driver=ok b@d
Drivre=ena
[Metadata]
RefreshSec=soon
Endpoint=ftp://192.0.2.1
no equals sign
[Metdata]
RefreshSec=5
[X-Mine]
Anything=goes
[broken
RefreshSec=7
[Match]
Driver=veth
X-Mine=1
Driver=a \
`})
	if !slices.Equal(c.Drivers, []string{"ena", "ixgbevf", "vif", "veth"}) || c.Refresh != DefaultRefresh || c.Endpoint != "" {
		t.Errorf("%+v", c)
	}
	type where struct {
		line int
		key  string
	}
	want := []where{{1, ""}, {3, "Match.Driver"}, {4, "Match.Drivre"}, {6, "Metadata.RefreshSec"}, {7, "Metadata.Endpoint"},
		{8, "Metadata"}, {9, "Metdata"}, {13, ""}, {14, ""}, {18, "Match"}}
	var got []where
	for _, p := range c.Problems {
		got = append(got, where{p.Line, p.Key})
		if p.File != "/etc/ec2netd.conf" || p.Message == "" {
			t.Errorf("%+v", p)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v\n%v", got, want, c.Problems)
	}
	if text := c.Problems[3].String(); !strings.HasPrefix(text, "/etc/ec2netd.conf:6: Metadata.RefreshSec: ") || !strings.Contains(text, "1m0s is used") {
		t.Error(text)
	}
}

func TestSpans(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"60": time.Minute, "1min 30s": 90 * time.Second, "0.5h": 30 * time.Minute, "1500ms": 1500 * time.Millisecond, "2 hours": 2 * time.Hour,
	} {
		if got, err := parseSpan(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "-5", "5 fortnights", "1e9", "99999999999999999999d", "5 5 x"} {
		if got, err := parseSpan(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
	for text, want := range map[string]time.Duration{"0": DefaultRefresh, "100ms": DefaultRefresh, "25h": DefaultRefresh, "1s": time.Second} {
		if c := load(t, map[string]string{"etc/ec2netd.conf": "[Metadata]\nRefreshSec=" + text}); c.Refresh != want {
			t.Errorf("RefreshSec=%s gives %v", text, c.Refresh)
		}
	}
}

// FuzzParse: no file crashes the daemon or exceeds the limits.
func FuzzParse(f *testing.F) {
	f.Add("[Match]\nDriver=ena \\\n veth\n[Metadata]\nRefreshSec=1min 30s\nEndpoint=http://[::1]:80/\n")
	f.Add("[ENI]\nName=ens[5-7]\nManaged=no\nPrefixes=local\n[ENI]\nDeviceIndex=1 2\nDefaultRoute=off")
	f.Add("[\n]\n=\n[]\n[Match\nDriver")
	f.Fuzz(func(t *testing.T, text string) {
		c := Config{Drivers: DefaultDrivers(), Refresh: DefaultRefresh}
		c.parse("fuzz", text)
		if c.Refresh < minRefresh || c.Refresh > maxRefresh {
			t.Errorf("refresh time %v", c.Refresh)
		}
		for _, s := range c.ENIs {
			if For([]Section{s}, Identity{Name: "ens5"}).Prefixes == "" || s.Line == 0 {
				t.Errorf("section %+v", s)
			}
		}
		for _, d := range c.Drivers {
			if !driverName.MatchString(d) {
				t.Errorf("driver %q", d)
			}
		}
		if strings.ContainsAny(c.Endpoint, "\n\r ") {
			t.Errorf("endpoint %q", c.Endpoint)
		}
	})
}
