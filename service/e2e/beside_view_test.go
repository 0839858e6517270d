package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"ec2netd/cmd/vpclab/vpc"
)

// view is what an instance has, as lines in which its ENIs have symbolic names: "eni0" is the
// primary, "eni1.ipv4[0]" the first address of the next.
type view struct {
	Links     []string `json:"links"`
	Addresses []string `json:"addresses"`
	Routes    []string `json:"routes"`
	Rules     []string `json:"rules"`
	DNS       []string `json:"dns"`
	NTP       []string `json:"ntp"`
}

func (v *view) lines() []string {
	return slices.Concat(v.Links, v.Addresses, v.Routes, v.Rules, v.DNS, v.NTP)
}

// JSON is for logs.
func (v *view) JSON() string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// symbols are the names of what is another one on each instance.
type symbols map[string]string

// symbols returns those of an instance. The numbers of an ENI are those of its version (B1):
// those in Debian do not know network cards.
func (b *beside) symbols() symbols {
	s := make(symbols)
	for i, eni := range b.Inst.ENIs() {
		name := fmt.Sprintf("eni%d", i)
		s[eni.Name()], s[eni.ID()], s[eni.MAC().String()] = name, name+".id", name+".mac"
		card := 0
		number := fmt.Sprint("device-number-", eni.DeviceIndex())
		if c := eni.NetworkCard(); c != nil {
			card = *c
			s[number], s[fmt.Sprint(number, ".", card)] = "device-number-"+name+".without-card", "device-number-"+name+".with-card"
		}
		metric, table := 512+100*card+eni.DeviceIndex(), 10000+100*card+eni.DeviceIndex()
		if b.old {
			metric, table = 512+10*eni.DeviceIndex(), 10000+eni.DeviceIndex()
		}
		s[fmt.Sprint(table)] = name + ".table"
		for family, list := range map[string][]netip.Addr{"ipv4": eni.IPv4(), "ipv6": eni.IPv6()} {
			for n, a := range list {
				s[a.String()] = fmt.Sprintf("%s.%s[%d]", name, family, n)
			}
		}
		of := map[bool]int{}
		for _, p := range eni.Prefixes() {
			family := "ipv6"
			if p.Addr().Is4() {
				family = "ipv4"
			}
			s[p.String()] = fmt.Sprintf("%s.%sprefix[%d]", name, family, of[p.Addr().Is4()])
			of[p.Addr().Is4()]++
		}
		mac := eni.MAC()
		s[netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}).String()] = name + ".ll"
		s[netip.AddrFrom4([4]byte{169, 254, 1 + mac[4]%168, mac[5]}).String()] = name + ".ll4"
		subnet := eni.Subnet()
		s.onLink(eni.Name(), subnet.IPv4().String(), name+".subnet4")
		s.onLink(eni.Name(), subnet.IPv6().String(), name+".subnet6")
		s.onLink(eni.Name(), subnet.Gateway4().String(), name+".gateway4")
		s.onLink(eni.Name(), subnet.Gateway6().String(), name+".gateway6")
		s.onLink(eni.Name(), fmt.Sprint("metric ", metric), name+".metric")
		if i > 0 {
			s.asSource(subnet.IPv4().String(), name+".subnet4")
			s.asSource(subnet.IPv6().String(), name+".subnet6")
		}
	}
	options := b.VPC.Behaviour().DHCP
	for what, servers := range map[string][]netip.Addr{"dns": resolvers(options), "ntp": options.NTP} {
		for i, server := range servers {
			s[server.String()] = fmt.Sprintf("%s[%d]", what, i)
		}
	}
	return s
}

// resolvers are the DNS servers of a VPC. Amazon's has another address in a subnet without IPv4,
// and one for IPv6, which DHCPv6 says there.
func resolvers(o vpc.DHCPOptions) []netip.Addr {
	servers := o.DNS
	if len(servers) == 0 {
		servers = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("169.254.169.253")}
	}
	return append(slices.Clone(servers), vpc.AmazonDNS6)
}

// onLink has a symbol on a link alone: ENIs of one subnet share its routers, and a metric is
// an ENI's own by chance elsewhere.
func (s symbols) onLink(link, text, symbol string) { s[link+" "+text] = symbol }

// asSource has a symbol for the source of a rule alone. Of ENIs in one subnet it is the first one's.
func (s symbols) asSource(text, symbol string) {
	if _, there := s["from "+text]; !there {
		s["from "+text] = symbol
	}
}

// of returns the symbol of a text, with the length of a prefix if it has one.
func (s symbols) of(text string) string {
	if symbol, ok := s[text]; ok {
		return symbol
	}
	if address, length, ok := strings.Cut(text, "/"); ok {
		if symbol, ok := s[address]; ok {
			return symbol + "/" + length
		}
	}
	return text
}

// ofAll returns a list with the symbols of its items.
func (s symbols) ofAll(list string) string {
	items := strings.Fields(list)
	for i, item := range items {
		items[i] = s.of(item)
	}
	return strings.Join(items, " ")
}

// object is an object of ip's JSON.
type object map[string]any

// text is the value of a key as a text, empty if there is none.
func (o object) text(key string) string {
	switch value := o[key].(type) {
	case nil:
		return ""
	case float64:
		return fmt.Sprint(int64(value))
	default:
		return fmt.Sprint(value)
	}
}

