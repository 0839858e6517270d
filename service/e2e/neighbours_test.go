package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// neighbour is a package of Debian's that has objects of its own on an instance of ec2netd's.
type neighbour struct {
	name     string
	packages []string
	// files are its configuration, and start is the command that begins with it, for later boots
	// too. ENI in them is the address of the second ENI, ROUTER its gateway, FIRST that of the
	// primary one, and VIP an address of a prefix that is delegated to the second ENI.
	files map[string]string
	start string
	// list is a command that prints what is not the kernel's, a line for an object.
	list string
	// its finds what is its among the lines of list and of kernelObjects.
	its *regexp.Regexp
	// ready are in these lines once it is all there.
	ready []string
	// log is a command that prints what has happened since the boot, and bad finds a loss in that.
	log string
	bad *regexp.Regexp
	// port is the one that it publishes on the primary ENI, and vip says that it has VIP.
	port uint16
	vip  bool
	// repair brings back what it lost and does not restore by itself.
	repair string
	// again has it look again, where its start may miss what changes meanwhile, whoever changes it.
	again string
}

// kernelObjects prints what the kernel has of everybody's.
const kernelObjects = `ip -oneline -4 rule; ip -oneline -6 rule; ip -oneline -4 route show table all; ip -oneline -6 route show table all; ip -oneline nexthop
ip -oneline address | sed 's/^[0-9]*: //'
cd /sys/class/net; for link in *; do if test -d $link; then echo link $link $(basename "$(readlink $link/master)"); fi; done
nft --handle list ruleset 2>/dev/null | awk '/^table/ {table = $2 " " $3} {print table ": " $0}'`

// echoServer is a service that sends back what it gets.
const echoServer = "/usr/bin/busybox nc -ll -p 80 -e /usr/bin/busybox cat"

// restartFRR restarts it however often that was done in the last minutes.
const restartFRR = "systemctl reset-failed frr.service; systemctl restart frr.service"

