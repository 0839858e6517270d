package golden

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
)

const faultsDir = "testdata/faults"

// fault is something that fails, and comes right again, on the instance of
// testdata/faults/instance.txtar.
type fault struct {
	name string
	// before is what is wrong before the daemon starts; nil for nothing.
	before func(in *instance)
	// tokens is how long a token of the metadata service lives; 0 for as long as EC2's.
	tokens time.Duration
	// anyKey: the service fails as a whole, and it is left to chance which key of an ENI was to be
	// read. Errors do not name it then.
	anyKey bool
	steps  []step
}

// step is a change of the instance, and the time after which the state is looked at.
type step struct {
	what  string
	do    func(in *instance, d *daemon)
	after time.Duration
}

// Times after which the state is looked at: before a refresh of the metadata; when all that is
// read again and again has been read; and when what was put off is done too. They are no multiples
// of times of the daemon's, which would make it a matter of chance what comes first.
const (
	instant = 2300 * time.Millisecond
	soon    = 4700 * time.Millisecond
	while   = 33 * time.Second
	later   = 87 * time.Second
	last    = 128 * time.Second
)

// unreachable ends connections to the metadata service, and has new ones refused.
func unreachable(in *instance) {
	in.set(func() {
		in.refused = true
		for _, conn := range in.conns {
			conn.Close()
		}
		in.conns = nil
	})
}

// failing has the metadata service fail.
func failing(pattern string, f imds.Fault) func(in *instance) {
	return func(in *instance) {
		in.t.Helper()
		f.Pattern = pattern
		if _, err := in.server.AddFault(f); err != nil {
			in.t.Fatal(err)
		}
	}
}

// lifted ends what is wrong with the metadata service.
func lifted(in *instance, _ *daemon) {
	in.server.ClearFaults()
	in.set(func() { in.refused = false })
}

func then(do func(in *instance)) func(*instance, *daemon) {
	return func(in *instance, _ *daemon) { do(in) }
}

// statusOf is a fault of a status.
func statusOf(code int) imds.Fault { return imds.Fault{Effect: imds.Status, Status: code} }

// aboutENI is the pattern of a key of ens6.
func aboutENI(key string) string {
	return strings.TrimSuffix(macsDir+"02:00:00:00:01:11/"+key, "/")
}

// assign has EC2 assign an address of each family to ens6.
func assign(in *instance) {
	in.set(func() {
		l := in.link("ens6")
		for key, more := range map[string]string{"local-ipv4s": "10.0.1.12", "ipv6s": "2001:db8:0:1::12"} {
			key = in.key(l, key)
			in.truth[key] += "\n" + more
			in.server.Set(key, in.truth[key])
		}
	})
}

// unassign has EC2 take back what assign has.
func unassign(in *instance) {
	in.set(func() {
		l := in.link("ens6")
		for _, key := range []string{"local-ipv4s", "ipv6s"} {
			key = in.key(l, key)
			lines := strings.Split(in.truth[key], "\n")
			in.truth[key] = strings.Join(lines[:len(lines)-1], "\n")
			in.server.Set(key, in.truth[key])
		}
	})
}

// attach plugs a third ENI in.
func attach(in *instance) {
	in.set(func() {
		const mac = "02:00:00:00:01:12"
		for key, text := range map[string]string{
			"mac": mac, "interface-id": "eni-0a1b2c3d4e5f60002", "device-number": "2", "network-card": "1",
			"local-ipv4s": "10.0.2.10", "subnet-ipv4-cidr-block": "10.0.2.0/24",
		} {
			key = macsDir + mac + "/" + key
			in.truth[key] = text
			in.server.Set(key, text)
		}
		in.plug(append(in.known(), dumpLink{Name: "ens7", MAC: mac, Driver: "ena"}))
		in.record(in.link("ens7"))
	})
}

