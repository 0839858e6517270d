package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// mostResident is what the daemon may have resident at any time, in KiB.
const mostResident = 40 << 10

// hostile is an instance whose metadata service sends what it likes, with what must not change
// meanwhile.
type hostile struct {
	*labtest.Lab
	eni *vpc.ENI
	// before and pid are the files and the daemon's process as they were.
	before, pid string
	lost        func() []string
}

func bootHostile(t *testing.T, suite, config string) *hostile {
	t.Helper()
	l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
		o.Primary = vpc.ENISpec{IPv4Count: 3}
		o.Files["/etc/ec2netd.conf.d/test.conf"] = config
	})
	l.AwaitConfigured("ens5")
	h := &hostile{Lab: l, eni: l.Attach(labtest.HotplugSpec())}
	l.AwaitConfigured(h.eni.ID())
	l.CheckKernel(h.eni)
	h.before, h.pid = l.Files(), h.DaemonPID()
	h.lost = l.WatchDeletions()
	return h
}

// unharmed checks that all is as it was: files, kernel, the daemon and its memory.
func (h *hostile) unharmed(what string) {
	h.T.Helper()
	if now := h.Files(); now != h.before {
		h.T.Errorf("%s: files changed:\n%s\nbefore:\n%s", what, now, h.before)
	}
	for _, eni := range h.Inst.ENIs() {
		if now := h.Addresses(eni.Name()); !slices.Equal(labtest.Sorted(now), labtest.Sorted(slices.Concat(eni.IPv4(), eni.IPv6()))) {
			h.T.Errorf("%s: %s has %v", what, eni.Name(), now)
		}
	}
	if now := h.DaemonPID(); now != h.pid {
		h.T.Errorf("%s: the daemon is another process: %s, %s before", what, now, h.pid)
	}
	if peak := h.OfDaemon("VmHWM", false); peak > mostResident {
		h.T.Errorf("%s: up to %d KiB were resident", what, peak)
	}
}

// fault puts faults in force until the reason of the ENI names a key, and checks that nothing
// changes by it and all is well afterwards.
func (h *hostile) fault(named string, f imds.Fault) {
	h.T.Helper()
	service := h.Inst.Metadata()
	what := f.Pattern + " " + f.String()
	if _, err := service.AddFault(f); err != nil {
		h.T.Fatal(err)
	}
	if f.Pattern == imds.TokenKey {
		service.RevokeTokens()
	}
	got := h.AwaitENI(h.eni.ID(), func(i *state.Interface) bool { return strings.Contains(i.Reason, named) })
	if got.State != state.ENIConfigured {
		h.T.Errorf("%s: %s: %s", what, got.State, got.Reason)
	}
	if len(got.Reason) > 1000 {
		h.T.Errorf("%s: the reason has %d bytes", what, len(got.Reason))
	}
	h.unharmed(what)
	service.ClearFaults()
	h.well()
}

// well waits until the daemon has nothing to complain of.
func (h *hostile) well() {
	h.T.Helper()
	for _, eni := range h.Inst.ENIs() {
		h.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.Reason == "" })
	}
	h.AwaitManager(state.Configured)
}

// TestLabHostileMetadata: whatever the metadata service sends in place of a token, a listing or a value,
// what is configured stays, the ENI's reason names the key, the daemon stays small, and all is well
// when the service is (D3, D13, D14, J2).
func TestLabHostileMetadata(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		h := bootHostile(t, suite, "[Metadata]\nRefreshSec=1\n")
		listing := "network/interfaces/macs/" + h.eni.MAC().String()
		for _, effect := range []imds.Effect{imds.Endless, imds.Huge, imds.Header, imds.Interim, imds.Surplus, imds.Redirect, imds.Partial, imds.Upgrade, imds.Drip} {
			h.fault("token", imds.Fault{Pattern: imds.TokenKey, Effect: effect})
			h.fault(h.eni.MAC().String(), imds.Fault{Pattern: listing, Effect: effect})
			h.fault("local-ipv4s", imds.Fault{Pattern: listing + "/local-ipv4s", Effect: effect})
		}
		service := h.Inst.Metadata()
		ipv4 := h.eni.IPv4()[0].String()
		for key, values := range map[string][]string{
			"local-ipv4s": {ipv4 + "\n203.0.113.7", ipv4 + "\n169.254.169.254", ipv4 + "\n" + h.eni.Subnet().Gateway4().String()},
			"ipv6s":       {"fd00:ec2::254", "2001:db8:dead::1"},
			"ipv4-prefix": {"10.0.16.0/20", "10.0.24.0/29", "192.0.2.0/28"},
			"ipv6-prefix": {h.eni.Subnet().IPv6().String(), "fd00:ec2::/80"},
		} {
			for _, value := range values {
				service.Override(listing+"/"+key, value)
				if got := h.AwaitENI(h.eni.ID(), func(i *state.Interface) bool { return strings.Contains(i.Reason, key) }); got.State != state.ENIConfigured {
					t.Errorf("%s=%s: %s: %s", key, value, got.State, got.Reason)
				}
				h.unharmed(key + "=" + value)
				service.ClearOverride(listing + "/" + key)
				h.well()
			}
		}
		// Before anything is assigned, which on 252 moves IPv6 once from dynamic to static (E2).
		for _, line := range h.lost() {
			t.Errorf("the kernel lost: %s", line)
		}
		h.unknownNames(listing)
		h.CheckKernel(h.eni)
		t.Logf("%s: up to %d KiB were resident", suite, h.OfDaemon("VmHWM", false))
		h.CheckLog("err")
	})
}