// neighbours are those of the matrix. All are on one instance.
var neighbours = []neighbour{
	{
		name:     "docker.io",
		packages: []string{"docker.io", "iptables", "busybox-static"},
		start: `mkdir -p /root/image/usr/bin; cp /usr/bin/busybox /root/image/usr/bin
			tar --create --directory=/root/image . | docker import - lab >/dev/null
			docker run --detach --restart=always --stop-signal=KILL --name=web --publish=8000:80 lab ` + echoServer + " >/dev/null",
		list:  `docker inspect --format='docker: {{.Name}} {{.State.Status}} since {{.State.StartedAt}}' web`,
		its:   regexp.MustCompile(`(?i)docker|\b172\.17\.`),
		ready: []string{"docker: /web running", "inet 172.17.0.1/16", "dnat to 172.17.0.2:80"},
		port:  8000,
	},
	{
		name:     "containernetworking-plugins",
		packages: []string{"containernetworking-plugins", "iptables", "busybox-static"},
		files: map[string]string{
			"/etc/systemd/system/pod.service": "[Unit]\nAfter=docker.service\n[Service]\nExecStart=sh -e /usr/local/lib/pod\n[Install]\nWantedBy=multi-user.target\n",
			"/usr/local/lib/pod": `export CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni
ip netns add pod
# Docker drops what is forwarded to and from others.
for side in -s -d; do iptables -I DOCKER-USER $side 10.88.0.0/16 -j ACCEPT; done
common='"cniVersion": "0.4.0", "name": "lab"'
made=$(/usr/lib/cni/bridge <<END
{$common, "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
 "ipam": {"type": "host-local", "dataDir": "/run/cni", "subnet": "10.88.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}
END
)
/usr/lib/cni/portmap >/dev/null <<END
{$common, "type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8001, "containerPort": 80, "protocol": "tcp"}]}, "prevResult": $made}
END
exec ip netns exec pod ` + echoServer + "\n",
		},
		start: "systemctl enable --quiet --now pod.service",
		its:   regexp.MustCompile(`\bcni0\b|\b10\.88\.|CNI-`),
		ready: []string{"inet 10.88.0.1/16", "dnat to 10.88.0.2:80"},
		port:  8001,
	},
	{
		name:     "keepalived",
		packages: []string{"keepalived"},
		files: map[string]string{"/etc/keepalived/keepalived.conf": `vrrp_instance lab {
	state MASTER
	interface ens6
	virtual_router_id 51
	priority 100
	advert_int 0.2
	unicast_src_ip ENI
	unicast_peer {
		ROUTER
	}
	virtual_ipaddress {
		VIP/32
	}
}
`},
		start: "systemctl restart keepalived.service",
		list:  "journalctl --boot --unit=keepalived --output=cat --no-pager | sed -n 's/.*Entering \\([A-Z]*\\) STATE.*/keepalived: \\1/p' | tail --lines=1",
		its:   regexp.MustCompile(`^keepalived:|\bVIP\b`),
		ready: []string{"keepalived: MASTER", "ens6 inet VIP/32"},
		log:   "journalctl --boot --unit=keepalived --output=cat --no-pager | sed -n '/Entering MASTER STATE/,$p'",
		bad:   regexp.MustCompile("Entering (BACKUP|FAULT) STATE"),
		vip:   true,
	},
	{
		name:     "frr",
		packages: []string{"frr"},
		files: map[string]string{"/etc/frr/frr.conf": `ip route 198.51.104.0/24 FIRST ens5
ip route 198.51.104.0/24 ROUTER ens6
ip route 198.51.105.0/24 ROUTER ens6
`},
		start:  restartFRR,
		its:    regexp.MustCompile(`\b198\.51\.10[45]\.|^id \d+ (group|(via \S+ )?dev ens[56]) .*proto zebra`),
		ready:  []string{"198.51.104.0/24", "198.51.105.0/24", "group"},
		repair: restartFRR,
	},
	{
		name:     "networkd-dispatcher",
		packages: []string{"networkd-dispatcher"},
		start: `for state in routable degraded carrier no-carrier dormant off; do
				file=/etc/networkd-dispatcher/$state.d/note; mkdir -p ${file%/*}
				printf '#!/bin/sh\necho %s $IFACE >>/run/dispatched\n' $state >$file; chmod 755 $file
			done; systemctl restart networkd-dispatcher.service`,
		list:  `echo dispatcher: $(systemctl is-active networkd-dispatcher.service); sort -u /run/dispatched | sed -n 's/^routable ens/dispatcher: has told that routable is ens/p'`,
		its:   regexp.MustCompile(`^dispatcher:`),
		ready: []string{"dispatcher: active", "routable is ens5", "routable is ens6"},
		log:   `awk '$1 == "routable" {up[$2] = 1} up[$2]' /run/dispatched`,
		bad:   regexp.MustCompile(`^(off|no-carrier|carrier|dormant|degraded) ens[56]$`),
		// It lists the links, subscribes to their changes, and then tells of what it has listed.
		again: `systemctl restart networkd-dispatcher.service`,
	},
	{
		name:     "network-manager",
		packages: []string{"network-manager"},
		files:    map[string]string{"/etc/NetworkManager/conf.d/enis.conf": "[keyfile]\nunmanaged-devices=interface-name:ens*;interface-name:veth*\n"},
		start: `systemctl enable --quiet --now NetworkManager.service
			nmcli connection add type bridge ifname nm0 con-name nm0 bridge.stp no ipv4.method manual ipv4.addresses 192.0.2.129/25 \
				ipv4.routes '198.51.106.0/24 192.0.2.130' ipv4.routing-rules 'priority 300 from 192.0.2.129 table 300' ipv6.method disabled >/dev/null`,
		list:  `nmcli --terse --fields=DEVICE,STATE device | sed -n '/^nm0\|^ens[56]:/s/^/NetworkManager: /p'`,
		its:   regexp.MustCompile(`^NetworkManager:|\bnm0\b|\b192\.0\.2\.129\b`),
		ready: []string{"NetworkManager: nm0:connected", "NetworkManager: ens5:unmanaged", "NetworkManager: ens6:unmanaged", "300: from 192.0.2.129 lookup 300", "198.51.106.0/24"},
		log:   "journalctl --boot --unit=NetworkManager --output=cat --no-pager",
		bad:   regexp.MustCompile(`\(ens\d+\): state change: unmanaged ->|\(nm0\): state change: activated ->`),
	},
	{
		name:     "nftables",
		packages: []string{"nftables"},
		files: map[string]string{"/etc/nftables.conf": `table inet neighbour {
	set known {
		type ipv4_addr
		elements = { 192.0.2.1, 192.0.2.2 }
	}
	chain marks {
		type filter hook prerouting priority mangle
		iifname "ens6" ct state new ct mark set 7
	}
	chain refuse {
		type filter hook input priority filter
		iifname "ens6" ip saddr @known drop
	}
}
`},
		start: "systemctl enable --quiet --now nftables.service",
		its:   regexp.MustCompile(`^inet neighbour:`),
		ready: []string{"ct mark set", "@known drop", "elements ="},
	},
	{
		name:     "wireguard-tools",
		packages: []string{"wireguard-tools", "wireguard-go"},
		start: `umask 077; mkdir -p /etc/wireguard
			printf '[Interface]\nPrivateKey=%s\nAddress=10.9.0.2/32, fd00:9::2/128\nTable=4242\nFwMark=0xca6c\n' "$(wg genkey)" >/etc/wireguard/wg0.conf
			for family in -4 -6; do printf 'PostUp=ip %s rule add not fwmark 0xca6c iif lo lookup 4242 priority 4242\n' $family; done >>/etc/wireguard/wg0.conf
			printf '[Peer]\nPublicKey=%s\nEndpoint=198.51.100.9:51820\nAllowedIPs=10.99.0.0/16, fd00:99::/64\n' "$(wg genkey | wg pubkey)" >>/etc/wireguard/wg0.conf
			systemctl enable --quiet --now wg-quick@wg0.service`,
		list:  "wg show all allowed-ips",
		its:   regexp.MustCompile(`\bwg0\b|\b4242\b`),
		ready: []string{"inet 10.9.0.2/32", "10.99.0.0/16 dev wg0 table 4242", "fd00:99::/64 dev wg0 table 4242", "lookup 4242"},
	},
}