// detach takes a link away, and its metadata.
func detach(name string) func(*instance) {
	return func(in *instance) {
		in.set(func() {
			gone := in.link(name)
			for key := range in.truth {
				if strings.HasPrefix(key, in.key(gone, "")) {
					delete(in.truth, key)
					in.server.Delete(key)
				}
			}
			in.plug(slices.DeleteFunc(in.known(), func(l dumpLink) bool { return l.Name == name }))
		})
	}
}

// deleted has somebody delete addresses of ens6 that match.
func deleted(which func(text string) bool) func(*instance) {
	return func(in *instance) {
		in.set(func() {
			l := in.link("ens6")
			l.addresses = slices.DeleteFunc(l.addresses, func(a address) bool { return which(a.prefix.Addr().String()) })
		})
	}
}

// unrouted has somebody delete routes of ens6 that match.
func unrouted(which func(r route) bool) func(*instance) {
	return func(in *instance) {
		in.set(func() {
			l := in.link("ens6")
			l.routes = slices.DeleteFunc(l.routes, which)
		})
	}
}

// unruled has somebody delete all policy rules.
func unruled(in *instance) {
	in.set(func() {
		for _, l := range in.links {
			l.rules = nil
		}
	})
}

// isDown sets ens6 down, or up again.
func isDown(down bool) func(*instance) {
	return func(in *instance) {
		in.set(func() {
			l := in.link("ens6")
			if l.down = down; down {
				l.routes = nil
				l.addresses = slices.DeleteFunc(l.addresses, func(a address) bool { return a.prefix.Addr().Is6() })
				in.tellOf(l)
			} else {
				in.configure(l)
			}
		})
	}
}

// carrier takes the carrier of ens6 away, or gives it back.
func carrier(there bool) func(*instance) {
	return func(in *instance) {
		in.set(func() {
			l := in.link("ens6")
			if l.noCarrier = !there; there {
				in.configure(l)
				return
			}
			l.setup, l.routes, l.addresses = "configuring", nil, nil
			in.tellOf(l)
		})
	}
}

// leaseless has DHCP answer ens6 no more.
func leaseless(in *instance) {
	in.set(func() {
		l := in.link("ens6")
		l.traits.Lease = "none"
		in.configure(l)
	})
}

func leases(in *instance) { in.set(func() { in.link("ens6").traits.Lease = "" }) }

// withFile has somebody write a file and networkd reload, or remove it if it is empty.
func withFile(path, content string) func(*instance) {
	return func(in *instance) {
		if content == "" {
			os.Remove(in.at(path))
		} else {
			in.write(path, content)
		}
		in.reload()
	}
}

// withUnits has units of other software be active.
func withUnits(units ...string) func(*instance) {
	return func(in *instance) { in.set(func() { in.traits.Units = units }) }
}

// asked is ec2netctl refresh.
func asked(_ *instance, d *daemon) { d.refresh() }

// on does several things, of which the daemon sees one after the other.
func on(all ...func(*instance)) func(*instance, *daemon) {
	return func(in *instance, _ *daemon) {
		for _, do := range all {
			do(in)
			synctest.Wait()
		}
	}
}

// failures are the ways in which one key fails, in the order in which they are tried.
var failures = []struct {
	name  string
	fault imds.Fault
}{
	{"404", statusOf(404)},
	{"500", statusOf(500)},
	{"empty", imds.Fault{Effect: imds.Empty}},
	{"HTML", imds.Fault{Effect: imds.HTML}},
	{"of the other family", imds.Fault{Effect: imds.Family}},
	{"with lines of a unit file", imds.Fault{Effect: imds.Inject}},
	{"half", imds.Fault{Effect: imds.Truncate}},
	{"never there", imds.Fault{Effect: imds.Hang}},
}

