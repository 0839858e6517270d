package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// checkThroughout does what makes networkd configure an ENI anew, each time with an address more, and
// checks after each that something of its link is as it was.
func checkThroughout(l *labtest.Lab, eni *vpc.ENI, check func(when string)) {
	l.T.Helper()
	name := eni.Name()
	for _, step := range []struct {
		name string
		argv []string
	}{
		{"an address assigned", []string{"true"}},
		{"the daemon restarted", []string{"systemctl", "restart", "ec2netd.service"}},
		{"networkd restarted", []string{"systemctl", "restart", "systemd-networkd.service"}},
		{"networkctl reload", []string{"networkctl", "reload"}},
		{"networkctl reconfigure", []string{"networkctl", "reconfigure", name}},
	} {
		added, err := eni.AssignIPv4(l.T.Context())
		if err != nil {
			l.T.Fatal(err)
		}
		l.Until("networkd answers", func() (bool, error) {
			_, err := l.Inst.Exec(l.T.Context(), step.argv...)
			return err == nil, nil
		})
		l.Until(step.name+": the drop-in has the address", func() (bool, error) {
			_, err := l.Inst.Exec(l.T.Context(), "sh", "-c", "grep -q '^Address="+added[0].String()+"/' /run/systemd/network/70-"+name+".network.d/50-ec2netd.conf")
			return err == nil, nil
		})
		l.Until(step.name+": networkd has read it", func() (bool, error) {
			s, err := l.TryDescribe()
			return err == nil && s.Networkd.Running && s.Networkd.LastError == "", nil
		})
		check(step.name)
	}
}

// F10: an ENI that is the port of a bridge made by hand stays one, the state says of what, and
// released it is an ENI as any other. Nothing of that costs the primary ENI a packet.
func TestLabPort(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		finish := l.MeasurePings(l.Inst.Primary())
		name := eni.Name()
		// With IPv6 the bridge would have the VPC's routes too, by its router's advertisements.
		l.Run("sh", "-ec", "ip link add br0 type bridge; echo 1 >/proc/sys/net/ipv6/conf/br0/disable_ipv6; ip link set br0 up; ip link set "+name+" master br0")
		named := func(i *state.Interface) bool { return strings.Contains(i.Reason, "port of br0 (bridge)") }
		checkThroughout(l, eni, func(when string) {
			l.AwaitENI(eni.ID(), named)
			if link := l.Run("ip", "-o", "link", "show", name); !strings.Contains(link, " master br0 ") {
				t.Fatalf("%s: %s", when, link)
			}
		})
		// Whether networkd keeps what a lease brought that cannot be renewed differs from run to run. It is
		// overridden for some milliseconds with each address that is assigned, too.
		l.Run("sh", "-c", "ip -4 route flush default dev "+name)
		entry := l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return named(i) && i.State == state.ENIOverridden && time.Since(i.Since) > time.Second
		})
		_, advice, _ := strings.Cut(entry.Reason, "with: ")
		if doctor := l.Fails("ec2netctl", "doctor"); !strings.Contains(doctor, advice) {
			t.Errorf("doctor says\n%s", doctor)
		}
		// doctor says of it that diff has more.
		if diff := l.Fails("ec2netctl", "diff", name); !strings.Contains(diff, advice) {
			t.Errorf("diff says\n%s", diff)
		}
		l.Follow(entry.Reason, "with: ")
		released := l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && !named(i) })
		if suite != "bookworm" {
			l.CheckKernel(eni)
		} else if released.Reason != "" && !strings.Contains(released.Reason, "no address is missing") {
			// A port gets no lease: networkd 252, restarted, adds the primary address after the others.
			t.Error(released.Reason)
		}
		l.AwaitAssignment(eni)
		lost := finish()
		if suite == "bookworm" {
			lost.Lost[2], lost.Lost[3] = 0, 0 // 252 gives up its lease of IPv6 addresses when it is restarted
		}
		if lost.Lost != [4]int{} {
			t.Errorf("the primary ENI lost %v", lost)
		}
	})
}

// remoteShell has a shell of the instance's at an address, over one connection from the VPC as a
// session of SSH has it. The returned function has it run a line, and waits until that has ended.
func remoteShell(l *labtest.Lab, address netip.Addr) func(line string) {
	l.T.Helper()
	const port = 2222
	l.Run("systemd-run", "--quiet", "--unit=remote", "systemd-socket-activate", fmt.Sprintf("--listen=[::]:%d", port), "--accept", "--inetd", "sh")
	var conn net.Conn
	var answers *bufio.Scanner
	l.Until("the shell answers", func() (bool, error) {
		return l.VPC.Do(func() (err error) {
			dialer := net.Dialer{Timeout: time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(vpc.FarIPv4, 0))}
			conn, err = dialer.DialContext(l.T.Context(), "tcp", netip.AddrPortFrom(address, port).String())
			return err
		}) == nil, nil
	})
	l.T.Cleanup(func() { _ = conn.Close() })
	answers = bufio.NewScanner(conn)
	return func(line string) {
		l.T.Helper()
		_, err := fmt.Fprintf(conn, "%s; echo ended\n", line)
		if err := errors.Join(err, conn.SetReadDeadline(time.Now().Add(l.Patience()))); err != nil {
			l.T.Fatal(err)
		}
		for answers.Scan() {
			if answers.Text() == "ended" {
				return
			}
		}
		l.T.Fatalf("the session ended in %q: %v", line, answers.Err())
	}
}