// unknownNames lists keys that nobody knows: each is said once, and changes follow.
func (h *hostile) unknownNames(listing string) {
	h.T.Helper()
	service := h.Inst.Metadata()
	if _, err := service.AddFault(imds.Fault{Pattern: listing, Effect: imds.Unknown}); err != nil {
		h.T.Fatal(err)
	}
	added, err := h.eni.AssignIPv4(h.T.Context())
	if err != nil {
		h.T.Fatal(err)
	}
	h.AwaitAddress(h.eni.Name(), added[0])
	for range 3 {
		h.Run("ec2netctl", "refresh", "--wait")
	}
	h.well()
	for _, name := range imds.UnknownNames {
		if n := h.Said(`name=` + quoted(name)); n != 1 {
			h.T.Errorf("the name %q was said %d times", name, n)
		}
	}
	service.ClearFaults()
}

// quoted is a name as the log has it, or its beginning.
func quoted(name string) string {
	if strings.Contains(name, " ") {
		return `"` + name + `"`
	}
	return name[:min(len(name), 60)]
}

// TestLabMetadataOff: the metadata service is switched off for the instance, which EC2 says by 403 for a
// token: the state is offline with what to do, it is said once, nothing goes, a restart of the daemon
// and a new ENI get along without it, it is asked slowly, and all is taken up when it is
// on again (D12, D7).
func TestLabMetadataOff(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		h := bootHostile(t, suite, "[Metadata]\nRefreshSec=8\n")
		service := h.Inst.Metadata()
		off := func() {
			t.Helper()
			if _, err := service.AddFault(imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403}); err != nil {
				t.Fatal(err)
			}
			service.RevokeTokens()
		}
		isOff := func(what string) {
			t.Helper()
			if s := h.AwaitManager(state.Offline); !strings.Contains(s.Reason, "aws ec2 modify-instance-metadata-options --instance-id "+s.InstanceID+" ") || s.InstanceID == "" {
				t.Errorf("%s: %s", what, s.Reason)
			}
		}
		off()
		isOff("switched off")
		h.unharmed("switched off")
		if out := h.Fails("ec2netctl", "refresh"); !strings.Contains(out, "switched off") {
			t.Errorf("refresh says: %s", out)
		}
		if out := h.Run("ec2netctl", "status"); !strings.Contains(out, "switched off") {
			t.Errorf("status says:\n%s", out)
		}
		// The delays have grown to RefreshSec= by now, and one try is one request.
		service.ResetRequests()
		h.Until("it was tried three times more", func() (bool, error) { return len(service.Requests()) >= 3, nil })
		requests := service.Requests()
		if took := requests[2].Time.Sub(requests[0].Time); took < 10*time.Second {
			t.Errorf("three requests came within %v", took)
		}
		if n := h.Said("The metadata service is switched off;"); n != 1 {
			t.Errorf("it was said %d times", n)
		}
		added, err := h.eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// A new ENI gets its lease as one that is not known, and the restarted daemon knows no
		// less than before.
		fresh := h.Attach(vpc.ENISpec{IPv4Count: 2})
		h.AwaitAddress(fresh.Name(), fresh.IPv4()[0])
		h.Run("systemctl", "restart", "ec2netd.service")
		isOff("restarted")
		if now := h.FilesOf(h.eni.Name()); !strings.Contains(now, h.eni.IPv4()[1].String()) {
			t.Errorf("after the restart the files are\n%s", now)
		}
		for _, line := range h.lost() {
			t.Errorf("the kernel lost: %s", line)
		}
		service.ClearFaults()
		h.Until("what was assigned meanwhile is there", func() (bool, error) {
			return h.HasAddress(h.eni.Name(), added[0]) && h.HasAddress(fresh.Name(), fresh.IPv4()[1]), nil
		})
		h.well()
		h.CheckKernel(h.eni)
	})
}