// keyFault is what becomes of one key that fails in each way: while the ENI is not known, and
// for keys that are read again, later.
func keyFault(name, pattern string, again bool) fault {
	f := fault{name: "key-" + name, before: failing(pattern, failures[3].fault)}
	f.steps = []step{{"the answer is HTML from the start", nil, soon}}
	if again {
		f.steps = append(f.steps, step{"it is right", lifted, last})
		for _, failure := range failures {
			f.steps = append(f.steps, step{"it is " + failure.name, on(func(in *instance) {
				in.server.ClearFaults()
				failing(pattern, failure.fault)(in)
			}), later})
		}
	} else {
		for _, failure := range failures {
			f.steps = append(f.steps, step{"it is " + failure.name, on(func(in *instance) {
				in.server.ClearFaults()
				failing(pattern, failure.fault)(in)
			}), later})
		}
	}
	f.steps = append(f.steps, step{"it is right", lifted, last})
	return f
}

// allKeys is a fault of the whole metadata service: from the start, and later.
func allKeys(name, pattern string, f imds.Fault) fault {
	return fault{name: "metadata-" + name, before: failing(pattern, f), anyKey: true, steps: []step{
		{"from the start", nil, soon},
		{"for a while", nil, later},
		{"it is over", lifted, last},
		{"again", then(failing(pattern, f)), 57 * time.Second},
		{"addresses are assigned", then(assign), later},
		{"an ENI is attached", then(attach), while},
		{"it is over", lifted, last},
		{"again", then(failing(pattern, f)), 57 * time.Second},
		{"the addresses are taken back", then(unassign), later},
		{"the ENI is detached", then(detach("ens6")), while},
		{"it is over", lifted, last},
	}}
}

// faults are all faults.
func faults() []fault {
	all := []fault{
		allKeys("slow", "**", imds.Fault{Effect: imds.Delay, Delay: 1500 * time.Millisecond}),
		allKeys("too-slow", "**", imds.Fault{Effect: imds.Delay, Delay: 10 * time.Second}),
		allKeys("hangs", "**", imds.Fault{Effect: imds.Hang}),
		allKeys("resets", "**", imds.Fault{Effect: imds.Reset}),
		allKeys("garbage", "**", imds.Fault{Effect: imds.HTML}),
		{name: "metadata-down", before: unreachable, anyKey: true, steps: []step{
			{"from the start", nil, soon},
			{"for a while", nil, later},
			{"it is over", lifted, last},
			{"again, and addresses are assigned", on(unreachable, assign), later},
			{"refresh", asked, while},
			{"it is over", lifted, last},
			{"again, and an ENI is attached", on(unreachable, attach), while},
			{"it is over", lifted, last},
		}},
	}
	for _, code := range []int{401, 403, 404, 429, 500, 503} {
		f := statusOf(code)
		all = append(all, allKeys(f.String()[len("status "):], "**", f))
	}
	for name, f := range map[string]imds.Fault{"401": statusOf(401), "403": statusOf(403), "404": statusOf(404), "500": statusOf(500), "hangs": {Effect: imds.Hang}, "empty": {Effect: imds.Empty}} {
		failing := allKeys("token-"+name, imds.TokenKey, f)
		// So that another one is needed while they fail.
		failing.tokens = 30 * time.Second
		all = append(all, failing)
	}
	for _, key := range []string{"mac", "instance-id"} {
		all = append(all, keyFault(key, key, false))
	}
	all = append(all, keyFault("macs", strings.TrimSuffix(macsDir, "/"), false), keyFault("listing", aboutENI(""), true))
	for _, key := range []string{"local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix"} {
		all = append(all, keyFault(key, aboutENI(key), true))
	}
	for _, key := range []string{"interface-id", "device-number", "network-card", "subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks"} {
		all = append(all, keyFault(key, aboutENI(key), false))
	}
	return slices.Concat(all, networkdFaults(), diskFaults(), linkFaults(), somebodyFaults(), restartFaults())
}

