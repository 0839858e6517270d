package main

import (
	"os"
	"path/filepath"
	"testing"

	"ec2netd/service/kernel"
)

// F8: ifupdown is not kept from any link before ec2netd is in charge, nor from one that is no ENI's.
func TestLeavesAlone(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "run/ec2netd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if leaves, err := leavesAlone(root, "ens6"); !leaves || err != nil || inCharge(root) {
		t.Errorf("before ec2netd is in charge: %v, %v", leaves, err)
	}
	if err := leaveNetwork(root); err != nil || !inCharge(root) {
		t.Errorf("ec2netd is not in charge: %v", err)
	}
	if leaves, err := leavesAlone(root, "lo"); !leaves || err != nil {
		t.Errorf("lo is kept from others: %v", err)
	}
}

// F8: an ENI that networkd is told to leave alone is ifupdown's, and one that only waits for its own
// unit is not.
func TestNetworkdLeaves(t *testing.T) {
	const etc, run, base = "/etc/systemd/network/", "/run/systemd/network/", "/usr/lib/systemd/network/80-ec2.network"
	const unmanaged = "[Link]\nUnmanaged=yes\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"nothing":            {nil, false},
		"a file of the link": {map[string]string{etc + "20-own.network": "[Match]\nName=ens7\n" + unmanaged}, true},
		"a file of another":  {map[string]string{etc + "20-own.network": "[Match]\nName=ens6\n" + unmanaged}, false},
		"a file that is not in force": {map[string]string{
			run + "70-ens7.network": "[Match]\nName=ens7\n", etc + "75-own.network": "[Match]\nName=ens7\n" + unmanaged,
		}, false},
		"a drop-in of the unit": {map[string]string{
			run + "70-ens7.network": "[Match]\nName=ens7\n", etc + "70-ens7.network.d/own.conf": unmanaged,
		}, true},
		"a drop-in before its unit":  {map[string]string{etc + "70-ens7.network.d/own.conf": unmanaged}, true},
		"a drop-in of the base unit": {map[string]string{etc + "80-ec2.network.d/own.conf": unmanaged}, true},
		"one that is taken back": {map[string]string{
			etc + "80-ec2.network.d/own.conf": unmanaged, etc + "80-ec2.network.d/zz.conf": "[Link]\nUnmanaged=no\n",
		}, false},
		"the unit of new ENIs": {map[string]string{run + "80-ec2-new.network": "[Match]\nDriver=ena\nProperty=EC2NETD_NEW=1\n" + unmanaged}, false},
	} {
		root := t.TempDir()
		putFile(t, filepath.Join(root, base), "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
		for file, text := range c.files {
			putFile(t, filepath.Join(root, file), text)
		}
		if got := networkdLeaves(root, kernel.Link{Name: "ens7", MAC: "02:00:00:00:00:07", Driver: "ena"}); got != c.want {
			t.Errorf("%s: networkd leaves it alone: %v", name, got)
		}
	}
}

func putFile(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
