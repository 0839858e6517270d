package takeover

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestMake: what is stopped, started and set anew follows from what is enabled and what runs.
func TestMake(t *testing.T) { // I2
	units := []string{"systemd-networkd.service", "systemd-networkd-wait-online.service", "ec2netd.service", "ec2netd-hostname.service", "NetworkManager.service", ifupdown}
	owners := []string{"ec2netd.service", "systemd-networkd.service"}
	const networkd, manager = "systemd-networkd.service", "NetworkManager.service"
	const hotplugged = "ifup@ens6.service"
	for name, c := range map[string]struct {
		enabled, active []string
		old, auto       bool
		want            *Plan
		fails           string
	}{
		"NetworkManager has the links": {
			enabled: owners, active: []string{manager},
			want: &Plan{Stop: []string{manager}, Start: owners, Flush: []string{"ens5"}},
		},
		"networkd has them": {
			enabled: owners, active: []string{networkd, "ec2netd-hostname.service"},
			want: &Plan{Start: owners[:1], Restart: owners[1:]},
		},
		"networkd of before 257 has them": {
			enabled: owners, active: []string{networkd}, old: true,
			want: &Plan{Start: owners[:1], Restart: owners[1:], Flush: []string{"ens5"}},
		},
		"both": {
			enabled: owners, active: []string{networkd, manager},
			want: &Plan{Stop: []string{manager}, Start: owners[:1], Restart: owners[1:], Flush: []string{"ens5"}},
		},
		"ifupdown has them": {
			enabled: owners, active: []string{ifupdown, hotplugged}, auto: true,
			want: &Plan{Stop: []string{ifupdown, hotplugged}, TakenDown: []string{"br0"}, Start: owners, Flush: []string{"ens5"}},
		},
		"udev has ifupdown configure one": {
			enabled: owners, active: []string{hotplugged},
			want: &Plan{Stop: []string{hotplugged}, Start: owners, Flush: []string{"ens5"}},
		},
		"ifupdown and networkd have them": {
			enabled: owners, active: append([]string{ifupdown}, owners...), auto: true,
			want: &Plan{Stop: []string{ifupdown}, TakenDown: []string{"br0"}, Restart: owners, Flush: []string{"ens5"}},
		},
		"ifupdown has other links": {
			enabled: append(slices.Clone(owners), ifupdown), active: []string{networkd, ifupdown},
			want: &Plan{Start: owners[:1], Restart: owners[1:]},
		},
		"a boot would start ifupdown": {
			enabled: append(slices.Clone(owners), ifupdown), auto: true, fails: ifupdown + " is enabled, and would own the links after a boot",
		},
		"a boot would not start networkd": {
			enabled: owners[:1], fails: networkd + " is not enabled, so that a boot would not start it",
		},
		"a boot would start NetworkManager": {
			enabled: append(slices.Clone(owners), manager), fails: manager + " is enabled, and would own the links after a boot",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := func(list []string) func(string) bool {
				return func(unit string) bool { return slices.Contains(list, unit) }
			}
			got, err := Make(Facts{Units: units, Enabled: in(c.enabled), Active: in(c.active), Links: []string{"ens5"}, Hotplugged: []string{hotplugged}, Ifupdown: c.auto, Raised: []string{"br0"}, Before257: c.old})
			if c.want == nil {
				var not *NotEnabledError
				if !errors.As(err, &not) || err.Error() != c.fails {
					t.Errorf("%+v, %v, want %q", got, err, c.fails)
				}
				return
			}
			if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}