func networkdFaults() []fault {
	up := (*instance).startNetworkd
	return []fault{
		{name: "networkd-never-starts", before: func(in *instance) { in.away = true }, steps: []step{
			{"it has not started", nil, soon},
			{"for a while", nil, later},
			{"it starts", then(up), later},
		}},
		{name: "networkd-stopped", steps: []step{
			{"it stops", then((*instance).stopNetworkd), soon},
			{"for a while, and addresses are assigned", then(assign), later},
			{"it starts", then(up), later},
			{"it is started again", on((*instance).stopNetworkd, up), later},
			{"it stops, and the addresses are taken back", on((*instance).stopNetworkd, unassign), later},
			{"it starts", then(up), later},
		}},
		{name: "networkd-silent", steps: []step{
			{"it does not answer, and nothing changes", on(func(in *instance) { in.set(func() { in.mute = true }) }), later},
			{"addresses are assigned", then(assign), later},
			{"it answers", on(func(in *instance) { in.set(func() { in.mute = false }) }), last},
		}},
		{name: "networkd-refuses", steps: []step{
			{"it refuses to reload, and addresses are assigned", on(func(in *instance) {
				in.set(func() { in.refuses = errors.New("org.freedesktop.DBus.Error.AccessDenied: not today") })
			}, assign), soon},
			{"for a while", nil, later},
			{"an ENI is attached", then(attach), while},
			{"it reloads", on(func(in *instance) { in.set(func() { in.refuses = nil }) }), last},
		}},
		{name: "networkd-off-the-bus", steps: []step{
			{"the bus is gone", on(func(in *instance) { in.set(func() { in.busDown = true }) }), soon},
			{"for a while, and addresses are assigned", then(assign), later},
			{"the bus is back", on(func(in *instance) { in.set(func() { in.busDown = false }) }), last},
		}},
		{name: "networkd-forgets-a-link", steps: []step{
			{"it says that it leaves ens6 alone", on(func(in *instance) {
				in.set(func() {
					l := in.link("ens6")
					l.setup, l.file = "unmanaged", ""
					in.tellOf(l)
				})
			}), later},
			{"it configures it", on(func(in *instance) { in.set(func() { in.configure(in.link("ens6")) }) }), later},
		}},
	}
}

func diskFaults() []fault {
	full := func(is bool) func(*instance) { return func(in *instance) { in.set(func() { in.full = is }) } }
	return []fault{
		{name: "disk-full", steps: []step{
			{"it is full, and nothing changes", then(full(true)), later},
			{"addresses are assigned", then(assign), later},
			{"an ENI is attached", then(attach), while},
			{"there is room", then(full(false)), last},
		}},
		{name: "disk-full-at-start", before: full(true), steps: []step{
			{"from the start", nil, soon},
			{"for a while", nil, later},
			{"there is room", then(full(false)), last},
		}},
		{name: "own-files-unwritable", before: func(in *instance) {
			in.write("run/ec2netd", "a file in the place of the directory")
			in.write("var/lib/ec2netd", "another one")
		}, steps: []step{
			{"from the start", nil, later},
			{"the directories are there", on(func(in *instance) {
				for _, dir := range []string{"run/ec2netd", "var/lib/ec2netd"} {
					os.Remove(in.at(dir))
					os.MkdirAll(in.at(dir), 0o755)
				}
			}), last},
		}},
		{name: "files-removed", steps: []step{
			{"somebody removes the drop-in of ens6", on(func(in *instance) {
				os.Remove(in.at("run/systemd/network/70-ens6.network.d/50-ec2netd.conf"))
				in.set(func() {})
			}), later},
			{"somebody removes all generated files, and networkd reloads", on(func(in *instance) {
				os.RemoveAll(in.at("run/systemd/network"))
				in.reload()
			}), later},
			{"somebody changes the drop-in of ens6, and networkd reloads", on(withFile("run/systemd/network/70-ens6.network.d/50-ec2netd.conf", "[Network]\nDHCP=no\n")), later},
		}},
		{name: "file-unreadable", steps: []step{
			{"a drop-in of the base unit is a directory", on(func(in *instance) {
				os.MkdirAll(in.at("etc/systemd/network/80-ec2.network.d/odd.conf"), 0o755)
				in.set(func() {})
			}), later},
			{"it is gone", on(func(in *instance) { os.RemoveAll(in.at("etc/systemd/network/80-ec2.network.d")) }), later},
		}},
	}
}

