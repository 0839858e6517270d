package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile/disk"
)

// ifupUnit runs this program with --leaves-alone before ifupdown configures a link that has come,
// see units/ifupdown.
const ifupUnit = "ifup@.service"

// leavesAlone reports whether ec2netd leaves a link to whoever else configures it: one that is no
// ENI's, or that networkd leaves alone. An ENI that the configuration of ec2netd leaves alone is
// networkd's, by the base unit. The error says why that could not be found out; networkd and somebody
// else do less harm than nobody does.
func leavesAlone(root, name string) (bool, error) {
	if !inCharge(root) {
		return true, nil
	}
	observer, err := kernel.NewObserver(config.Load(root).Drivers)
	if err != nil {
		return true, err
	}
	defer observer.Close()
	snapshot, err := observer.Observe()
	if err != nil {
		return true, fmt.Errorf("looking at the links: %w", err)
	}
	i := slices.IndexFunc(snapshot.Links, func(l kernel.Link) bool { return l.Name == name })
	return i < 0 || networkdLeaves(root, snapshot.Links[i]), nil
}

// networkdLeaves reports whether the files of networkd have it leave a link alone (Unmanaged=yes). At
// boot networkd does not run yet when that has to be known.
func networkdLeaves(root string, of kernel.Link) bool {
	link := plan.Observed(of, nil)
	_, culprit := (&disk.Reader{Root: root}).Tree().Unmanaged(link.Matchable())
	return culprit != ""
}

// inCharge reports whether the daemon has been started in this boot, and was not masked since.
func inCharge(root string) bool {
	target, err := os.Readlink(filepath.Join(root, cloudInitLink))
	return err == nil && target == cloudInitConfig
}
