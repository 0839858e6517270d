package doctor

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/file"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// strict is the mode of the reverse path filter that drops what would be answered by another link, see
// rp_filter in the kernel's ip-sysctl.rst; 0 is no filter, and 2 a loose one.
const strict = 1

// reversePathOf returns the mode of the reverse path filter that is in force for a link: the greater of
// that of the link and of "all".
func reversePathOf(root, link string) int {
	mode := func(of string) int {
		text, err := file.Read(filepath.Join("/", root, "proc/sys/net/ipv4/conf", of, "rp_filter"), file.Limit)
		if err != nil {
			return 0
		}
		mode, _ := strconv.Atoi(strings.TrimSpace(text))
		return mode
	}
	return max(mode("all"), mode(link))
}

// reversePath warns of ENIs with strict reverse path filtering.
func reversePath(f *Facts) []Finding {
	var links, settings []string
	for _, l := range f.Links {
		if l.ReversePath == strict {
			links = append(links, l.Name)
			settings = append(settings, "net.ipv4.conf."+strings.ReplaceAll(l.Name, ".", "/")+".rp_filter=2")
		}
	}
	if len(links) == 0 {
		return []Finding{ok(ReversePath, "no ENI has strict reverse path filtering")}
	}
	return []Finding{warning(ReversePath, "loose filtering will do: sysctl -w "+strings.Join(settings, " ")+", and the same in a file in /etc/sysctl.d",
		"strict reverse path filtering on %s: what comes in for an address without a policy rule, of a container for one, is dropped where its answer would go out elsewhere",
		strings.Join(links, ", "))}
}

// linkGroup warns of ENIs because of which the daemon leaves out the policy rules that lead from the
// host's own networks to the addresses of ENIs (B9): their links are not in the group, and ec2netd's
// unit, which would put them there, is not in force.
func linkGroup(f *Facts) []Finding {
	if f.Daemon.State == nil {
		return nil
	}
	var without, advice []string
	served := false
	for i := range f.Daemon.State.Interfaces {
		e := &f.Daemon.State.Interfaces[i]
		if !ofOthers(e.State) {
			served = served || !e.Primary
			continue
		}
		at := slices.IndexFunc(f.Links, func(l Link) bool { return l.Name == e.Name })
		if at < 0 || f.Links[at].Group == plan.Group {
			continue
		}
		without, advice = append(without, e.Name), append(advice, intoGroup(e))
	}
	if !served || len(without) == 0 {
		return nil
	}
	return []Finding{warning(LinkGroup, strings.Join(advice, "; "),
		"containers, bridges and VPNs of the host do not reach the addresses of ENIs, since these are not in the group of ENIs: %s", strings.Join(without, ", "))}
}

// ofOthers reports whether an ENI in a state does not have the unit of ec2netd in force.
func ofOthers(s state.ENI) bool {
	return s == state.ENIShadowed || s == state.ENIOverridden || s == state.ENIUnmanaged
}

// intoGroup says how the link of an ENI gets into the group of ENIs.
func intoGroup(e *state.Interface) string {
	if e.NetworkFile == "" {
		return fmt.Sprintf("ip link set dev %s group %d, at each boot", e.Name, plan.Group)
	}
	return fmt.Sprintf("Group=%d in [Link] of /etc/systemd/network/%s.d/group.conf, then: networkctl reload", plan.Group, path.Base(e.NetworkFile))
}

// bridges returns the names of the bridges of a host that forwards.
func bridges(root string) []string {
	text, err := file.Read(filepath.Join("/", root, "proc/sys/net/ipv4/ip_forward"), file.Limit)
	if err != nil || strings.TrimSpace(text) == "0" {
		return nil
	}
	dir := filepath.Join("/", root, "sys/class/net")
	names, _ := file.List(dir, "*")
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name, "bridge"))
		return err != nil
	})
}

// publishedPorts warns that answers of containers leave by the primary ENI, whatever ENI the question
// came in by (B12). Only packet filters know which ports are published.
func publishedPorts(f *Facts) []Finding {
	if f.Daemon.State == nil || len(f.Bridges) == 0 {
		return nil
	}
	var without []string
	for i := range f.Daemon.State.Interfaces {
		e := &f.Daemon.State.Interfaces[i]
		if !e.Primary && e.State == state.ENIConfigured && e.Table > 0 && !f.MarkedTables[e.Table] {
			without = append(without, cmp.Or(e.Name, e.ID()))
		}
	}
	if len(without) == 0 {
		return []Finding{ok(PublishedPorts, "answers of what is behind %s leave by the ENI that its FirewallMark= says", strings.Join(f.Bridges, ", "))}
	}
	return []Finding{warning(PublishedPorts, "nothing, as long as no port is published (DNAT) on an address of theirs; else see FirewallMark= in ec2netd.conf(5)",
		"containers and virtual machines behind %s answer by the primary ENI what comes in by %s, and the VPC drops that",
		strings.Join(f.Bridges, ", "), strings.Join(without, ", "))}
}