func linkFaults() []fault {
	return []fault{
		{name: "link-detached", steps: []step{
			{"ens6 is detached", then(detach("ens6")), soon},
			{"for a while", nil, later},
			{"another ENI is attached", then(attach), later},
		}},
		{name: "link-gone-metadata-stays", steps: []step{
			{"the link of ens6 goes", on(func(in *instance) {
				in.set(func() { in.plug(slices.DeleteFunc(in.known(), func(l dumpLink) bool { return l.Name == "ens6" })) })
			}), later},
		}},
		{name: "primary-gone", steps: []step{{"the link of the primary ENI goes", then(detach("ens5")), later}}},
		{name: "all-links-gone", steps: []step{
			{"all links go", on(func(in *instance) { in.set(func() { in.plug(nil) }) }), later},
		}},
		{name: "link-down", steps: []step{
			{"ens6 is set down", then(isDown(true)), soon},
			{"for a while", nil, later},
			{"it is set up", then(isDown(false)), later},
		}},
		{name: "link-without-carrier", steps: []step{
			{"ens6 loses its carrier", then(carrier(false)), soon},
			{"for a while", nil, later},
			{"it has one again", then(carrier(true)), later},
		}},
		{name: "link-without-lease", steps: []step{
			{"DHCP has nothing for ens6", then(leaseless), soon},
			{"for a while", nil, later},
			{"it has", then(leases), last},
		}},
		{name: "link-enslaved", steps: []step{
			{"ens6 is put into a bridge", on(func(in *instance) {
				in.set(func() {
					l := in.link("ens6")
					l.traits.Master, l.traits.MasterKind = "br0", "bridge"
				})
			}), later},
			{"it is taken out", on(func(in *instance) {
				in.set(func() {
					l := in.link("ens6")
					l.traits.Master, l.traits.MasterKind = "", ""
				})
			}), later},
		}},
		{name: "link-without-ipv6", steps: []step{
			{"IPv6 is switched off on ens6", on(func(in *instance) {
				in.set(func() {
					l := in.link("ens6")
					l.traits.IPv6 = "link"
					in.configure(l)
				})
			}), later},
			{"it is switched on", on(func(in *instance) {
				in.set(func() {
					l := in.link("ens6")
					l.traits.IPv6 = ""
					in.configure(l)
				})
			}), later},
		}},
		{name: "link-mtu", steps: []step{
			{"somebody sets the MTU of ens6", on(func(in *instance) { in.set(func() { in.link("ens6").mtu = 1500 }) }), later},
		}},
		{name: "link-names", steps: []step{
			{"somebody removes the alternative names of ens6", on(func(in *instance) { in.set(func() { in.link("ens6").altnames = nil }) }), later},
		}},
		{name: "link-group", steps: []step{
			{"somebody sets the group of ens6", on(func(in *instance) { in.set(func() { in.link("ens6").group = 0 }) }), later},
		}},
	}
}

