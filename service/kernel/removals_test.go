package kernel

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// B10: the kernel passes on changes of items that networkd can have created, but no changes
// by routing daemons and containers.
func TestRemovals(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }()
	filter := removals()
	if err := unix.SetsockoptSockFprog(pair[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		t.Fatal(err)
	}
	const zebra, boot = 11, unix.RTPROT_BOOT
	for name, c := range map[string]struct {
		kind, flags  uint16
		bits         byte
		protocol     byte
		inverted     bool
		passes, ours bool
		index        int
	}{
		"rule removed":           {kind: unix.RTM_DELRULE, protocol: ProtocolStatic, passes: true, ours: true, index: anyLink},
		"rule of others removed": {kind: unix.RTM_DELRULE, protocol: boot, passes: true},
		"rule added":             {kind: unix.RTM_NEWRULE, protocol: ProtocolStatic},
		"tunnel's rule added":    {kind: unix.RTM_NEWRULE, protocol: boot, inverted: true, passes: true, ours: true, index: anyLink},
		"tunnel's rule removed":  {kind: unix.RTM_DELRULE, protocol: boot, inverted: true, passes: true, ours: true, index: anyLink},
		"static route removed":   {kind: unix.RTM_DELROUTE, bits: 24, protocol: ProtocolStatic, passes: true, ours: true, index: 7},
		"lease's route removed":  {kind: unix.RTM_DELROUTE, protocol: ProtocolDHCP, passes: true, ours: true, index: 7},
		"router's route removed": {kind: unix.RTM_DELROUTE, protocol: ProtocolRA, passes: true, ours: true, index: 7},
		"route by BGP removed":   {kind: unix.RTM_DELROUTE, bits: 24, protocol: zebra},
		"route by hand removed":  {kind: unix.RTM_DELROUTE, protocol: boot},
		"route added":            {kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE, protocol: ProtocolStatic},
		"route replaced":         {kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_REPLACE, bits: 24, protocol: zebra},
		"default route replaced": {kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_REPLACE, protocol: boot, passes: true, ours: true, index: anyLink},
		"link removed":           {kind: unix.RTM_DELLINK, protocol: ProtocolStatic},
	} {
		message := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
		binary.NativeEndian.PutUint16(message[typeAt:], c.kind)
		binary.NativeEndian.PutUint16(message[flagsAt:], c.flags)
		message[lengthAt] = c.bits
		attribute := func(kind uint16, value ...byte) {
			message = binary.NativeEndian.AppendUint16(message, uint16(attributeSize+len(value)))
			message = append(binary.NativeEndian.AppendUint16(message, kind), value...)
			message = append(message, make([]byte, aligned(len(value))-len(value))...)
		}
		if c.kind == unix.RTM_DELRULE || c.kind == unix.RTM_NEWRULE {
			if c.inverted {
				binary.NativeEndian.PutUint32(message[ruleFlagsAt:], invert)
			}
			attribute(unix.FRA_PROTOCOL, c.protocol)
		} else {
			message[protocolAt] = c.protocol
			attribute(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, 7)...)
		}
		if err := unix.Send(pair[0], message, 0); err != nil && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		got := make([]byte, 2*len(message))
		n, err := unix.Read(pair[1], got)
		if passed := err == nil && n == len(message); passed != c.passes {
			t.Errorf("%s: passed %t (%v)", name, passed, err)
			continue
		}
		if !c.passes {
			continue
		}
		if index, ok := removalOf(c.kind, message[unix.SizeofNlMsghdr:]); ok != c.ours || index != c.index {
			t.Errorf("%s: link %d, %t", name, index, ok)
		}
	}
}