// list is a value that is a list of texts.
func (o object) list(key string) (texts []string) {
	values, _ := o[key].([]any)
	for _, value := range values {
		texts = append(texts, fmt.Sprint(value))
	}
	return texts
}

func (o object) objects(key string) (objects []object) {
	values, _ := o[key].([]any)
	for _, value := range values {
		if entry, ok := value.(map[string]any); ok {
			objects = append(objects, entry)
		}
	}
	return objects
}

// ip runs ip with JSON output.
func (b *beside) ip(ctx context.Context, args ...string) ([]object, error) {
	out, err := b.Inst.Exec(ctx, append([]string{"ip", "-json"}, args...)...)
	if err != nil {
		return nil, err
	}
	var objects []object
	if err := json.Unmarshal([]byte(out), &objects); err != nil {
		return nil, fmt.Errorf("ip %q printed %q: %w", args, out, err)
	}
	return objects, nil
}

// look takes a view of the instance.
func (b *beside) look(ctx context.Context) (*view, error) {
	names := b.symbols()
	v := &view{}
	links, err := b.ip(ctx, "-details", "address", "show")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		name, ours := names[link.text("ifname")]
		if !ours {
			continue
		}
		v.Links = append(v.Links, linkLines(name, link, names)...)
		for _, a := range link.objects("addr_info") {
			v.Addresses = append(v.Addresses, addressLines(name, a, names)...)
		}
		if err := b.lease(v, name, link.text("ifindex"), names); err != nil {
			return nil, err
		}
	}
	for _, family := range []string{"-4", "-6"} {
		routes, err := b.ip(ctx, family, "route", "show", "table", "all")
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if r.text("dev") != "lo" {
				v.Routes = append(v.Routes, routeLine(r, names))
			}
		}
		rules, err := b.ip(ctx, family, "rule", "show")
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			v.Rules = append(v.Rules, ruleLine(family, r, names))
		}
	}
	for _, what := range []string{"dns", "domain", "default-route", "llmnr", "mdns"} {
		out, err := b.Inst.Exec(ctx, "resolvectl", what)
		if err != nil {
			return nil, err
		}
		v.DNS = append(v.DNS, dnsLines(what, out, names)...)
	}
	for _, list := range []*[]string{&v.Links, &v.Addresses, &v.Routes, &v.Rules, &v.DNS, &v.NTP} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return v, nil
}

func linkLines(name string, link object, names symbols) []string {
	lines := []string{
		"link " + name + " mtu " + link.text("mtu"), "link " + name + " group " + link.text("group"),
		"link " + name + " state " + link.text("operstate"),
	}
	for _, altname := range link.list("altnames") {
		lines = append(lines, "link "+name+" altname "+names.of(altname))
	}
	return lines
}

func addressLines(name string, a object, names symbols) []string {
	address := fmt.Sprintf("address %s %s scope %s", name, names.of(a.text("local")+"/"+a.text("prefixlen")), a.text("scope"))
	if a["deprecated"] == true {
		return []string{address, address + " deprecated"}
	}
	return []string{address}
}

func routeLine(r object, names symbols) string {
	table, kind := names.of(r.text("table")), r.text("type")
	if table == "" {
		table = "main"
	}
	line := "route " + table + " "
	if kind != "" && kind != "unicast" {
		line += kind + " "
	}
	link := r.text("dev")
	of := func(text, otherwise string) string { return cmp.Or(names[link+" "+text], otherwise) }
	line += of(r.text("dst"), names.of(r.text("dst")))
	for _, key := range []string{"gateway", "dev", "prefsrc", "metric", "scope"} {
		value := r.text(key)
		switch {
		case value == "":
		case key == "metric":
			line += " metric " + of("metric "+value, value)
		default:
			line += " " + key + " " + of(value, names.of(value))
		}
	}
	return line
}

func ruleLine(family string, r object, names symbols) string {
	from := r.text("src")
	if length := r.text("srclen"); length != "" {
		from += "/" + length
	}
	line := fmt.Sprintf("rule %s %s from %s", family, names.of(r.text("priority")), cmp.Or(names["from "+from], names.of(from)))
	for _, key := range []string{"dst", "fwmark", "iif", "table", "suppress_prefixlen", "suppress_ifgroup"} {
		if value := r.text(key); value != "" {
			line += " " + key + " " + names.of(value)
		}
	}
	return line
}

// lease adds what networkd keeps of a link's leases: the NTP servers.
func (b *beside) lease(v *view, name, index string, names symbols) error {
	text, err := os.ReadFile(b.Inst.Path("/run/systemd/netif/links/" + index))
	if err != nil {
		return fmt.Errorf("looking for what networkd keeps of %s: %w", name, err)
	}
	for line := range strings.Lines(string(text)) {
		if servers, ok := strings.CutPrefix(strings.TrimSpace(line), "NTP="); ok && servers != "" {
			v.NTP = append(v.NTP, "ntp "+name+" "+names.ofAll(servers))
		}
	}
	return nil
}

// dnsLines reads what resolvectl prints: "Link 2 (ens5): 10.0.0.2".
func dnsLines(what, out string, names symbols) (lines []string) {
	for line := range strings.Lines(out) {
		subject, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if _, link, ok := strings.Cut(subject, "("); ok {
			symbol, ours := names[strings.TrimSuffix(link, ")")]
			if !ours {
				continue
			}
			subject = symbol
		}
		lines = append(lines, strings.TrimSpace("dns "+strings.ToLower(subject)+" "+what+" "+names.ofAll(value)))
	}
	return lines
}