// theENIs is the row of the matrix for the ENIs themselves.
const theENIs = "the ENIs"

// knownLoss is what a version of networkd takes from a neighbour. It must still happen: else it is
// to be removed.
type knownLoss struct {
	suite, neighbour string
	events           []string
	// what finds all losses of the cell, and needs one at least.
	what   *regexp.Regexp
	reason string
}

var knownLosses = []knownLoss{
	{
		"bookworm", "keepalived", []string{"assign", "unassign", "networkd restarted", "systemd upgraded"}, regexp.MustCompile("^packets|ens6|Entering BACKUP STATE"),
		"networkd 252 takes addresses of others from a link that it configures anew; keepalived puts its own back after 0.5 to 0.6 s",
	},
	{
		"bookworm", "frr", []string{"attach"}, regexp.MustCompile("proto zebra|^198.51.104.0/24 nhid"),
		"networkd 252 deletes groups of next hops when it configures a link; FRR makes them anew, without the routes",
	},
	{
		"bookworm", "frr", []string{"assign", "unassign", "networkd restarted", "systemd upgraded"}, regexp.MustCompile("proto zebra"),
		"networkd 252 deletes the next hops by a link that it configures; FRR makes them anew, with the routes",
	},
}

// withVeths keeps links of containers from being configured: only in the lab they are of the same
// kind as ENIs.
func withVeths(o *vpc.InstanceOptions) {
	o.Files["/etc/systemd/network/10-containers.network"] = "[Match]\nName=veth*\n[Link]\nUnmanaged=yes\n"
	o.Files["/etc/ec2netd.conf.d/containers.conf"] = "[ENI]\nName=veth*\nManaged=no\nAlternativeNames=no\n"
}

// kernelWatch notes what happens to objects of the kernel's from the beginning of each boot.
const kernelWatch = `[Unit]
DefaultDependencies=no
Before=network-pre.target
[Service]
ExecStart=ip -oneline monitor address route rule nexthop
StandardOutput=truncate:/run/objects.log
[Install]
WantedBy=sysinit.target
`

// neighbourhood is an instance with all neighbours.
type neighbourhood struct {
	*labtest.Lab
	suite string
	// eni is the ENI beside the primary one, and vip an address of its prefix.
	eni *vpc.ENI
	vip netip.Addr
	all []neighbour
	// with puts addresses in the place of their words in the files of neighbours.
	with *strings.Replacer
	// whole are the objects once everything is there, as acrossBoots makes them.
	whole map[string]int
}