// somebodyFaults are what other software, or people, do to ENIs.
func somebodyFaults() []fault {
	secondary := deleted(func(text string) bool { return text == "10.0.1.11" })
	primary := deleted(func(text string) bool { return text == "10.0.1.10" })
	mainDefault := unrouted(func(r route) bool { return r.table == mainTable && r.destination.Bits() == 0 })
	table := unrouted(func(r route) bool { return r.table != mainTable })
	again := func(what string, do func(*instance)) fault {
		f := fault{steps: []step{{what, then(do), soon}}}
		for range 5 {
			f.steps = append(f.steps, step{what + " again", then(do), instant})
		}
		f.steps = append(f.steps, step{"that was all", nil, last}, step{"for long", nil, 733 * time.Second})
		return f
	}
	named := func(name string, f fault) fault {
		f.name = name
		return f
	}
	const mine = "etc/systemd/network/10-mine.network"
	return []fault{
		named("somebody-deletes-address", again("an address is deleted", secondary)),
		named("somebody-deletes-primary-address", again("the primary address is deleted", primary)),
		named("somebody-deletes-all-addresses", again("all addresses are deleted", deleted(func(string) bool { return true }))),
		named("somebody-deletes-default-route", again("the default routes in the main table are deleted", mainDefault)),
		named("somebody-deletes-table", again("the routes of the ENI's table are deleted", table)),
		named("somebody-deletes-rules", again("all rules are deleted", unruled)),
		{name: "somebody-adds-address", steps: []step{
			{"an address of nobody is added", on(func(in *instance) { in.add("192.0.2.7/32") }), later},
			{"one is added that is assigned then", on(func(in *instance) { in.add("10.0.1.12/32") }, assign), later},
			{"it is taken back", then(unassign), later},
			{"somebody removes it", then(deleted(func(text string) bool { return text == "10.0.1.12" })), later},
		}},
		{name: "somebody-shadows", steps: []step{
			{"a file of the administrator goes first", then(withFile(mine, "[Match]\nName=ens6\n\n[Network]\nDHCP=yes\n")), soon},
			{"for a while", nil, later},
			{"it has networkd leave the ENI alone", then(withFile(mine, "[Match]\nName=ens6\n\n[Link]\nUnmanaged=yes\n")), later},
			{"it is removed", then(withFile(mine, "")), later},
		}},
		{name: "somebody-overrides", steps: []step{
			{"a drop-in of the administrator takes the place of the generated one",
				then(withFile("etc/systemd/network/70-ens6.network.d/50-ec2netd.conf", "[Network]\nLLDP=no\n")), later},
			{"it is removed", then(withFile("etc/systemd/network/70-ens6.network.d/50-ec2netd.conf", "")), later},
			{"the unit is masked", on(func(in *instance) {
				in.symlink("etc/systemd/network/70-ens6.network", os.DevNull)
				in.reload()
			}), later},
			{"it is not", then(withFile("etc/systemd/network/70-ens6.network", "")), later},
			{"a drop-in has another route metric", then(withFile("etc/systemd/network/70-ens6.network.d/mine.conf", "[DHCPv4]\nRouteMetric=7\n")), later},
			{"a drop-in switches DHCP off", then(withFile("etc/systemd/network/70-ens6.network.d/mine.conf", "[Network]\nDHCP=no\n")), later},
			{"it is removed", then(withFile("etc/systemd/network/70-ens6.network.d/mine.conf", "")), last},
		}},
		{name: "other-network-manager", steps: []step{
			{"NetworkManager manages ens6", on(func(in *instance) { in.write("run/NetworkManager/devices/3", "[device]\nmanaged=true\n") }, withUnits("NetworkManager.service")), instant},
			{"refresh", asked, later},
			{"it leaves it alone", on(func(in *instance) { in.write("run/NetworkManager/devices/3", "[device]\nmanaged=false\n") }), later},
			{"it is gone", on(withUnits(), func(in *instance) { os.RemoveAll(in.at("run/NetworkManager")) }), later},
		}},
		{name: "other-units", steps: []step{
			{"nm-cloud-setup is active", then(withUnits("nm-cloud-setup.timer", "nm-cloud-setup.service")), 397 * time.Second},
			{"amazon-ec2-net-utils is", then(withUnits("policy-routes@ens6.service", "refresh-policy-routes@ens6.timer")), later},
			{"ifupdown is", on(withUnits("networking.service"), func(in *instance) {
				in.write("etc/network/interfaces", "auto ens6\niface ens6 inet dhcp\n")
				in.write("run/network/ifstate", "lo=lo\nens6=ens6\n")
				in.write("run/network/ifstate.ens6", "ens6\n")
			}), later},
			{"none is", on(withUnits(), func(in *instance) {
				os.RemoveAll(in.at("etc/network"))
				os.RemoveAll(in.at("run/network"))
			}), later},
		}},
		{name: "other-cloud-init", steps: []step{
			{"cloud-init has rules for ens6", on(withFile("etc/systemd/network/10-cloud-init-ens6.network",
				"[Match]\nMACAddress=02:00:00:00:01:11\nName=ens6\n\n[Network]\nDHCP=yes\n\n[RoutingPolicyRule]\nFrom=10.0.1.10\nTable=101\n")), 397 * time.Second},
			{"it has none", then(withFile("etc/systemd/network/10-cloud-init-ens6.network", "")), later},
		}},
		{name: "other-old-package", steps: []step{
			{"its udev rules are there", on(func(in *instance) { in.write("usr/lib/udev/rules.d/99-vpc-policy-routes.rules", "#\n") }), 397 * time.Second},
			{"they are gone", on(func(in *instance) { os.Remove(in.at("usr/lib/udev/rules.d/99-vpc-policy-routes.rules")) }), later},
		}},
		{name: "configuration-mistake", steps: []step{
			{"the configuration gets mistakes", func(in *instance, d *daemon) {
				in.write("etc/ec2netd.conf", "[ENI]\nDefaultRoute=perhaps\nPrefixes=local\n\n[Match]\nDriver=\n\n[Other]\n")
				d.reconfigure()
			}, later},
			{"it is empty", func(in *instance, d *daemon) {
				os.Remove(in.at("etc/ec2netd.conf"))
				d.reconfigure()
			}, later},
		}},
	}
}