// F10: who works on the instance over the link that is to be released loses no session by it: the
// line ends what it begins.
func TestLabPortRemote(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		primary := l.Inst.Primary()
		session := remoteShell(l, primary.IPv4()[0])
		session("ip link add br0 type bridge; echo 1 >/proc/sys/net/ipv6/conf/br0/disable_ipv6; ip link set br0 up; ip link set ens5 master br0")
		// Something must be missing: what is there of a port is used. networkd brings it back as long as it
		// is at work to have the link keep the bridge.
		entry := l.AwaitENI("ens5", func(i *state.Interface) bool {
			session("ip -6 address del " + primary.IPv6()[0].String() + "/128 dev ens5 2>/dev/null || :")
			return i.State == state.ENIOverridden && strings.Contains(i.Reason, "port of br0 (bridge)")
		})
		session("true")
		_, advice, _ := strings.Cut(entry.Reason, "with: ")
		session(advice)
		l.AwaitENI("ens5", func(i *state.Interface) bool {
			return i.State == state.ENIConfigured && !strings.Contains(i.Reason, "port of")
		})
		session("true")
		l.AwaitAssignment(primary)
		for _, address := range slices.Concat(primary.IPv4(), primary.IPv6()) {
			l.PingFrom(address)
		}
	})
}

// F10: a link that somebody sets down stays down, one that ifdown has left so is set up when the
// daemon starts, and one without a carrier is called that.
func TestLabSetDown(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		name := eni.Name()
		down := func() bool { return !strings.Contains(l.Run("ip", "-o", "link", "show", name), ",UP") }
		l.Run("ip", "link", "set", name, "down")
		overridden := func(i *state.Interface) bool { return i.State == state.ENIOverridden }
		l.AwaitENI(eni.ID(), overridden)
		var entry *state.Interface
		checkThroughout(l, eni, func(when string) {
			if entry = l.AwaitENI(eni.ID(), overridden); !down() {
				t.Fatalf("%s: the link is up", when)
			}
		})
		l.Run("sh", "-c", entry.Reason[strings.LastIndex(entry.Reason, "ip link"):])
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		l.AwaitAssignment(eni)

		l.Run("systemctl", "stop", "ec2netd.socket", "ec2netd-metrics.socket", "ec2netd.service")
		l.Run("ip", "link", "set", name, "down")
		l.Run("systemctl", "start", "ec2netd.service")
		l.Until("the link is up", func() (bool, error) { return !down(), nil })
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)

		if err := eni.SetCarrier(false); err != nil {
			t.Fatal(err)
		}
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && strings.Contains(i.Reason, "no carrier")
		})
		if err := eni.SetCarrier(true); err != nil {
			t.Fatal(err)
		}
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		l.AwaitAssignment(eni)
	})
}

// F10: a link that somebody sets down for a bridge, as for a bond, is up once it is its port, however
// long it was down before; set down as a port it stays down.
func TestLabSetDownForBridge(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		name := eni.Name()
		named := func(i *state.Interface) bool { return strings.Contains(i.Reason, "port of br0 (bridge)") }
		l.Run("sh", "-ec", "ip link add br0 type bridge; echo 1 >/proc/sys/net/ipv6/conf/br0/disable_ipv6; ip link set br0 up")
		for _, pause := range []string{"0", "0.45", "0.5", "0.55", "2"} {
			l.Run("sh", "-ec", "ip link set "+name+" down; sleep "+pause+"; ip link set "+name+" master br0")
			var last string
			l.UntilOr("after "+pause+" s the port is up", func() (bool, error) {
				last = l.Run("ip", "-o", "link", "show", name)
				return strings.Contains(last, ",UP") && strings.Contains(last, " master br0 "), nil
			}, &last)
			l.AwaitENI(eni.ID(), named)
			l.Run("sh", "-ec", fmt.Sprintf("ip link set %s nomaster; ip link set %[1]s down; ip link set %[1]s up", name))
			l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && !named(i) })
		}
		l.CheckKernel(eni)
		l.Run("sh", "-ec", "ip link set "+name+" master br0")
		l.AwaitENI(eni.ID(), named)
		// networkd sets it up as long as it is at work to have it keep the bridge.
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			l.Run("ip", "link", "set", name, "down")
			return i.State == state.ENIOverridden && strings.Contains(i.Reason, "was set down")
		})
		l.Reload()
		l.Run("ec2netctl", "refresh", "--wait")
		if link := l.Run("ip", "-o", "link", "show", name); strings.Contains(link, ",UP") {
			t.Errorf("the port is set up: %s", link)
		}
	})
}