var (
	nftCounters   = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	objectNumbers = regexp.MustCompile(`\b(id|nhid|handle|group) [\d/]+`)
	sinceWhen     = regexp.MustCompile(`\b(since) \S+`)
	veths         = regexp.MustCompile(`\bveth[0-9a-f]+\b`)
	addressIndex  = regexp.MustCompile(`^(Deleted )?\d+: (\S+ +inet)`)
)

// tidy makes a line of iproute2 or nft one that is the same as long as the object is.
func tidy(line string) string {
	line, _, _ = strings.Cut(strings.ReplaceAll(line, `\`, " "), " valid_lft ")
	return strings.Join(strings.Fields(nftCounters.ReplaceAllString(line, "counter")), " ")
}

// acrossBoots makes a line one that is the same after a boot.
func acrossBoots(line string) string {
	for _, varies := range []*regexp.Regexp{objectNumbers, sinceWhen} {
		line = varies.ReplaceAllString(line, "$1")
	}
	return veths.ReplaceAllString(line, "veth")
}

// linesAcrossBoots are lines as acrossBoots makes them.
func linesAcrossBoots(lines map[string]int) map[string]int {
	out := make(map[string]int)
	for line, n := range lines {
		out[acrossBoots(line)] += n
	}
	return out
}

// objects are the lines of kernelObjects and of all lists, and how often each is there.
func (h *neighbourhood) objects() map[string]int {
	h.T.Helper()
	script := kernelObjects
	for _, n := range h.all {
		if n.list != "" {
			script += "\n" + n.list
		}
	}
	lines := make(map[string]int)
	for line := range strings.Lines(h.Run("sh", "-c", script)) {
		// Link-local ones are the kernel's own.
		if !strings.Contains(line, "fe80::") && !strings.Contains(line, "multicast") {
			lines[tidy(line)]++
		}
	}
	return lines
}

// missing are objects of a neighbour that there are fewer of than before.
func (n *neighbour) missing(before, now map[string]int) (lines []string) {
	for line, count := range before {
		if n.its.MatchString(line) && now[line] < count {
			lines = append(lines, line)
		}
	}
	return lines
}

// knockAt connects to a published port again and again; the returned function ends that, and says how
// many of the connections since the first that was answered were not, and how many these were.
func knockAt(l *labtest.Lab, to netip.AddrPort) func() (lost, all int) {
	ctx, cancel := context.WithCancel(l.T.Context())
	answers := make(chan []bool)
	go func() {
		var answered []bool
		for ctx.Err() == nil {
			answered = append(answered, fetchPage(l, vpc.FarIPv4, to, time.Second) == nil)
			select {
			case <-ctx.Done():
			case <-time.After(5 * labtest.Pace):
			}
		}
		answers <- answered
	}()
	return func() (lost, all int) {
		cancel()
		answered := <-answers
		answered = answered[max(0, slices.Index(answered, true)):]
		for _, ok := range answered {
			if !ok {
				lost++
			}
		}
		return lost, len(answered)
	}
}

// eventLosses are what was lost in an event, by neighbour.
type eventLosses map[string][]string

func (l eventLosses) add(of, format string, args ...any) {
	l[of] = append(l[of], fmt.Sprintf(format, args...))
}

// watchTraffic begins to ping the ENIs and VIP, and to connect to published ports; the returned
// function ends that, and adds what was lost.
func (h *neighbourhood) watchTraffic(lost eventLosses) func() {
	h.T.Helper()
	var ends [][2]netip.Addr
	var of []string
	for _, eni := range []*vpc.ENI{h.Inst.Primary(), h.eni} {
		for _, pair := range labtest.PingEnds(eni) {
			ends, of = append(ends, pair), append(of, theENIs)
		}
	}
	var knocks []func()
	for _, n := range h.all {
		if n.vip {
			ends, of = append(ends, [2]netip.Addr{vpc.FarIPv4, h.vip}), append(of, n.name)
		}
		if n.port != 0 {
			end := knockAt(h.Lab, netip.AddrPortFrom(h.Inst.Primary().IPv4()[0], n.port))
			knocks = append(knocks, func() {
				if unanswered, all := end(); unanswered > 0 {
					lost.add(n.name, "connections to port %d: %d of %d", n.port, unanswered, all)
				}
			})
		}
	}
	pings := h.CountPings(ends...)
	return func() {
		h.T.Helper()
		for i, count := range pings() {
			if count[0] > 0 {
				lost.add(of[i], "packets from %s to %s: %d of %d", ends[i][0], ends[i][1], count[0], count[1])
			}
		}
		for _, end := range knocks {
			end()
		}
	}
}

// watchObjects notes what all neighbours have; the returned function adds what they lost since, for
// good or for a moment. Over a boot that is what they do not get again, or lose in it.
func (h *neighbourhood) watchObjects(lost eventLosses, boots bool) func() {
	h.T.Helper()
	events := func() []string { return strings.Split(h.Run("cat", "/run/objects.log"), "\n") }
	log := func(n *neighbour) []string { return strings.Split(h.Run("sh", "-c", n.log), "\n") }
	before, seen, logged := h.whole, 0, make(map[string]int)
	if !boots {
		before, seen = h.objects(), len(events())
		for _, n := range h.all {
			if n.log != "" {
				logged[n.name] = len(log(&n))
			}
		}
	}
	return func() {
		h.T.Helper()
		now := h.objects()
		if boots {
			now = linesAcrossBoots(now)
		}
		deleted := make(map[string]bool)
		for _, line := range events()[seen:] {
			if line, ok := strings.CutPrefix(tidy(addressIndex.ReplaceAllString(line, "$1$2")), "Deleted "); ok {
				if boots {
					line = acrossBoots(line)
				}
				deleted[line] = true
			}
		}
		for _, n := range h.all {
			missing := n.missing(before, now)
			lost[n.name] = append(lost[n.name], missing...)
			for line := range deleted {
				if before[line] > 0 && n.its.MatchString(line) && !slices.Contains(missing, line) {
					lost.add(n.name, "for a moment: %s", line)
				}
			}
			if n.log != "" {
				for _, line := range log(&n)[logged[n.name]:] {
					if n.bad.MatchString(line) {
						lost.add(n.name, "%s", line)
					}
				}
			}
		}
	}
}

// incomplete tells of an object that has been there and is not; empty where all are there.
func (h *neighbourhood) incomplete() string {
	h.T.Helper()
	now := linesAcrossBoots(h.objects())
	for _, n := range h.all {
		if missing := n.missing(h.whole, now); len(missing) > 0 {
			return n.name + ": " + strings.Join(missing, "; ")
		}
	}
	return ""
}

// during does something, and returns what each neighbour and the ENIs lost by it.
func (h *neighbourhood) during(boots bool, do func()) eventLosses {
	h.T.Helper()
	lost := make(eventLosses)
	objects := h.watchObjects(lost, boots)
	if boots {
		if err := h.Inst.Shutdown(h.T.Context()); err != nil {
			h.T.Fatal(err)
		}
	}
	traffic := h.watchTraffic(lost)
	do()
	if boots {
		whole := func(patience time.Duration) bool {
			ctx, cancel := context.WithTimeout(h.T.Context(), patience)
			defer cancel()
			return vpc.Until(ctx, "everything is there", func() (bool, error) { return h.incomplete() == "", nil }) == nil
		}
		if !whole(labtest.Patience / 2) {
			h.lookAgain()
			whole(labtest.Patience / 2) // what does not come in that time is lost
		}
	}
	traffic()
	objects()
	return lost
}

// lookAgain has those look again that may have missed something as they started.
func (h *neighbourhood) lookAgain() {
	h.T.Helper()
	now := linesAcrossBoots(h.objects())
	for _, n := range h.all {
		if missing := n.missing(h.whole, now); n.again != "" && len(missing) > 0 {
			h.T.Logf("%s has missed at its start: %s", n.name, strings.Join(missing, "; "))
			h.Run("sh", "-ec", n.again)
		}
	}
}

// settle sets all neighbours up, and waits until they have all that is theirs.
func (h *neighbourhood) settle() {
	h.T.Helper()
	h.with = strings.NewReplacer("VIP", h.vip.String(), "ENI", h.eni.IPv4()[0].String(), "FIRST", h.Inst.Primary().Subnet().Gateway4().String(), "ROUTER", h.eni.Subnet().Gateway4().String())
	h.Put("/etc/systemd/system/objects.service", kernelWatch)
	h.Run("systemctl", "enable", "--quiet", "--now", "objects.service")
	for _, n := range neighbours {
		n.its = regexp.MustCompile(strings.ReplaceAll(n.its.String(), "VIP", regexp.QuoteMeta(h.vip.String())))
		for path, text := range n.files {
			h.Put(path, h.with.Replace(text))
		}
		h.Run("sh", "-ec", n.start)
		h.all = append(h.all, n)
	}
	var last string
	h.UntilOr("all neighbours have what is theirs", func() (bool, error) {
		now := h.objects()
		for _, n := range h.all {
			for _, want := range n.ready {
				last = n.name + " has no " + h.with.Replace(want)
				found := false
				for line := range now {
					found = found || (n.its.MatchString(line) && strings.Contains(line, h.with.Replace(want)))
				}
				if !found {
					return false, nil
				}
			}
		}
		h.whole = linesAcrossBoots(now)
		return true, nil
	}, &last)
}

// restore brings back what somebody lost for good, and waits until everything is there.
func (h *neighbourhood) restore(lost eventLosses) {
	h.T.Helper()
	for _, n := range h.all {
		if len(lost[n.name]) > 0 && n.repair != "" {
			h.Run("sh", "-c", n.repair)
		}
	}
	var last string
	h.UntilOr("everything is there", func() (bool, error) {
		last = h.incomplete()
		return last == "", nil
	}, &last)
}

// judge compares what a cell lost with what is known, and tells of it in a line.
func (h *neighbourhood) judge(event, of string, lost []string) {
	h.T.Helper()
	slices.Sort(lost)
	said, unknown := "nothing lost", slices.Clone(lost)
	for _, known := range knownLosses {
		if known.suite != h.suite || known.neighbour != of || !slices.Contains(known.events, event) {
			continue
		}
		unknown = slices.DeleteFunc(unknown, known.what.MatchString)
		if len(unknown) == len(lost) {
			h.T.Errorf("%s, %s: this is no longer lost, remove it from knownLosses: %s", of, event, known.reason)
			continue
		}
		said = fmt.Sprintf("lost %s, and %d more: %s", lost[0], len(lost)-1, known.reason)
	}
	if len(unknown) > 0 {
		h.T.Errorf("%s, %s: lost\n%s", of, event, strings.Join(unknown, "\n"))
		said = "LOST " + strings.Join(unknown, "; ")
	}
	fmt.Fprintf(h.T.Output(), "%-8s  %-27s  %-18s  %s\n", h.suite, of, event, said)
}

// events are what happens to the instance, in this order.
func (h *neighbourhood) events() []step {
	ctx := h.T.Context()
	var added *vpc.ENI
	all := func() {
		for _, eni := range h.Inst.ENIs() {
			h.AwaitConfigured(eni.ID())
		}
	}
	ofEach := func(changes ...func(eni *vpc.ENI) error) func() {
		return func() {
			h.Refreshed(func() (err error) {
				for _, eni := range []*vpc.ENI{h.Inst.Primary(), h.eni} {
					for _, change := range changes {
						err = errors.Join(err, change(eni))
					}
				}
				return err
			})
			all()
		}
	}
	return []step{
		{"boot", func() {
			if err := h.Inst.Boot(ctx); err != nil {
				h.T.Fatal(err)
			}
			all()
		}},
		{"attach", func() {
			added = h.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: 1})
			h.AwaitConfigured(added.ID())
			h.Until("networkd-dispatcher tells of it", func() (bool, error) {
				return strings.Contains(h.Run("cat", "/run/dispatched"), "routable "+added.Name()), nil
			})
		}},
		{"assign", ofEach(
			func(eni *vpc.ENI) error { _, err := eni.AssignIPv4(ctx); return err },
			func(eni *vpc.ENI) error { _, err := eni.AssignIPv6(ctx); return err },
		)},
		{"unassign", ofEach(
			func(eni *vpc.ENI) error { return eni.UnassignIPv4(ctx, eni.IPv4()[len(eni.IPv4())-1]) },
			func(eni *vpc.ENI) error { return eni.UnassignIPv6(ctx, eni.IPv6()[len(eni.IPv6())-1]) },
		)},
		{"detach", func() {
			h.Detach(added)
			h.Until("it is gone", func() (bool, error) {
				return len(h.Units(added.MAC())) == 0 && len(h.Rules(labtest.TableOf(added))) == 0, nil
			})
			if err := added.Delete(ctx); err != nil {
				h.T.Fatal(err)
			}
		}},
		{"ec2netd restarted", func() { h.Run("systemctl", "restart", "ec2netd.service"); all() }},
		{"ec2netd upgraded", func() { h.Run("dpkg", "--install", "/root/2.deb"); all() }},
		{"networkd restarted", func() { h.RestartNetworkd("systemctl", "restart", "systemd-networkd.service") }},
		{"systemd upgraded", func() { h.RestartNetworkd("sh", "-ec", systemdUpgraded) }},
	}
}

// frrAdvice is what neighbours.md says for FRR to keep its routes where an attachment costs them, by suite:
// a file and its text.
var frrAdvice = map[string][2]string{
	"bookworm": {"/etc/frr/frr.conf", `no zebra nexthop kernel enable
ip route 198.51.104.0/24 FIRST ens5 onlink
ip route 198.51.104.0/24 ROUTER ens6 onlink
`},
}

// advised checks that the advice helps.
func (h *neighbourhood) advised() {
	h.T.Helper()
	file, ok := frrAdvice[h.suite]
	if !ok {
		return
	}
	doctor := func() string {
		out, _ := h.Inst.Exec(h.T.Context(), "ec2netctl", "doctor", "--no-pager") // what else it finds does not matter
		return linesOf(out, " nexthop ")
	}
	said := doctor()
	quoted := strings.Split(said, `"`)
	const command = "ip nexthop flush "
	if len(quoted) != 7 || !strings.Contains(said, "are others'") || !strings.HasPrefix(file[1], quoted[1]+"\n") ||
		!strings.Contains(file[1], quoted[3]+"\n") || !strings.HasPrefix(quoted[5], command) {
		h.T.Fatalf("before the advice is followed doctor says %q", said)
	}
	h.Put(file[0], h.with.Replace(file[1]))
	h.Reload()
	h.Run("sh", "-c", restartFRR)
	h.Run("sh", "-ec", quoted[5])
	routes := func() string { return h.Run("ip", "-oneline", "route", "show", "198.51.104.0/24") }
	h.Until("FRR has its route by two next hops", func() (bool, error) {
		return strings.Contains(routes(), "ens5") && strings.Contains(routes(), "ens6"), nil
	})
	before, eni := routes(), h.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: 1})
	h.AwaitConfigured(eni.ID())
	if now := routes(); now != before {
		h.T.Errorf("with the advice there is %q, and was %q", now, before)
	}
	if said := doctor(); said != "" {
		h.T.Errorf("with the advice doctor says %q", said)
	}
}

