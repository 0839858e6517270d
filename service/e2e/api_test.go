package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// refreshRule lets the ordinary user of the image refresh, and nobody set the log.
const refreshRule = `polkit.addRule(function(action, subject) {
	if (action.id == "org.ec2netd1.refresh" && subject.user == "` + vpc.OrdinaryUser + `")
		return polkit.Result.YES;
});
`

// awaitItems waits until all of an ENI is everywhere, and returns the items. networkd 252 and
// 262 were seen to call a static IPv6 address foreign for good that DHCPv6 had brought
// before.
func awaitItems(l *labtest.Lab, id string) []state.Item {
	l.T.Helper()
	return l.AwaitENI(id, func(i *state.Interface) bool {
		return i.State == state.ENIConfigured && !slices.ContainsFunc(i.Items, func(item state.Item) bool {
			foreign := item.Networkd == state.No && item.Kind == state.ItemAddress && strings.Contains(item.Value, ":")
			return item.Metadata != state.Yes || !item.Rendered || !item.Kernel ||
				(item.Networkd != state.Yes && item.Kind != state.ItemAltname && item.Kind != state.ItemMTU && !foreign)
		})
	}).Items
}

// TestLabAPI uses the API as clients do, on real systemd: what networkd, the kernel, the
// files and the metadata have, the log's level, and who may do what.
func TestLabAPI(t *testing.T) { // H1, H2, H3, H4
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/polkit-1/rules.d/50-test.rules"] = refreshRule
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		items := awaitItems(l, eni.ID())
		// H4: all that the VPC gave is there, at each of the four places.
		for _, a := range eni.IPv4() {
			want := state.Item{Kind: state.ItemAddress, Value: a.String(), Metadata: state.Yes, Rendered: true, Networkd: state.Yes, Kernel: true}
			if !slices.Contains(items, want) {
				t.Errorf("no %+v in %+v", want, items)
			}
		}
		if n := len(labtest.Sources(eni)); n != 6 || len(items) < n+4+3+2 {
			t.Errorf("%d sources, %d items", n, len(items))
		}
		// Somebody takes an address away, and adds one: each gap has its reason.
		gone, own := eni.IPv4()[1].String(), "10.0.31.77"
		l.Run("sh", "-c", "ip addr del "+gone+"/32 dev "+eni.Name()+"; ip addr add "+own+"/32 dev "+eni.Name())
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return slices.ContainsFunc(i.Items, func(item state.Item) bool { return item.Value == gone && !item.Kernel && item.Reason != "" }) &&
				slices.ContainsFunc(i.Items, func(item state.Item) bool {
					return item.Value == own && item.Kernel && item.Metadata == state.No && item.Networkd == state.No && item.Reason != ""
				})
		})
		l.Run("networkctl", "reconfigure", eni.Name())
		// From 256 on the other one stays.
		l.Run("sh", "-c", "ip addr del "+own+"/32 dev "+eni.Name()+" 2>/dev/null || :")
		awaitItems(l, eni.ID())

		// I1: the level of the log at run time.
		if got := l.Run("systemctl", "service-log-level", "ec2netd.service"); got != "info" {
			t.Errorf("the log level is %q", got)
		}
		l.Run("systemctl", "service-log-level", "ec2netd.service", "debug")
		if got := l.Run("systemctl", "service-log-level", "ec2netd.service"); got != "debug" {
			t.Errorf("the log level is %q after it was set to debug", got)
		}
		if got := l.Run("systemctl", "service-log-target", "ec2netd.service"); got != "journal" {
			t.Errorf("the log goes to %q", got)
		}
		l.Run("systemctl", "service-log-level", "ec2netd.service", "info")

		// H1, H2: polkit decides about those that are not root.
		path := strings.Fields(l.Run("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "GetInterface", "s", "device-number-1"))[1]
		path = strings.Trim(path, `"`)
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := l.AsUser("busctl", "call", "org.ec2netd1", path, "org.ec2netd1.Interface", "Refresh", "b", "true")
		// The daemon may have seen it by itself before polkit had started.
		if !strings.Contains(out, `\"settled\":true`) || !l.HasAddress(eni.Name(), added[0]) {
			t.Errorf("a user's refresh of the ENI after %s was assigned: %s", added[0], out)
		}
		_, err = l.Inst.Run(t.Context(), vpc.Command{User: vpc.OrdinaryUser, Argv: []string{
			"busctl", "set-property", "org.ec2netd1", "/org/freedesktop/LogControl1", "org.freedesktop.LogControl1", "LogLevel", "s", "debug",
		}})
		if err == nil {
			t.Error("a user may set the log level")
		}
		// H2: the numbers, on any systemd by ec2netctl.
		numbers := l.AsUser("ec2netctl", "metrics")
		for _, want := range []string{
			`ec2netd_metadata_requests_total{result="ok"} `, "ec2netd_attachments_total ",
			`ec2netd_interface_state{eni="` + eni.ID() + `",interface="` + eni.Name() + `",state="configured"} 1`,
			`ec2netd_interface_attachment_seconds{eni="` + eni.ID() + `",interface="` + eni.Name() + `"} `,
		} {
			if !strings.Contains(numbers, want) {
				t.Errorf("ec2netctl metrics has no %s:\n%s", want, numbers)
			}
		}
		if suite != "bookworm" { // which has no varlinkctl
			for _, method := range []string{"List", "Describe"} {
				out := l.AsUser("varlinkctl", "call", "--more", "--json=short", "/run/systemd/report/org.ec2netd", "io.systemd.Metrics."+method, "{}")
				if !strings.Contains(out, `"org.ec2netd.InterfaceState"`) {
					t.Errorf("io.systemd.Metrics.%s: %s", method, out)
				}
			}
			checkVarlink(l, eni)
		}
	})
}

// checkVarlink is what varlinkctl has to say of an ENI.
func checkVarlink(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	const socket, name = "/run/ec2netd/org.ec2netd.Network", "org.ec2netd.Network."
	if out := l.AsUser("varlinkctl", "introspect", socket, "org.ec2netd.Network"); !strings.Contains(out, "type Item") {
		l.T.Errorf("varlinkctl introspect: %s", out)
	}
	added, err := eni.AssignIPv4(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	out := l.AsUser("varlinkctl", "call", "--more", "--json=short", socket, name+"Refresh", `{"id":"`+eni.ID()+`","wait":true}`)
	lines := strings.Split(strings.ReplaceAll(out, "\x1e", ""), "\n") // JSON text sequences, RFC 7464
	var last state.Changes
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || !last.Settled ||
		!l.HasAddress(eni.Name(), added[0]) {
		l.T.Errorf("varlinkctl printed %s: %v", out, err)
	}
	if out := l.AsUser("varlinkctl", "call", "--json=short", socket, name+"ListInterfaces", `{"id":"`+eni.Name()+`"}`); !strings.Contains(out, added[0].String()) {
		l.T.Errorf("varlinkctl ListInterfaces: %s", out)
	}
}
