package status

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Kind is the kind of a [Gap].
type Kind string

// The kinds of gaps.
const (
	// Address: an address; Value is the address.
	Address Kind = "address"
	// DefaultRoute: the default route of the main table, with Metric.
	DefaultRoute Kind = "default-route"
	// TableDefaultRoute: the default route of the ENI's Table.
	TableDefaultRoute Kind = "table-default-route"
	// OtherMetric: a default route by DHCP with another metric than Metric.
	OtherMetric Kind = "other-metric"
	// MainDefaultRoute: a default route by DHCP in the main table, which is to have none.
	MainDefaultRoute Kind = "main-default-route"
	// SubnetRoute: the route to a subnet in the ENI's Table; Value is the prefix.
	SubnetRoute Kind = "subnet-route"
	// ServicesRoute: the route to EC2's services.
	ServicesRoute Kind = "services-route"
	// LocalRoute: a local route; Value is the prefix.
	LocalRoute Kind = "local-route"
	// Rule: a policy rule; Value is the rule as ip-rule(8) has it.
	Rule Kind = "rule"
	// Altname: an alternative name; Value is the name.
	Altname Kind = "altname"
	// MTU: the MTU of the link; Value is the number.
	MTU Kind = "mtu"
)

// Family is an address family.
type Family string

// The families. What has none is of no family.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf returns the family of an address.
func FamilyOf(address netip.Addr) Family {
	if address.Is4() {
		return IPv4
	}
	return IPv6
}

// Gap is something that an ENI shall have and has not, or has and shall not have. Two gaps that are
// equal have the same words.
type Gap struct {
	Kind   Kind
	Family Family
	Value  string
	// Table or Metric of a route, 0 for none.
	Table, Metric int
	// StillThere: it shall not be there. Otherwise it is missing.
	StillThere bool
}

// AddressGap is the gap of an address that is missing.
func AddressGap(address netip.Addr) Gap {
	return Gap{Kind: Address, Family: FamilyOf(address), Value: address.String()}
}

// DefaultRouteGap is the gap of a default route of the main table that is missing.
func DefaultRouteGap(family Family, metric int) Gap {
	return Gap{Kind: DefaultRoute, Family: family, Metric: metric}
}

// What names the thing itself, missing or not.
func (g Gap) What() string {
	//exhaustive:enforce
	switch g.Kind {
	case Address, Rule, Altname, MTU:
		return string(g.Kind) + " " + g.Value
	case DefaultRoute:
		return fmt.Sprintf("default route (%s) with metric %d", g.Family, g.Metric)
	case TableDefaultRoute:
		return fmt.Sprintf("default route (%s) in table %d", g.Family, g.Table)
	case OtherMetric:
		return fmt.Sprintf("default route by DHCP with another metric than %d", g.Metric)
	case MainDefaultRoute:
		return "default route by DHCP in the main table"
	case SubnetRoute:
		return fmt.Sprintf("route to %s in table %d", g.Value, g.Table)
	case ServicesRoute:
		return fmt.Sprintf("route to EC2's services (%s)", g.Family)
	case LocalRoute:
		return "local route " + g.Value
	}
	return ""
}

// String says what is wrong, for people.
func (g Gap) String() string {
	if g.StillThere {
		return "still there: " + g.What()
	}
	return g.What()
}

// Names are the things themselves, never nil.
func Names(gaps []Gap) []string {
	names := make([]string, len(gaps))
	for i, g := range gaps {
		names[i] = g.What()
	}
	return names
}

// OnlyAltnames reports whether alternative names are missing, and nothing else is wrong.
func OnlyAltnames(gaps []Gap) bool {
	return len(gaps) > 0 && !slices.ContainsFunc(gaps, func(g Gap) bool { return g.Kind != Altname || g.StillThere })
}

// Summary names the first few of many gaps.
func Summary(gaps []Gap) string {
	words := make([]string, len(gaps))
	for i, g := range gaps {
		words[i] = g.String()
	}
	return Few(words)
}

// Few names the first few of many.
func Few(all []string) string {
	const most = 3
	if len(all) == 0 {
		return "the lease"
	}
	if len(all) > most {
		return strings.Join(all[:most], ", ") + " and " + plural(len(all)-most, "other")
	}
	return strings.Join(all, ", ")
}

func plural(n int, what string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}