// TestLabNeighbours: what packages of others have on an instance stays, and no packet of the ENIs is
// lost, through all that happens to ec2netd and networkd, but for what a version of networkd takes.
func TestLabNeighbours(t *testing.T) { // A8, F1, F6, F11
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			if suite != "bookworm" {
				o.Packages = []string{"docker-cli"} // bookworm's docker.io has that
			}
			for _, n := range neighbours {
				o.Packages = append(o.Packages, n.packages...)
			}
			withVeths(o)
			o.Primary.IPv6Count = 2 // static from the start: 252 loses no packets by making it so later
			o.Install = func(root string) error {
				_, err := inRoot(t, root, "dpkg", "--install", "/root/1.deb")
				return err
			}
		})
		l.AwaitConfigured(l.Inst.Primary().ID())
		h := &neighbourhood{Lab: l, suite: suite, eni: l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 2, IPv6Count: 2, PrefixV4Count: 1})}
		l.AwaitConfigured(h.eni.ID())
		h.vip = h.eni.Prefixes()[0].Addr().Next()
		h.settle()
		for _, event := range h.events() {
			lost := h.during(event.name == "boot", event.do)
			h.judge(event.name, theENIs, lost[theENIs])
			for _, n := range h.all {
				h.judge(event.name, n.name, lost[n.name])
			}
			h.restore(lost)
		}
		h.advised()
	})
}
