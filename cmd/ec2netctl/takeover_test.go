package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPlanTakeover: what is stopped, started and set anew follows from what is enabled and
// what runs.
func TestPlanTakeover(t *testing.T) { // I2
	units := []string{"systemd-networkd.service", "systemd-networkd-wait-online.service", "ec2netd.service", "ec2netd-hostname.service", "NetworkManager.service"}
	owners := []string{"systemd-networkd.service", "ec2netd.service"}
	const networkd, manager = "systemd-networkd.service", "NetworkManager.service"
	for name, c := range map[string]struct {
		enabled, active []string
		old             bool
		want            *takeover
		hint            string
	}{
		"NetworkManager has the links": {
			enabled: owners, active: []string{manager},
			want: &takeover{Stop: []string{manager}, Start: owners, Flush: []string{"ens5"}},
		},
		"networkd has them": {
			enabled: owners, active: []string{networkd, "ec2netd-hostname.service"},
			want: &takeover{Start: owners[1:], Restart: owners[:1]},
		},
		"networkd of before 257 has them": {
			enabled: owners, active: []string{networkd}, old: true,
			want: &takeover{Start: owners[1:], Restart: owners[:1], Flush: []string{"ens5"}},
		},
		"both": {
			enabled: owners, active: []string{networkd, manager},
			want: &takeover{Stop: []string{manager}, Start: owners[1:], Restart: owners[:1], Flush: []string{"ens5"}},
		},
		"a boot would not start networkd": {
			enabled: owners[1:], hint: "systemctl preset " + networkd,
		},
		"a boot would start NetworkManager": {
			enabled: append(slices.Clone(owners), manager), hint: "systemctl preset " + manager,
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := func(list []string) func(string) bool {
				return func(unit string) bool { return slices.Contains(list, unit) }
			}
			got, err := planTakeover(units, in(c.enabled), in(c.active), []string{"ens5"}, c.old)
			if c.want == nil {
				if a, ok := asAdvice(err); !ok || !strings.HasSuffix(a.hint, c.hint) {
					t.Errorf("%+v, %v, which does not say %q", got, err, c.hint)
				}
				return
			}
			for _, list := range []*[]string{&c.want.Stop, &c.want.Start, &c.want.Restart, &c.want.Remove, &c.want.Flush} {
				if *list == nil {
					*list = []string{} // as in JSON
				}
			}
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}