// restartFaults are ends of the daemon, and of the instance, while something is wrong.
func restartFaults() []fault {
	restart := func(meanwhile ...func(*instance)) func(*instance, *daemon) {
		return func(in *instance, d *daemon) {
			d.stop()
			for _, do := range meanwhile {
				do(in)
			}
			*d = *startDaemon(in)
		}
	}
	// reboot loses all that is in /run, and all that the kernel has.
	reboot := func(in *instance) {
		os.RemoveAll(filepath.Join(in.root, "run"))
		in.set(func() {
			in.up, in.loose = false, nil
			links := in.known()
			in.links, in.booted = nil, false
			in.plug(links)
			for _, l := range in.links {
				in.record(l)
			}
		})
	}
	booted := func(meanwhile ...func(*instance)) func(*instance, *daemon) {
		return func(in *instance, d *daemon) {
			d.stop()
			for _, do := range append(meanwhile, reboot) {
				do(in)
			}
			*d = *in.boot()
		}
	}
	return []fault{
		{name: "daemon-restarted", steps: []step{
			{"it is restarted", restart(), soon},
			{"for a while", nil, later},
			{"it is restarted, and the metadata service does not answer", restart(unreachable), soon},
			{"for a while", nil, later},
			{"it answers", lifted, last},
			{"addresses were assigned meanwhile", restart(assign), later},
			{"an ENI was attached meanwhile", restart(attach), later},
			{"an ENI was detached meanwhile, and the metadata service does not answer", restart(detach("ens6"), unreachable), later},
			{"it answers", lifted, last},
		}},
		{name: "daemon-restarted-without-its-files", steps: []step{
			{"what it knew is lost, and the metadata service does not answer", restart(unreachable, func(in *instance) {
				os.RemoveAll(in.at("run/ec2netd"))
				os.RemoveAll(in.at("var/lib/ec2netd"))
			}), later},
			{"it answers", lifted, last},
		}},
		{name: "daemon-restarted-networkd-stopped", steps: []step{
			{"networkd does not run", restart((*instance).stopNetworkd), later},
			{"it does", then((*instance).startNetworkd), later},
		}},
		{name: "rebooted", steps: []step{
			{"all is well", booted(), soon},
			{"for a while", nil, later},
			{"the metadata service does not answer", booted(unreachable), soon},
			{"for a while", nil, later},
			{"it answers", lifted, last},
			{"addresses were assigned meanwhile", booted(assign), later},
			{"an ENI was detached meanwhile", booted(detach("ens6")), later},
		}},
		{name: "rebooted-as-another", steps: []step{
			{"an image of the instance boots elsewhere, and the metadata service does not answer", booted(unreachable, func(in *instance) {
				in.set(func() {
					for i := range in.links {
						in.links[i].MAC = strings.Replace(in.links[i].MAC, "02:00", "06:00", 1)
					}
				})
			}), later},
		}},
	}
}
